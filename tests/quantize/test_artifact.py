"""Whole artifacts: of the trained models in tests/assets, and of random ones that are broken on purpose."""

import hashlib
import json
import shutil
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor

from bot.checkpoint.config import artifact_config
from bot.checkpoint.reader import Checkpoint
from bot.checkpoint.skeleton import open_skeleton
from bot.errors import QuantizationError, UnsupportedModelError, UpstreamError, WatchlistError
from bot.records import QuantizedModel, Recipe
from bot.records.config import Method
from tests.support import tiny_models
from tests.support.artifact_pairs import change_config
from tests.support.canary import quantize_into

ASSETS = Path(__file__).parents[1] / "assets"
SMALL: dict[str, Any] = {"hidden_size": 128, "intermediate_size": 256, "max_position_embeddings": 64}
BLOCKS = tiny_models.random_blocks(4, 32)
TRAINED = [("qwen3-tiny", "awq+gptq"), ("llama-tiny", "awq+gptq"), ("llama-tiny", "awq")]


def run(source: Path, folder: Path, *, blocks: Tensor = BLOCKS, **changes: Any) -> QuantizedModel:
    return quantize_into(folder, source, blocks=blocks, **changes)


class Artifact(NamedTuple):
    """test: tokens that it was not calibrated on."""

    source: Path
    out: Path
    blocks: Tensor
    record: QuantizedModel
    test: Tensor


@pytest.fixture(scope="module", params=TRAINED, ids="-".join)
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """Of a trained model, calibrated on 8 blocks of 128 tokens."""
    model, method = request.param
    source, folder = ASSETS / model, tmp_path_factory.mktemp("made")
    tokens = load_file(ASSETS / "tokens" / f"{model}.safetensors")
    blocks = tokens["dev"][:8, :128].long()
    record = run(source, folder, blocks=blocks, recipe=Recipe(method=method))
    return Artifact(source, folder / "out", blocks, record, tokens["test"][:4, :256].long())


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.build("llama", tmp_path_factory.mktemp("small"), **SMALL)


def test_artifact_loses_far_less_than_plain_rounding(made: Artifact) -> None:
    expected = tiny_models.logits_of(made.source, made.test).double().log_softmax(-1)
    packed = tiny_models.packed_linears(made.out)
    plain = {
        name: tiny_models.rounded(value, 128) if name.removesuffix(".weight") in packed else value
        for name, value in tiny_models.tensors_of(made.source).items()
    }

    def kl(weights: dict[str, Tensor]) -> float:
        """KL(source || other), mean over tokens, in nats."""
        other = tiny_models.logits_of(made.source, made.test, weights=weights).double().log_softmax(-1)
        return float((expected.exp() * (expected - other)).sum(-1).mean())

    assert kl(tiny_models.dequantized(made.out)) < 0.4 * kl(plain)


