"""The figures of a report against brute force in numpy, and everything that makes a report impossible."""

import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from bot.calibration.evaluation import evaluation_tokens
from bot.errors import EnvironmentProblem, QuantizationError, UnsupportedModelError
from bot.evaluate.metrics import evaluate, percentile, perplexity, token_figures
from bot.evaluate.reference import make_reference
from bot.records import Evaluation, EvaluationText, Reference, Report, no_progress
from tests.support.artifact_pairs import (
    MODELS,
    VOCABULARY,
    Pair,
    change_config,
    change_tensors,
    make_pair,
    quantized_pair,
)

ASSETS = Path(__file__).parent.parent / "assets"
TOKENS = torch.randint(0, VOCABULARY, (10, 32), generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Pair]:
    """Makes the pair of a model_type, once."""
    made: dict[str, Pair] = {}

    def pair(model_type: str) -> Pair:
        if model_type not in made:
            made[model_type] = make_pair(model_type, tmp_path_factory.mktemp(model_type))
        return made[model_type]

    return pair


def copy_of(pair: Pair, folder: Path) -> Pair:
    source, quantized = (shutil.copytree(path, folder / path.name) for path in (pair.source, pair.quantized))
    return Pair(source, quantized, pair.restored)


@pytest.fixture
def copied(pairs: Callable[[str], Pair], tmp_path: Path) -> Pair:
    """A pair that a test may damage."""
    return copy_of(pairs("llama"), tmp_path)


def measured(pair: Pair, tokens: Tensor = TOKENS, **changes: Any) -> Report:
    settings: dict[str, Any] = {"trust_remote_code": False, "progress": no_progress, "device": "cpu", **changes}
    return evaluate(pair.source, pair.quantized, tokens=tokens, text_label="random", **settings)


def refused(pair: Pair) -> QuantizationError:
    with pytest.raises(QuantizationError) as caught:
        measured(pair)
    assert "\n" not in caught.value.message
    return caught.value


def test_a_full_device_is_a_problem_of_the_machine(pairs: Callable[[str], Pair]) -> None:
    def full(stage: str, done: float, total: float, unit: str) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    with pytest.raises(EnvironmentProblem, match="source: cpu does not have enough memory to measure it"):
        measured(pairs("llama"), progress=full)


def brute_force(source: Any, quantized: Any, targets: Any) -> tuple[Any, Any, Any, Any]:
    """KL, both NLLs and agreement per prediction, in float64: logits [predictions, vocab]."""
    logs = []
    for logits in (source, quantized):
        shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
        logs.append(shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True)))
    rows = np.arange(len(targets))
    kl = (np.exp(logs[0]) * (logs[0] - logs[1])).sum(axis=-1)
    agrees = source.argmax(axis=-1) == quantized.argmax(axis=-1)
    return kl, -logs[0][rows, targets], -logs[1][rows, targets], agrees


