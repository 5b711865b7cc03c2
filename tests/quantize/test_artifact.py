"""Whole artifacts: of the trained models in tests/assets, and of random ones that are broken on purpose."""

from __future__ import annotations

import hashlib
import json
import shutil
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor

from bot.checkpoint.inventory import check_inventory
from bot.checkpoint.reader import Checkpoint
from bot.errors import BotError, QuantizationError, UnsupportedModelError, UpstreamError, WatchlistError
from bot.quantize.artifact import quantize
from bot.records import Progress, QuantizedModel, Recipe, no_progress
from bot.records.config import Method
from tests.support import tiny_models

with warnings.catch_warnings(record=True):
    from awq.models.auto import AWQ_CAUSAL_LM_MODEL_MAP

ASSETS = Path(__file__).parents[1] / "assets"
SMALL: dict[str, Any] = {"hidden_size": 128, "intermediate_size": 256, "max_position_embeddings": 64}
BLOCKS = tiny_models.random_blocks(4, 32)
RECIPE = Recipe()
TRAINED = [("qwen3-tiny", "awq+gptq"), ("llama-tiny", "awq+gptq"), ("llama-tiny", "awq")]


def run(
    source: Path,
    folder: Path,
    *,
    blocks: Tensor = BLOCKS,
    recipe: Recipe = RECIPE,
    progress: Progress = no_progress,
) -> QuantizedModel:
    return quantize(
        source,
        folder / "out",
        layers=folder / "layers",
        recipe=recipe,
        blocks=blocks,
        calibration=tiny_models.calibration_set(blocks),
        trust_remote_code=False,
        progress=progress,
    )


class QuantizedLinear(NamedTuple):
    source: Path
    out: Path
    blocks: Tensor
    record: QuantizedModel
    test: Tensor


@pytest.fixture(scope="module", params=TRAINED, ids="-".join)
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> QuantizedLinear:
    """A trained model, calibrated on 8 blocks of 128 tokens; test: tokens that it was not calibrated on."""
    model, method = request.param
    source, folder = ASSETS / model, tmp_path_factory.mktemp("made")
    tokens = load_file(ASSETS / "tokens" / f"{model}.safetensors")
    blocks = tokens["dev"][:8, :128].long()
    record = run(source, folder, blocks=blocks, recipe=Recipe(method=method))
    return QuantizedLinear(source, folder / "out", blocks, record, tokens["test"][:4, :256].long())


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.build("llama", tmp_path_factory.mktemp("small"), **SMALL)


def kl(source: Tensor, other: Tensor) -> float:
    """KL(source || other), mean over tokens, in nats."""
    p, q = source.double().log_softmax(-1), other.double().log_softmax(-1)
    return float((p.exp() * (p - q)).sum(-1).mean())


def test_artifact_loses_far_less_than_plain_rounding(made: QuantizedLinear) -> None:
    expected = tiny_models.logits_of(made.source, made.test)
    packed = tiny_models.packed_linears(made.out)
    plain = {
        name: tiny_models.rounded(value, 128) if name.removesuffix(".weight") in packed else value
        for name, value in tiny_models.tensors_of(made.source).items()
    }
    lost = kl(expected, tiny_models.logits_of(made.source, made.test, weights=tiny_models.dequantized(made.out)))
    lost_by_rounding = kl(expected, tiny_models.logits_of(made.source, made.test, weights=plain))
    assert lost < 0.4 * lost_by_rounding


@pytest.mark.parametrize("made", TRAINED[:2], indirect=True, ids="-".join)
def test_stock_autoawq_damages_the_model_on_a_cpu(made: QuantizedLinear) -> None:
    """The scaling alone, without clips or integers, must not change what the model computes. Stock, it does."""
    model = transformers.AutoModelForCausalLM.from_pretrained(made.source, dtype=torch.float32)
    kind = AWQ_CAUSAL_LM_MODEL_MAP[model.config.model_type]
    kind(model, model.config.model_type, False, model.config, None, None).quantize(
        quant_config={"zero_point": True, "q_group_size": 128, "w_bit": 4, "version": "GEMM"},
        calib_data=made.blocks[:2].tolist(),
        max_calib_seq_len=128,
        export_compatible=True,
        apply_clip=False,
    )
    with torch.no_grad():
        stock = model(made.test).logits
    expected = tiny_models.logits_of(made.source, made.test)
    ours = tiny_models.logits_of(made.source, made.test, weights=tiny_models.dequantized(made.out))
    assert kl(expected, stock) > 5 * kl(expected, ours)