def test_a_source_is_read_as_transformers_reads_it(small: Path, tmp_path: Path) -> None:
    """Shards in folders, an entry of the index that is in none of them, and a tensor that no model uses."""
    tensors = load_file(small / "model.safetensors")
    odd = torch.arange(6, dtype=torch.uint8).view(torch.float8_e8m0fnu)
    source = shutil.copytree(small, tmp_path / "source", ignore=shutil.ignore_patterns("*.safetensors"))
    names = sorted(tensors)
    files = {"a/x.safetensors": names[::2], "b/x.safetensors": names[1::2]}
    for file, part in files.items():
        (source / file).parent.mkdir()
        save_file(
            {name: tensors[name] for name in part} | ({"odd": odd} if part[0] == names[0] else {}), source / file
        )
    weight_map = {name: file for file, part in files.items() for name in part} | {"stale": "a/x.safetensors"}
    (source / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    run(source, tmp_path)
    run(small, tmp_path / "plain")
    made, plain = (load_file(folder / "out" / "model.safetensors") for folder in (tmp_path, tmp_path / "plain"))
    assert torch.equal(made.pop("odd").view(torch.uint8), odd.view(torch.uint8))
    assert made.keys() == plain.keys()
    assert all(torch.equal(value, plain[name]) for name, value in made.items())


def test_linears_are_packed_and_all_else_is_copied(made: Artifact) -> None:
    source, artifact = tiny_models.tensors_of(made.source), tiny_models.tensors_of(made.out)
    packed = tiny_models.packed_linears(made.out)
    assert len(packed) == 7 * 4 == len(made.record.modules)
    parts = {f"{name}.{part}" for name in packed for part in ("qweight", "qzeros", "scales")}
    assert artifact.keys() - parts == source.keys() - {f"{name}.weight" for name in packed}
    for name in source:
        if "layers" not in name:
            assert torch.equal(artifact[name], source[name].half())


def test_record_describes_the_files_that_are_there(made: Artifact) -> None:
    on_disk = {path.relative_to(made.out).as_posix(): path for path in made.out.rglob("*") if path.is_file()}
    assert [file.path for file in made.record.files] == sorted(on_disk)
    for file in made.record.files:
        content = on_disk[file.path].read_bytes()
        assert (file.size_bytes, file.sha256) == (len(content), hashlib.sha256(content).hexdigest())
    assert "README.md" not in on_disk
    assert {"LICENSE", "tokenizer.json", "generation_config.json"} <= set(on_disk)
    before, after = ((folder / "config.json").read_bytes() for folder in (made.source, made.out))
    expected = artifact_config(
        before,
        recipe=made.record.recipe,
        modules_to_not_convert=(),
        artifact_dtype="float16",
        trust_remote_code=False,
    )
    assert after == expected


def test_bits_are_counted_from_the_file(made: Artifact) -> None:
    tensors = tiny_models.tensors_of(made.out)
    values = sum(value.numel() for value in tiny_models.tensors_of(made.source).values())
    packed = [name for name in tensors if name.endswith(("qweight", "qzeros", "scales"))]
    parameters = 8 * sum(tensors[name].numel() for name in packed if name.endswith("qweight"))

    def bits(names: Iterable[str]) -> int:
        return 8 * sum(tensors[name].nbytes for name in names)

    assert made.record.quantized_parameters == parameters
    assert made.record.bits_per_weight == bits(packed) / parameters == 4 + (16 + 4) / 128
    assert made.record.bits_per_weight_file == pytest.approx(bits(tensors) / values)


def test_errors_are_those_of_the_first_layers_outputs(made: Artifact) -> None:
    """The first layer's queries and keys see the source's own inputs, so what they lose can be computed apart."""
    source, artifact = tiny_models.tensors_of(made.source), tiny_models.dequantized(made.out)
    path = "model.layers.0"
    embedded = source["model.embed_tokens.weight"].double()[made.blocks].flatten(0, 1)
    normed = embedded / (embedded.square().mean(-1, keepdim=True) + 1e-6).sqrt()
    errors = {module.module: module for module in made.record.modules if module.layer == 0}
    for name in ("self_attn.q_proj", "self_attn.k_proj"):
        weight = source[f"{path}.{name}.weight"].double()
        inputs = normed * source[f"{path}.input_layernorm.weight"].double()
        wanted = inputs @ weight.t()
        scaled = normed * artifact[f"{path}.input_layernorm.weight"].double()
        got = scaled @ artifact[f"{path}.{name}.weight"].double().t()
        plain = inputs @ tiny_models.rounded(weight.float(), 128).double().t()
        lost, lost_by_rounding = (
            float((outputs - wanted).square().sum() / wanted.square().sum()) for outputs in (got, plain)
        )
        assert errors[name].relative_error == pytest.approx(lost, rel=0.05)
        assert errors[name].relative_error_rounding == pytest.approx(lost_by_rounding, rel=0.05)
        assert errors[name].relative_error < errors[name].relative_error_rounding


def test_modules_report_clipping_and_ratio_and_needed_no_fallback(made: Artifact) -> None:
    """AutoAWQ clips no queries and keys; our search does. Only our search knows its ratio."""
    ours = made.record.recipe.method == "awq+gptq"
    for module in made.record.modules:
        assert module.fallback == ""
        unclipped = not ours and module.module in {"self_attn.q_proj", "self_attn.k_proj"}
        assert (0 < module.clipped_share < 0.2) != unclipped
        if module.module in {"mlp.down_proj", "self_attn.q_proj"}:
            assert (module.ratio in [step / 20 for step in range(20)]) if ours else module.ratio is None


@pytest.mark.parametrize("method", ["awq+gptq", "awq"])
def test_same_input_gives_the_same_bytes_and_nothing_is_printed(
    method: Method, small: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    records = [run(small, tmp_path / name, recipe=Recipe(method=method)) for name in ("a", "b")]
    first, second = (replace(record, duration_s=0, layer_durations_s=()) for record in records)
    assert first == second
    assert len(records[0].layer_durations_s) == 2
    assert capfd.readouterr() == ("", "")


def test_progress_counts_layers_and_hashed_bytes(small: Path, tmp_path: Path) -> None:
    seen: list[tuple[str, int, int, str]] = []
    run(small, tmp_path, progress=lambda *step: seen.append(step))
    assert [step for step in seen if step[0] == "quantizing"] == [("quantizing", i, 2, "layers") for i in range(3)]
    for what, paths in {
        "hashing the source": small.glob("*.safetensors"),
        "hashing the artifact": (tmp_path / "out").glob("*"),
    }.items():
        size = sum(path.stat().st_size for path in paths)
        assert [step for step in seen if step[0] == what][-1] == (what, size, size, "B")


@pytest.mark.parametrize(
    "changes",
    [{}, {"recipe": Recipe(group_size=64)}, {"blocks": BLOCKS.reshape(2 * len(BLOCKS), -1)}],
    ids=["the same", "another recipe", "the same tokens in other blocks"],
)
def test_layers_are_reused_for_the_same_input_only(changes: dict[str, Any], small: Path, tmp_path: Path) -> None:
    first = run(small, tmp_path)
    layers = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in (tmp_path / "layers").iterdir()}
    second = run(small, tmp_path, **changes)
    assert len(layers) == 2
    for path, (content, written) in layers.items():
        assert (path.read_bytes() == content) == (path.stat().st_mtime_ns == written) == (not changes)
    assert (first.files == second.files) == (not changes)


def test_a_module_that_is_left_out_stays_as_it_is(small: Path, tmp_path: Path) -> None:
    left_out = "model.layers.1.self_attn.o_proj"
    record = run(small, tmp_path, recipe=Recipe(modules_to_not_convert=(left_out,)))
    kept, original = (tiny_models.tensors_of(folder)[f"{left_out}.weight"] for folder in (tmp_path / "out", small))
    assert kept.dtype == torch.float16
    assert torch.equal(kept, original)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["quantization_config"]["modules_to_not_convert"] == [left_out]
    assert record.modules_to_not_convert == (left_out,)
    assert len(record.modules) == 13


def assert_close(source: Path, folder: Path) -> None:
    expected = tiny_models.logits_of(source, BLOCKS)
    got = tiny_models.logits_of(source, BLOCKS, weights=tiny_models.dequantized(folder / "out"))
    assert (got - expected).norm() < 0.3 * expected.norm()


def test_output_channels_need_not_divide_by_64(tmp_path: Path) -> None:
    source = tiny_models.build("llama", tmp_path / "source", **SMALL, head_dim=40)
    assert len(run(source, tmp_path, recipe=Recipe(group_size=32)).modules) == 14
    assert_close(source, tmp_path)


def changed(small: Path, folder: Path, change: Callable[[dict[str, Tensor]], object]) -> Path:
    """A copy of the model with other tensors."""
    shutil.copytree(small, folder)
    tensors = load_file(small / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


EMBEDDING = "model.embed_tokens.weight"


@pytest.mark.parametrize(
    ("tensor", "change", "problem"),
    [
        (
            "model.layers.1.mlp.up_proj.weight",
            lambda t: t[3, 3].fill_(torch.nan),
            "layer 1, mlp.up_proj: its weights",
        ),
        (EMBEDDING, lambda t: t.fill_(torch.inf), "layer 0, self_attn.q_proj: its inputs"),
        ("model.norm.weight", lambda t: t.fill_(torch.nan), "tensor model.norm.weight"),
        (EMBEDDING, lambda t: t.mul_(6e5), "layer 0: activations reach"),
    ],
)
def test_broken_numbers_are_named_and_nothing_is_left_behind(
    tensor: str, change: Callable[[Tensor], object], problem: str, small: Path, tmp_path: Path
) -> None:
    source = changed(small, tmp_path / "source", lambda tensors: change(tensors[tensor]))
    with pytest.raises(QuantizationError, match=problem):
        run(source, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} <= {"source", "layers"}


@pytest.mark.parametrize(("factor", "dtype"), [(1, "float16"), (6e5, "bfloat16")])
def test_bfloat16_is_kept_only_where_it_is_needed(factor: float, dtype: str, small: Path, tmp_path: Path) -> None:
    def as_bfloat16(tensors: dict[str, Tensor]) -> None:
        tensors |= {name: value.bfloat16() for name, value in tensors.items()}
        tensors[EMBEDDING] *= factor

    record = run(changed(small, tmp_path / "source", as_bfloat16), tmp_path)
    assert record.artifact_dtype == dtype
    tensors = tiny_models.tensors_of(tmp_path / "out")
    norms = {value.dtype for name, value in tensors.items() if name.endswith("norm.weight")}
    assert norms == {getattr(torch, dtype)}
    assert {value.dtype for name, value in tensors.items() if name.endswith("scales")} == {torch.float16}
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == dtype


def test_what_upstream_keeps_in_float32_stays_so(tmp_path: Path) -> None:
    """Routers' biases, in which 16 bits would choose other experts, and a norm, which is scaled."""
    bias, norm = "model.layers.1.mlp.gate.e_score_correction_bias", "model.layers.1.input_layernorm.weight"
    built = tiny_models.build("deepseek_v3", tmp_path / "built", dtype=torch.bfloat16)

    def as_upstream(tensors: dict[str, Tensor]) -> None:
        tensors[bias] = 4 + torch.rand(tensors[bias].shape) / 1000
        tensors[norm] = tensors[norm].float()

    source = changed(built, tmp_path / "source", as_upstream)
    run(source, tmp_path)

    wanted, found = (tiny_models.tensors_of(folder) for folder in (source, tmp_path / "out"))
    assert torch.equal(found[bias], wanted[bias])
    assert (
        {name for name, value in found.items() if value.dtype == torch.float32}
        == {name for name, value in wanted.items() if value.dtype == torch.float32}
        >= {bias, norm}
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_layer_in_16_bits_has_the_float32_tensors_that_transformers_gives_it(
    dtype: torch.dtype, tmp_path: Path
) -> None:
    source = tiny_models.build("deepseek_v3", tmp_path / "source", dtype=torch.bfloat16)
    checkpoint = Checkpoint(source)
    skeleton = open_skeleton(
        source, checkpoint.tensors, read=checkpoint.read, dtype=dtype, trust_remote_code=False
    )
    architecture = transformers.AutoModelForCausalLM.from_pretrained(source, dtype=dtype)
    loaded = architecture.model.layers[1].state_dict()
    read = skeleton.layer_tensors(1)
    assert {key: read[key].dtype for key in loaded if key in read} == {
        key: value.dtype for key, value in loaded.items() if key in read
    }
    assert read["mlp.gate.e_score_correction_bias"].dtype == torch.float32


def test_tensors_that_the_model_does_not_read_are_copied(small: Path, tmp_path: Path) -> None:
    """Older checkpoints have masks that float16 cannot hold, and rotary frequencies, which are no longer read."""
    unread = {
        "model.layers.0.self_attn.masked_bias": torch.tensor(-1e9),
        "model.layers.0.self_attn.rotary_emb.inv_freq": torch.rand(16),
    }
    source = changed(small, tmp_path / "source", lambda tensors: tensors.update(unread))
    record, plain = run(source, tmp_path), run(small, tmp_path / "plain")
    found = tiny_models.tensors_of(tmp_path / "out")
    for name, value in unread.items():
        assert torch.equal(found[name], value)
        assert found[name].dtype == torch.float32
    assert record.bits_per_weight_file == pytest.approx(plain.bits_per_weight_file, rel=0.01)


def test_dead_channels_do_no_harm(small: Path, tmp_path: Path) -> None:
    """A norm that silences channels: nothing is known about the weights that read them, and nothing needed."""

    def silence(tensors: dict[str, Tensor]) -> None:
        for name, value in tensors.items():
            if name.endswith("layernorm.weight"):
                value[:5] = 0

    source = changed(small, tmp_path / "source", silence)
    record = run(source, tmp_path)
    assert all(module.relative_error < module.relative_error_rounding for module in record.modules)
    assert_close(source, tmp_path)


CODE = {"AutoConfig": "code.C", "AutoModelForCausalLM": "code.M"}


@pytest.mark.parametrize(
    ("keys", "method", "problem"),
    [
        ({"quantization_config": {}}, "awq", "already quantized"),
        ({"model_type": None}, "awq", "has no model_type"),
        ({}, "guess", "method='guess'"),
        ({"model_type": "strange", "auto_map": CODE}, "awq", "cannot build it from config.json"),
    ],
)
def test_unsupported_configs_and_methods_are_refused_and_no_code_is_run(
    keys: dict[str, Any], method: Any, problem: str, small: Path, tmp_path: Path
) -> None:
    source = shutil.copytree(small, tmp_path / "source")
    change_config(source, lambda config: config.update(keys))
    (source / "code.py").write_text(f"open({str(tmp_path / 'run')!r}, 'w')\n")
    with pytest.raises(UnsupportedModelError, match=problem):
        run(source, tmp_path, recipe=Recipe(method=method))
    assert not (tmp_path / "run").exists()


def test_a_folder_without_config_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UpstreamError, match=r"config\.json: missing"):
        run(tmp_path, tmp_path)


def test_only_an_artifact_is_replaced(small: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("two years")
    with pytest.raises(WatchlistError, match="is not an AWQ folder"):
        run(small, tmp_path)
    assert (tmp_path / "out" / "thesis.txt").exists()
