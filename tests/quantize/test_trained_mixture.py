"""The trained mixture of the test models, quantized and compared with plain rounding of the same linears."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from bot.evaluate.metrics import evaluate, token_figures
from bot.records import QuantizedModel, Report, no_progress
from tests.support import tiny_models
from tests.support.canary import GROUP_SIZE, quantize_into

ASSETS = Path(__file__).parents[1] / "assets"
SOURCE = ASSETS / "qwen3-moe-tiny"


@dataclass(frozen=True, slots=True, kw_only=True)
class Made:
    out: Path
    record: QuantizedModel
    report: Report
    tokens: Tensor


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp("mixture")
    blocks = load_file(ASSETS / "tokens" / "qwen3-moe-tiny.safetensors")
    record = quantize_into(folder, SOURCE, blocks=blocks["dev"][:16].long())
    tokens = blocks["test"][:8].long()
    report = evaluate(
        SOURCE, folder / "out", tokens=tokens, text_label="test", trust_remote_code=False, progress=no_progress
    )
    return Made(out=folder / "out", record=record, report=report, tokens=tokens)


def test_every_expert_is_packed_and_no_router(made: Made) -> None:
    packed = tiny_models.packed_linears(made.out)
    experts = {name for name in packed if ".mlp.experts." in name}
    assert len(experts) == 3 * 8 * 3  # layers, experts, projections
    assert not {name for name in packed if name.endswith("mlp.gate")}
    routers = [f"model.layers.{layer}.mlp.gate" for layer in range(3)]
    assert [name for name in made.record.modules_to_not_convert if name.endswith("mlp.gate")] == routers


def test_it_loses_a_third_of_what_plain_rounding_loses_or_less(made: Made) -> None:
    packed = tiny_models.packed_linears(made.out)
    plain = {
        name: tiny_models.rounded(value, GROUP_SIZE) if name.removesuffix(".weight") in packed else value
        for name, value in tiny_models.tensors_of(SOURCE).items()
    }
    lost = kl_to_source(made, plain)
    assert made.report.kl_mean <= 0.35 * lost
    assert made.report.kl_mean_rounding == pytest.approx(lost, rel=1e-3)


def test_transformers_computes_the_same_from_the_artifact(made: Made) -> None:
    kl = kl_to_source(made, tiny_models.dequantized(made.out))
    assert made.report.kl_mean == pytest.approx(kl, rel=1e-3)


def test_calibration_reaches_every_expert(made: Made) -> None:
    assert [tokens.experts for tokens in made.record.experts] == [8, 8, 8]
    assert all(tokens.unseen == 0 < tokens.lowest < tokens.median for tokens in made.record.experts)


def kl_to_source(made: Made, weights: dict[str, Tensor]) -> float:
    """Mean KL divergence of a model with these weights, as transformers runs it, in nats."""
    expected = tiny_models.logits_of(SOURCE, made.tokens)
    got = tiny_models.logits_of(SOURCE, made.tokens, weights=weights)
    figures = [
        token_figures(expected[row, :-1], got[row, :-1], block[1:]) for row, block in enumerate(made.tokens)
    ]
    return float(torch.cat([each.kl for each in figures]).double().mean())