def test_every_tensor_is_there_once(made: QuantizedLinear) -> None:
    source, artifact = Checkpoint(made.source).tensors, Checkpoint(made.out).tensors
    check_inventory(source, artifact, artifact_dtype="F16", group_size=128)
    assert len(tiny_models.packed_linears(made.out)) == 7 * 4 == len(made.record.modules)
    assert ("lm_head.weight" in artifact) == ("lm_head.weight" in source)


def test_what_awq_does_not_touch_is_copied(made: QuantizedLinear) -> None:
    source, artifact = tiny_models.tensors_of(made.source), tiny_models.tensors_of(made.out)
    untouched = [name for name in source if "layers" not in name]
    assert untouched
    for name in untouched:
        assert torch.equal(artifact[name], source[name].half())


def test_config_is_upstreams_with_two_keys_changed(made: QuantizedLinear) -> None:
    before = json.loads((made.source / "config.json").read_text())
    after = json.loads((made.out / "config.json").read_text())
    assert list(after) == [*before, "quantization_config"]
    assert after.pop("quantization_config") == {
        "quant_method": "awq",
        "bits": 4,
        "group_size": 128,
        "zero_point": True,
        "version": "gemm",
        "modules_to_not_convert": None,
    }
    assert after == before | {"torch_dtype": "float16"}


def test_files_are_described_as_they_are(made: QuantizedLinear) -> None:
    on_disk = {path.relative_to(made.out).as_posix(): path for path in made.out.rglob("*") if path.is_file()}
    assert [file.path for file in made.record.files] == sorted(on_disk)
    for file in made.record.files:
        content = on_disk[file.path].read_bytes()
        assert (file.size_bytes, file.sha256) == (len(content), hashlib.sha256(content).hexdigest())
        assert on_disk[file.path].stat().st_mode & 0o777 == 0o644
    assert "README.md" not in on_disk
    assert {"LICENSE", "tokenizer.json", "generation_config.json"} <= set(on_disk)


def test_bits_are_counted_from_the_file(made: QuantizedLinear) -> None:
    tensors = tiny_models.tensors_of(made.out)
    values = sum(value.numel() for value in tiny_models.tensors_of(made.source).values())
    packed = [name for name in tensors if name.endswith(("qweight", "qzeros", "scales"))]
    parameters = 8 * sum(tensors[name].numel() for name in packed if name.endswith("qweight"))

    def bits(names: Any) -> int:
        return 8 * sum(tensors[name].numel() * tensors[name].element_size() for name in names)

    assert made.record.quantized_parameters == parameters
    assert made.record.bits_per_weight == bits(packed) / parameters == 4 + (16 + 4) / 128
    assert made.record.bits_per_weight_file == pytest.approx(bits(tensors) / values)


def test_errors_are_those_of_the_first_layers_outputs(made: QuantizedLinear) -> None:
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


def test_clipped_share_is_counted_where_weights_are_clipped(made: QuantizedLinear) -> None:
    """AutoAWQ clips no queries and keys; our search does."""
    for module in made.record.modules:
        kept = made.record.recipe.method == "awq" and module.module in {"self_attn.q_proj", "self_attn.k_proj"}
        assert (0 < module.clipped_share < 0.2) != kept


def test_compensation_reports_its_ratio_and_needed_no_fallback(made: QuantizedLinear) -> None:
    ours = made.record.recipe.method == "awq+gptq"
    scalable = {"mlp.down_proj", "self_attn.q_proj"}
    for module in made.record.modules:
        assert module.fallback == ""
        if module.module in scalable:
            assert (module.ratio in [step / 20 for step in range(20)]) if ours else module.ratio is None


