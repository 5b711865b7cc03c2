"""Report x Thresholds -> Verdict: whether an artifact may be published. Pure, and no torch."""

from __future__ import annotations

from math import isfinite

from bot.records import Report, Thresholds, Verdict


def judge(report: Report, thresholds: Thresholds) -> Verdict:
    """Every threshold is judged, so that one look shows all that is wrong; equal to a threshold passes.

    A figure that is not finite fails, whichever threshold it belongs to.
    """
    reasons = (*_not_finite(report), *_beyond(report, thresholds))
    return Verdict(passed=not reasons, reasons=reasons)


def _not_finite(report: Report) -> tuple[str, ...]:
    figures = {
        "source perplexity": report.perplexity_source,
        "quantized perplexity": report.perplexity_quantized,
        "mean KL divergence": report.kl_mean,
        "99th percentile of KL divergence": report.kl_p99,
        "top-1 agreement": report.top1_agreement,
        "bits per weight": report.bits_per_weight,
        "bits per weight of the file": report.bits_per_weight_file,
    }
    return tuple(
        f"{name} is {value}, not a finite number" for name, value in figures.items() if not isfinite(value)
    )


def _beyond(report: Report, thresholds: Thresholds) -> tuple[str, ...]:
    """Comparisons with NaN are false, so each asks for what is beyond; NaN was reported before."""
    reasons = []
    if report.kl_mean > thresholds.max_kl:
        reasons.append(f"mean KL divergence {report.kl_mean:.4g} nats is above max_kl {thresholds.max_kl:g}")
    if report.top1_agreement < thresholds.min_top1:
        reasons.append(f"top-1 agreement {report.top1_agreement:.4g} is below min_top1 {thresholds.min_top1:g}")
    # As a product, so that a source perplexity of zero divides nothing.
    if report.perplexity_quantized > thresholds.max_perplexity_ratio * report.perplexity_source:
        reasons.append(
            f"perplexity {report.perplexity_quantized:.4g} against {report.perplexity_source:.4g} of the source "
            f"is above max_perplexity_ratio {thresholds.max_perplexity_ratio:g}"
        )
    return tuple(reasons)
