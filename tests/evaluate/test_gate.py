"""Which reports pass, and the reasons for those that do not."""

import subprocess
import sys
from dataclasses import replace
from math import inf, nan
from typing import Any

import pytest

from bot.evaluate.gate import judge
from bot.records import Report, Thresholds

GOOD = Report(
    perplexity_source=10.0,
    perplexity_quantized=10.5,
    kl_mean=0.02,
    kl_p99=0.3,
    top1_agreement=0.93,
    bits_per_weight=4.16,
    bits_per_weight_file=5.2,
    size_source_bytes=1000,
    size_quantized_bytes=330,
    tokens=32768,
    text_label="builtin:stdlib (test split)",
    text_sha256="00",
)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"kl_mean": 0.10},
        {"top1_agreement": 0.85},
        {"perplexity_quantized": 11.0},
        {"perplexity_quantized": 9.0},
        {"kl_mean": 0.0, "top1_agreement": 1.0},
        {"kl_p99": 50.0},
    ],
)
def test_a_report_within_its_thresholds_passes(changes: dict[str, Any]) -> None:
    verdict = judge(replace(GOOD, **changes), Thresholds(max_kl=0.10, min_top1=0.85, max_perplexity_ratio=1.10))
    assert verdict.passed
    assert verdict.reasons == ()


@pytest.mark.parametrize(
    ("changes", "reasons"),
    [
        ({"kl_mean": 0.1523}, ("mean KL divergence 0.1523 nats is above max_kl 0.1",)),
        ({"top1_agreement": 0.8499}, ("top-1 agreement 0.8499 is below min_top1 0.85",)),
        (
            {"perplexity_quantized": 11.01},
            ("perplexity 11.01 against 10 of the source is above max_perplexity_ratio 1.1",),
        ),
        (
            {"kl_mean": 2.0, "top1_agreement": 0.1, "perplexity_quantized": 99.0},
            (
                "mean KL divergence 2 nats is above max_kl 0.1",
                "top-1 agreement 0.1 is below min_top1 0.85",
                "perplexity 99 against 10 of the source is above max_perplexity_ratio 1.1",
            ),
        ),
        ({"kl_p99": nan}, ("99th percentile of KL divergence is nan, not a finite number",)),
        ({"bits_per_weight": nan}, ("bits per weight is nan, not a finite number",)),
        ({"kl_mean": nan}, ("mean KL divergence is nan, not a finite number",)),
        ({"top1_agreement": nan}, ("top-1 agreement is nan, not a finite number",)),
        ({"perplexity_source": inf}, ("source perplexity is inf, not a finite number",)),
    ],
)
def test_each_failing_threshold_gives_one_reason(changes: dict[str, Any], reasons: tuple[str, ...]) -> None:
    verdict = judge(replace(GOOD, **changes), Thresholds())
    assert not verdict.passed
    assert verdict.reasons == reasons


def test_values_that_are_not_finite_fail_however_much_is_allowed() -> None:
    loose = Thresholds(max_kl=inf, min_top1=0, max_perplexity_ratio=inf)
    verdict = judge(replace(GOOD, perplexity_quantized=inf), loose)
    assert verdict.reasons == ("quantized perplexity is inf, not a finite number",)
    assert not judge(replace(GOOD, perplexity_source=0.0), Thresholds()).passed


def test_the_gate_needs_no_torch() -> None:
    code = (
        "import sys, bot.evaluate.gate; sys.exit(bool({'torch', 'transformers', 'matplotlib'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