@pytest.mark.parametrize("method", ["awq+gptq", "awq"])
def test_same_input_gives_the_same_bytes_and_nothing_is_printed(
    method: Method, small: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    first = run(small, tmp_path / "a", recipe=Recipe(method=method))
    second = run(small, tmp_path / "b", recipe=Recipe(method=method))
    assert first.files == second.files
    timeless = [replace(record, duration_s=0, layer_durations_s=()) for record in (first, second)]
    assert timeless[0] == timeless[1]
    assert len(first.layer_durations_s) == 2
    assert capfd.readouterr() == ("", "")


def test_progress_counts_layers_and_hashed_bytes(small: Path, tmp_path: Path) -> None:
    seen: list[tuple[str, int, int, str]] = []
    run(small, tmp_path, progress=lambda *step: seen.append(step))
    assert [step for step in seen if step[0] == "quantizing"] == [("quantizing", i, 2, "layers") for i in range(3)]
    for what, folder in {"hashing the source": small, "hashing the artifact": tmp_path / "out"}.items():
        pattern = "*.safetensors" if folder == small else "*"
        size = sum(path.stat().st_size for path in folder.glob(pattern))
        assert [step for step in seen if step[0] == what][-1] == (what, size, size, "B")


def test_layers_of_the_same_recipe_are_used_again_and_others_are_made_again(small: Path, tmp_path: Path) -> None:
    first = run(small, tmp_path)
    finished = tmp_path / "layers" / "layer-00000.safetensors"
    before = finished.stat().st_mtime_ns
    assert run(small, tmp_path).files == first.files
    assert finished.stat().st_mtime_ns == before
    run(small, tmp_path, recipe=Recipe(group_size=64))
    assert finished.stat().st_mtime_ns != before


def test_a_module_that_is_left_out_stays_as_it_is(small: Path, tmp_path: Path) -> None:
    left_out = "model.layers.1.self_attn.o_proj"
    record = run(small, tmp_path, recipe=Recipe(modules_to_not_convert=(left_out,)))
    artifact = tiny_models.tensors_of(tmp_path / "out")
    assert artifact[f"{left_out}.weight"].dtype == torch.float16
    assert torch.equal(artifact[f"{left_out}.weight"], tiny_models.tensors_of(small)[f"{left_out}.weight"])
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["quantization_config"]["modules_to_not_convert"] == [left_out]
    assert record.modules_to_not_convert == (left_out,)
    assert len(record.modules) == 13


def test_output_channels_need_not_divide_by_64(tmp_path: Path) -> None:
    source = tiny_models.build("llama", tmp_path / "source", **SMALL, head_dim=40)
    record = run(source, tmp_path, recipe=Recipe(group_size=32))
    assert len(record.modules) == 14
    expected = tiny_models.logits_of(source, BLOCKS)
    got = tiny_models.logits_of(source, BLOCKS, weights=tiny_models.dequantized(tmp_path / "out"))
    assert (got - expected).norm() < 0.3 * expected.norm()


def changed(small: Path, folder: Path, change: Callable[[dict[str, Tensor]], object]) -> Path:
    shutil.copytree(small, folder)
    tensors = load_file(small / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


UP = "model.layers.1.mlp.up_proj.weight"
EMBEDDING = "model.embed_tokens.weight"


@pytest.mark.parametrize(
    ("change", "error", "problem"),
    [
        (lambda t: t[UP].__setitem__((3, 3), torch.nan), QuantizationError, "layer 1, mlp.up_proj: its weights"),
        (lambda t: t[EMBEDDING].fill_(torch.inf), QuantizationError, "layer 0, self_attn.q_proj: its inputs"),
        (lambda t: t["model.norm.weight"].fill_(torch.nan), QuantizationError, "tensor model.norm.weight"),
        (lambda t: t[EMBEDDING].mul_(6e5), QuantizationError, "layer 0: activations reach"),
        (lambda t: t.pop(UP), UpstreamError, f'1 missing keys: "{UP}"'),
        (lambda t: t.update({UP: t[UP][:64].clone()}), UpstreamError, f'1 mismatched keys: "{UP}"'),
    ],
)
def test_broken_numbers_are_named_and_nothing_is_left_behind(
    change: Callable[[dict[str, Tensor]], object],
    error: type[BotError],
    problem: str,
    small: Path,
    tmp_path: Path,
) -> None:
    source = changed(small, tmp_path / "source", change)
    with pytest.raises(error, match=problem):
        run(source, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} <= {"source", "layers"}


def as_bfloat16(factor: float) -> Callable[[dict[str, Tensor]], None]:
    def change(tensors: dict[str, Tensor]) -> None:
        for name, value in tensors.items():
            tensors[name] = value.bfloat16() * (factor if name == EMBEDDING else 1)

    return change


@pytest.mark.parametrize(("factor", "dtype"), [(1, "float16"), (6e5, "bfloat16")])
def test_bfloat16_is_kept_only_where_the_activations_need_it(
    factor: float, dtype: str, small: Path, tmp_path: Path
) -> None:
    source = changed(small, tmp_path / "source", as_bfloat16(factor))
    record = run(source, tmp_path)
    assert record.artifact_dtype == dtype
    tensors = tiny_models.tensors_of(tmp_path / "out")
    norms = {value.dtype for name, value in tensors.items() if name.endswith("norm.weight")}
    assert norms == {getattr(torch, dtype)}
    assert {value.dtype for name, value in tensors.items() if name.endswith("scales")} == {torch.float16}
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == dtype


def test_what_the_model_does_not_read_is_copied_whatever_it_holds(small: Path, tmp_path: Path) -> None:
    """Older checkpoints have masks that float16 cannot hold, and rotary frequencies, which are no longer read."""

    def store(tensors: dict[str, Tensor]) -> None:
        tensors["model.layers.0.self_attn.masked_bias"] = torch.tensor(-1e9)
        tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.rand(16)

    source = changed(small, tmp_path / "source", store)
    record, plain = run(source, tmp_path), run(small, tmp_path / "plain")
    kept, found = tiny_models.tensors_of(source), tiny_models.tensors_of(tmp_path / "out")
    for name in kept.keys() - tiny_models.tensors_of(small).keys():
        assert torch.equal(found[name], kept[name])
        assert found[name].dtype == torch.float32
    assert record.bits_per_weight_file == pytest.approx(plain.bits_per_weight_file, rel=0.01)


def test_layers_of_the_same_tokens_in_other_blocks_are_made_again(small: Path, tmp_path: Path) -> None:
    run(small, tmp_path, blocks=BLOCKS)
    layers = {path.name: path.read_bytes() for path in (tmp_path / "layers").iterdir()}
    run(small, tmp_path, blocks=BLOCKS.reshape(2 * len(BLOCKS), -1))
    assert all((tmp_path / "layers" / name).read_bytes() != content for name, content in layers.items())


def test_a_model_that_is_quantized_already_is_refused(made: QuantizedLinear, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModelError, match="already quantized"):
        run(made.out, tmp_path)


def test_a_type_that_autoawq_does_not_know_is_refused(tmp_path: Path) -> None:
    config = transformers.GPT2Config(vocab_size=512, n_embd=128, n_layer=1, n_head=2, n_positions=64)
    transformers.GPT2LMHeadModel(config).save_pretrained(tmp_path / "source")
    with pytest.raises(UnsupportedModelError, match="no causal language model of type 'gpt2'"):
        run(tmp_path / "source", tmp_path)


def test_unknown_method_is_refused(small: Path, tmp_path: Path) -> None:
    unknown: dict[str, Any] = {"method": "guess"}
    with pytest.raises(UnsupportedModelError, match="method='guess'"):
        run(small, tmp_path, recipe=Recipe(**unknown))


def test_dead_channels_do_no_harm(small: Path, tmp_path: Path) -> None:
    """A norm that silences channels: nothing is known about the weights that read them, and nothing needed."""

    def silence(tensors: dict[str, Tensor]) -> None:
        for name, value in tensors.items():
            if name.endswith("layernorm.weight"):
                value[:5] = 0

    source = changed(small, tmp_path / "source", silence)
    record = run(source, tmp_path)
    assert all(module.relative_error < module.relative_error_rounding for module in record.modules)
    expected = tiny_models.logits_of(source, BLOCKS)
    got = tiny_models.logits_of(source, BLOCKS, weights=tiny_models.dequantized(tmp_path / "out"))
    assert (got - expected).norm() < 0.3 * expected.norm()


def test_a_folder_without_config_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UpstreamError, match=r"config\.json: missing"):
        run(tmp_path, tmp_path)


def test_an_artifact_is_replaced_and_other_folders_are_not(small: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("two years")
    with pytest.raises(WatchlistError, match="is not an AWQ folder"):
        run(small, tmp_path)
    (tmp_path / "out" / "thesis.txt").unlink()
    first = run(small, tmp_path)
    assert run(small, tmp_path).files == first.files


@pytest.mark.gpu
def test_a_gpu_makes_as_good_an_artifact(small: Path, tmp_path: Path) -> None:
    record = run(small, tmp_path)
    assert record.device == torch.cuda.get_device_name()
    expected = tiny_models.logits_of(small, BLOCKS)
    got = tiny_models.logits_of(small, BLOCKS, weights=tiny_models.dequantized(tmp_path / "out"))
    assert (got - expected).norm() < 0.3 * expected.norm()
    assert all(module.relative_error < module.relative_error_rounding for module in record.modules)


def test_untrusted_code_is_not_run(small: Path, tmp_path: Path) -> None:
    source = shutil.copytree(small, tmp_path / "source")
    config = json.loads((source / "config.json").read_text())
    config |= {"model_type": "strange", "auto_map": {"AutoConfig": "code.C", "AutoModelForCausalLM": "code.M"}}
    (source / "config.json").write_text(json.dumps(config))
    (source / "code.py").write_text(f"open({str(tmp_path / 'run')!r}, 'w')\n")
    with pytest.raises(UnsupportedModelError, match="cannot load it"):
        run(source, tmp_path)
    assert not (tmp_path / "run").exists()