def all_logits(folder: Path, tokens: Tensor) -> Any:
    """[blocks * (seq_len - 1), vocab] of a whole ordinary model folder."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        return model(tokens).logits[:, :-1].flatten(0, 1).numpy()


def assert_equals_brute_force(pair: Pair, tokens: Tensor) -> Report:
    report = measured(pair, tokens)
    kl, nll_source, nll_quantized, agrees = brute_force(
        all_logits(pair.source, tokens), all_logits(pair.restored, tokens), tokens[:, 1:].flatten().numpy()
    )
    assert report.kl_mean == pytest.approx(kl.mean(), rel=1e-3)
    assert report.kl_p99 == pytest.approx(np.quantile(kl, 0.99), rel=1e-3)
    assert report.perplexity_source == pytest.approx(math.exp(nll_source.mean()), rel=1e-4)
    assert report.perplexity_quantized == pytest.approx(math.exp(nll_quantized.mean()), rel=1e-4)
    assert report.top1_agreement == agrees.mean()
    return report


@pytest.mark.parametrize("scale", [0.1, 1.0, 30.0])
def test_figures_per_token_equal_brute_force(scale: float) -> None:
    generator = torch.Generator().manual_seed(3)
    source = scale * torch.randn(50, 300, generator=generator)
    quantized = source + 0.1 * scale * torch.randn(50, 300, generator=generator)
    targets = torch.randint(0, 300, (50,), generator=generator)
    figures = token_figures(source, quantized, targets)
    kl, nll_source, nll_quantized, agrees = brute_force(source.numpy(), quantized.numpy(), targets.numpy())
    np.testing.assert_allclose(figures.kl, kl, rtol=1e-3, atol=1e-6)
    np.testing.assert_allclose(figures.nll_source, nll_source, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(figures.nll_quantized, nll_quantized, rtol=1e-5, atol=1e-5)
    assert figures.agrees.tolist() == agrees.tolist()


def test_figures_of_extreme_models() -> None:
    logits = torch.randn(20, 50)
    same = token_figures(logits, logits, torch.zeros(20, dtype=torch.int64))
    assert same.kl.max() == 0
    assert same.agrees.all()
    uniform = token_figures(torch.zeros(4, 50), torch.zeros(4, 50), torch.arange(4))
    assert perplexity(uniform.nll_source) == pytest.approx(50, rel=1e-6)
    assert perplexity(torch.full((3,), 1e4)) == math.inf


@pytest.mark.parametrize("count", [1, 2, 99, 1000])
def test_percentile_is_numpys(count: int) -> None:
    values = torch.rand(count, generator=torch.Generator().manual_seed(count))
    assert percentile(values, 0.99) == pytest.approx(float(np.quantile(values.double().numpy(), 0.99)))


@pytest.mark.parametrize("model_type", sorted(MODELS))
def test_a_report_equals_brute_force_on_dequantized_weights(pairs: Callable[[str], Pair], model_type: str) -> None:
    report = assert_equals_brute_force(pairs(model_type), TOKENS)
    assert report.kl_mean > 0.001
    assert (report.tokens, report.predictions) == (320, 320 - len(TOKENS))
    numbers = b"".join(int(token).to_bytes(8, "little") for token in TOKENS.flatten())
    assert (report.text_sha256, report.text_label) == (sha256(numbers).hexdigest(), "random")


def test_the_reference_for_engines_equals_brute_force_on_the_first_blocks(pairs: Callable[[str], Pair]) -> None:
    pair, found = pairs("llama"), list[Reference]()
    tokens = TOKENS.repeat(8, 1)  # of 80 blocks of 32 tokens, 64 are 2,048 tokens
    measured(pair, tokens, on_artifact=lambda states: found.append(make_reference(states, [[1, 2]])))
    [reference] = found
    logits = all_logits(pair.restored, tokens[:64])
    targets = tokens[:64, 1:].flatten().numpy()
    _, _, nll, _ = brute_force(logits, logits, targets)
    assert (len(reference.blocks), reference.prompts) == (64, ((1, 2),))
    assert reference.blocks[3] == tuple(tokens[3].tolist())
    np.testing.assert_allclose(np.array(reference.log_probs).flatten(), -nll, rtol=1e-3, atol=1e-4)
    assert np.mean(np.array(reference.likeliest).flatten() == logits.argmax(axis=-1)) > 0.99  # but for ties
    ordered = np.sort(logits, axis=-1)
    margins = ordered[:, -1] - ordered[:, -2]
    np.testing.assert_allclose(np.array(reference.margins).flatten(), margins, atol=1e-3)


def test_figures_of_each_text_are_those_of_its_blocks_alone(pairs: Callable[[str], Pair]) -> None:
    texts = (EvaluationText(label="prose", blocks=7), EvaluationText(label="chats", blocks=3))
    report = measured(pairs("llama"), texts=texts)
    alone = [measured(pairs("llama"), tokens) for tokens in (TOKENS[:7], TOKENS[7:])]
    for found, one, text in zip(report.sources, alone, texts, strict=True):
        assert (found.label, found.predictions) == (text.label, one.predictions)
        for name in ("perplexity_source", "perplexity_quantized", "kl_mean", "top1_agreement", "kl_mean_rounding"):
            assert getattr(found, name) == pytest.approx(getattr(one, name), rel=1e-4)
        assert found.sha256 == one.text_sha256
    assert report == replace(measured(pairs("llama")), sources=report.sources, duration_s=report.duration_s)


def test_kl_by_position_is_the_mean_over_parts_of_the_blocks(pairs: Callable[[str], Pair]) -> None:
    """31 predictions in 16 parts: all but the last are of two."""
    pair, texts = (
        pairs("llama"),
        (EvaluationText(label="prose", blocks=4), EvaluationText(label="chats", blocks=6)),
    )
    found = measured(pair, texts=texts)
    assert found.seq_len == 32
    source, quantized = (all_logits(folder, TOKENS) for folder in (pair.source, pair.restored))
    kl = brute_force(source, quantized, TOKENS[:, 1:].flatten().numpy())[0].reshape(10, 31)
    for text, rows in zip(found.sources, (kl[:4], kl[4:]), strict=True):
        by_position = rows.mean(axis=0)
        expected = [*by_position[:30].reshape(15, 2).mean(axis=1), by_position[30]]
        assert text.kl_by_position == pytest.approx(expected, rel=1e-3)


# --- plain rounding -----------------------------------------------------------------------------------------


def coarser(tensors: dict[str, Tensor]) -> None:
    for name in tensors:
        if name.endswith("scales"):
            tensors[name] *= 1.5


@pytest.mark.parametrize("model_type", sorted(MODELS))
def test_plain_rounding_is_measured_whatever_the_artifact_is(
    pairs: Callable[[str], Pair], tmp_path: Path, model_type: str
) -> None:
    """The pairs are rounded plainly, by code that is not ours."""
    exact, worse = pairs(model_type), copy_of(pairs(model_type), tmp_path)
    change_tensors(worse.quantized, coarser)
    one, other = measured(exact), measured(worse)
    assert one.kl_mean_rounding == pytest.approx(one.kl_mean, rel=1e-3)
    assert other.kl_mean_rounding == one.kl_mean_rounding
    assert other.kl_mean > 1.2 * one.kl_mean


def test_linears_that_the_artifact_does_not_pack_are_not_rounded_either(copied: Pair) -> None:
    source = load_file(copied.source / "model.safetensors")

    def unpack(tensors: dict[str, Tensor]) -> None:
        for name in [name for name in tensors if name.endswith(".qweight")]:
            linear = name.removesuffix(".qweight")
            for part in ("qweight", "qzeros", "scales"):
                del tensors[f"{linear}.{part}"]
            tensors[f"{linear}.weight"] = source[f"{linear}.weight"]

    change_tensors(copied.quantized, unpack)
    found = measured(copied)
    assert (found.kl_mean, found.kl_mean_rounding) == (0.0, 0.0)


def test_where_plain_rounding_is_impossible_the_artifact_is_measured_all_the_same(copied: Pair) -> None:
    """A weight that is too large for a float16 scale, as if scaling had made it small."""

    def enlarge(tensors: dict[str, Tensor]) -> None:
        tensors[f"{UP}.weight"] = tensors[f"{UP}.weight"].float()
        tensors[f"{UP}.weight"][:, 0] = 2e6

    change_tensors(copied.source, enlarge)
    texts = (EvaluationText(label="prose", blocks=10),)
    calls: list[int] = []
    found = measured(copied, texts=texts, progress=lambda what, done, total, unit: calls.append(total - done))
    assert found.kl_mean > 0
    assert (found.kl_mean_rounding, found.sources[0].kl_mean_rounding) == (None, None)
    assert calls[-1] == 0


def test_sizes_and_bits_are_those_of_the_files(pairs: Callable[[str], Pair]) -> None:
    pair = pairs("qwen3")
    report = measured(pair)
    source, artifact = (load_file(path / "model.safetensors") for path in (pair.source, pair.quantized))
    # 4 bits, and per group of 32 a float16 scale and a 4-bit zero.
    assert report.bits_per_weight == 4 + 20 / 32
    bits = 8 * sum(tensor.nbytes for tensor in artifact.values())
    assert report.bits_per_weight_file == bits / sum(tensor.numel() for tensor in source.values())
    assert report.size_source_bytes == (pair.source / "model.safetensors").stat().st_size
    assert report.size_quantized_bytes == (pair.quantized / "model.safetensors").stat().st_size


def test_a_tied_output_that_is_stored_counts_once(pairs: Callable[[str], Pair], tmp_path: Path) -> None:
    pair = pairs("qwen3")
    plain, copy = measured(pair), copy_of(pair, tmp_path)
    for folder in (copy.source, copy.quantized):
        change_tensors(folder, lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"].clone()}))
    stored = measured(copy)
    assert stored.kl_mean == plain.kl_mean
    embeddings, source = VOCABULARY * 64, load_file(pair.source / "model.safetensors")
    parameters = sum(tensor.numel() for tensor in source.values())
    assert stored.bits_per_weight_file == pytest.approx(plain.bits_per_weight_file + 16 * embeddings / parameters)


def test_batch_size_changes_no_figure(pairs: Callable[[str], Pair], monkeypatch: pytest.MonkeyPatch) -> None:
    together = measured(pairs("llama"))
    monkeypatch.setattr("bot.evaluate.metrics.LOGITS_AT_ONCE", 1)
    one_by_one = measured(pairs("llama"))
    assert one_by_one.kl_mean == pytest.approx(together.kl_mean, rel=1e-4)
    assert one_by_one.perplexity_quantized == pytest.approx(together.perplexity_quantized, rel=1e-5)


def test_progress_counts_every_layer_of_three_models_and_the_logits_of_two(pairs: Callable[[str], Pair]) -> None:
    calls: list[tuple[str, int, int, str]] = []
    measured(pairs("llama"), progress=lambda *call: calls.append(call))
    # Two layers of source, artifact and plain rounding, and two batches for each of the latter.
    assert calls == [("evaluate", step, 10, "steps") for step in range(1, 11)]


UP = "model.layers.1.mlp.up_proj"


@pytest.mark.parametrize(
    ("change", "name"),
    [
        (lambda tensors: tensors.pop("model.norm.weight"), "model.norm.weight"),
        (lambda tensors: tensors.pop(f"{UP}.qzeros"), f"{UP}.qzeros"),
        (lambda tensors: tensors.update(extra=torch.zeros(1)), "extra"),
        (lambda tensors: tensors.update({"model.norm.weight": torch.ones(32).half()}), "model.norm.weight"),
    ],
    ids=["missing", "missing part", "extra", "other shape"],
)
def test_bad_tensors_are_named(copied: Pair, change: Callable[[dict[str, Tensor]], object], name: str) -> None:
    change_tensors(copied.quantized, change)
    assert name in refused(copied).message


def test_damaged_artifact_is_an_error_of_quantizing_not_of_upstream(copied: Pair) -> None:
    path = copied.quantized / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-10])
    assert refused(copied).message.startswith("artifact: ")
    (copied.quantized / "config.json").unlink()
    assert "config.json" in refused(copied).message


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda config: config.pop("quantization_config"), "no quantization_config"),
        (lambda config: config["quantization_config"].update(bits=8), "bits is 8, not 4"),
        (lambda config: config["quantization_config"].update(quant_method="gptq"), "quant_method is 'gptq'"),
        (lambda config: config["quantization_config"].update(group_size=64), "instead of"),
        (lambda config: config["quantization_config"].update(group_size=-1), "group_size is -1"),
        (lambda config: config.update(dtype="float32"), "dtype 'float32' is neither"),
        (lambda config: config.update(dtype=["float16"]), "dtype ['float16'] is neither"),
        (lambda config: config.update(dtype={"text": "float16"}), "is neither float16 nor bfloat16"),
    ],
)
def test_misleading_config_fails(copied: Pair, change: Callable[[dict[str, Any]], object], expected: str) -> None:
    change_config(copied.quantized, change)
    assert expected in refused(copied).message


def test_code_in_the_source_does_not_run_unless_that_is_allowed(copied: Pair, tmp_path: Path) -> None:
    witness = tmp_path / "was-run"
    (copied.source / "own.py").write_text(f"open({str(witness)!r}, 'w')\n", encoding="utf-8")
    own = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnModel"}
    change_config(copied.source, lambda config: config.update(model_type="own", auto_map=own))
    with pytest.raises(UnsupportedModelError, match="custom code"):
        measured(copied)
    assert not witness.exists()


@pytest.mark.parametrize(("folder", "what"), [("source", "source model"), ("quantized", "artifact")])
def test_logits_that_are_not_finite_are_an_error_that_says_whose(copied: Pair, folder: str, what: str) -> None:
    def break_embedding(tensors: dict[str, Tensor]) -> None:
        tensors["model.embed_tokens.weight"][TOKENS[3, 9]] = float("nan")

    change_tensors(getattr(copied, folder), break_embedding)
    assert refused(copied).message.startswith(f"{what}: logits are not finite in blocks")


def test_a_trained_model_in_shards_loses_by_plain_rounding_what_brute_force_says(tmp_path: Path) -> None:
    pair = quantized_pair(ASSETS / "llama-tiny", tmp_path)
    asked = Evaluation(tokens=8 * 64)
    tokens, _ = evaluation_tokens(asked, tokenizer_folder=pair.source, trust_remote_code=False, seq_len=64)
    report = assert_equals_brute_force(pair, tokens)
    assert 1 < report.perplexity_source < report.perplexity_quantized < 200
