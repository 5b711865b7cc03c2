"""Which reports pass, and the reasons for those that do not."""

from dataclasses import replace
from math import inf, nan
from typing import Any

import pytest

from bot.evaluate.gate import judge
from bot.records import SourceFigures, Thresholds
from tests.support.factories import expert_tokens, report, source_figures

GOOD = report(perplexity_source=10.0, perplexity_quantized=10.5, kl_mean=0.02, kl_p99=0.3, top1_agreement=0.93)
KL = "mean KL divergence {} nats is above max_kl 0.1"
TOP1 = "top-1 agreement {} is below min_top1 0.85"
PERPLEXITY = "perplexity {} against 10 of the source is above max_perplexity_ratio 1.1"


@pytest.mark.parametrize(
    ("changes", "reasons"),
    [
        ({}, []),
        ({"kl_mean": 0.10, "top1_agreement": 0.85, "perplexity_quantized": 11.0}, []),
        ({"kl_mean": 0.0, "top1_agreement": 1.0, "perplexity_quantized": 9.0, "kl_p99": 50.0}, []),
        ({"kl_mean": 0.1523}, [KL.format(0.1523)]),
        ({"top1_agreement": 0.8499}, [TOP1.format(0.8499)]),
        ({"perplexity_quantized": 11.01}, [PERPLEXITY.format(11.01)]),
        (
            {"kl_mean": 2.0, "top1_agreement": 0.1, "perplexity_quantized": 99.0},
            [KL.format(2), TOP1.format(0.1), PERPLEXITY.format(99)],
        ),
        ({"kl_p99": nan}, ["99th percentile of KL divergence is nan, not a finite number"]),
        ({"bits_per_weight": nan}, ["bits per weight is nan, not a finite number"]),
        ({"kl_mean": nan}, ["mean KL divergence is nan, not a finite number"]),
        ({"top1_agreement": nan}, ["top-1 agreement is nan, not a finite number"]),
        ({"perplexity_source": inf}, ["source perplexity is inf, not a finite number"]),
    ],
)
def test_each_failing_threshold_gives_one_reason(changes: dict[str, Any], reasons: list[str]) -> None:
    verdict = judge(replace(GOOD, **changes), Thresholds(max_kl=0.10, min_top1=0.85, max_perplexity_ratio=1.10))
    assert list(verdict.reasons) == reasons
    assert verdict.passed == (not reasons)


UNSEEN = "{} of 128 experts of layer {} saw no calibration token, a share of {}, which is above max_unseen_experts"


@pytest.mark.parametrize(
    ("unseen", "threshold", "reasons"),
    [
        ((), 0.0, []),
        ((0, 0), 0.0, []),
        ((6, 6), 0.05, []),
        ((64,), 0.5, []),
        ((3,), 0.0, [UNSEEN.format(3, 0, 0.02344) + " 0"]),
        ((6, 7), 0.05, [UNSEEN.format(7, 1, 0.05469) + " 0.05"]),
        ((7, 9), 0.05, [UNSEEN.format(9, 1, 0.07031) + " 0.05, and so is the share of 1 other layer"]),
        ((8, 7, 0, 7), 0.05, [UNSEEN.format(8, 0, 0.0625) + " 0.05, and so is the share of 2 other layers"]),
        ((128,), 1.0, []),
    ],
)
def test_experts_without_a_token_are_counted_by_layer(
    unseen: tuple[int, ...], threshold: float, reasons: list[str]
) -> None:
    experts = tuple(expert_tokens(layer, unseen=count) for layer, count in enumerate(unseen))
    verdict = judge(replace(GOOD, experts=experts), Thresholds(max_unseen_experts=threshold))
    assert list(verdict.reasons) == reasons


def test_a_layer_without_experts_is_no_reason() -> None:
    """Records from another machine may say anything."""
    assert judge(replace(GOOD, experts=(expert_tokens(experts=0),)), Thresholds()).passed


WORSE = source_figures("chats", kl_mean=0.2, perplexity_quantized=16.2)


@pytest.mark.parametrize(
    ("sources", "reasons"),
    [
        ([source_figures("prose"), source_figures("chats")], []),
        ([source_figures("prose"), WORSE], ["on chats: " + KL.format(0.2)]),
        (
            [WORSE, source_figures("prose", top1_agreement=0.5)],
            ["on chats: " + KL.format(0.2), "on prose: " + TOP1.format(0.5)],
        ),
        (
            [source_figures("prose"), source_figures("chats", kl_mean=nan)],
            ["on chats: mean KL divergence is nan, not a finite number"],
        ),
        ([WORSE], []),
    ],
    ids=["both pass", "one misses", "both miss", "not finite", "one alone is the whole"],
)
def test_of_several_sources_each_has_to_pass_and_is_named(
    sources: list[SourceFigures], reasons: list[str]
) -> None:
    assert list(judge(replace(GOOD, sources=tuple(sources)), Thresholds()).reasons) == reasons


def test_values_that_are_not_finite_fail_however_much_is_allowed() -> None:
    loose = Thresholds(max_kl=inf, min_top1=0, max_perplexity_ratio=inf)
    verdict = judge(replace(GOOD, perplexity_quantized=inf), loose)
    assert verdict.reasons == ("quantized perplexity is inf, not a finite number",)
    assert not judge(replace(GOOD, perplexity_source=0.0), Thresholds()).passed
