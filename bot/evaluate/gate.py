"""The quality gate: whether a report is within the thresholds. Pure, and no torch."""

from __future__ import annotations

from math import isfinite

from bot.records import Report, SourceFigures, Thresholds, Verdict


def judge(report: Report, thresholds: Thresholds) -> Verdict:
    """Checks every threshold, so that the reasons are complete; a figure equal to its threshold passes.

    A figure that is not finite fails. Of several sources each has to pass too, and is named if it does not.
    """
    reasons = [*_not_finite(report), *_beyond(report, thresholds), *_unseen(report, thresholds)]
    for source in report.sources if len(report.sources) > 1 else ():
        missed = (*_not_finite(source), *_beyond(source, thresholds))
        reasons += [f"on {source.label}: {reason}" for reason in missed]
    return Verdict(passed=not reasons, reasons=tuple(reasons))


_FIGURES = {
    "perplexity_source": "source perplexity",
    "perplexity_quantized": "quantized perplexity",
    "kl_mean": "mean KL divergence",
    "kl_p99": "99th percentile of KL divergence",
    "top1_agreement": "top-1 agreement",
    "bits_per_weight": "bits per weight",
    "bits_per_weight_file": "bits per weight of the file",
}


def _not_finite(report: Report | SourceFigures) -> tuple[str, ...]:
    figures = {name: getattr(report, key) for key, name in _FIGURES.items() if hasattr(report, key)}
    return tuple(
        f"{name} is {value}, not a finite number" for name, value in figures.items() if not isfinite(value)
    )


def _beyond(report: Report | SourceFigures, thresholds: Thresholds) -> tuple[str, ...]:
    """Comparisons with NaN are false, so NaN, which _not_finite reports, adds no second reason."""
    reasons = []
    if report.kl_mean > thresholds.max_kl:
        reasons.append(f"mean KL divergence {report.kl_mean:.4g} nats is above max_kl {thresholds.max_kl:g}")
    if report.top1_agreement < thresholds.min_top1:
        reasons.append(f"top-1 agreement {report.top1_agreement:.4g} is below min_top1 {thresholds.min_top1:g}")
    # A product, to avoid a division by a source perplexity of zero.
    if report.perplexity_quantized > thresholds.max_perplexity_ratio * report.perplexity_source:
        reasons.append(
            f"perplexity {report.perplexity_quantized:.4g} against {report.perplexity_source:.4g} of the source "
            f"is above max_perplexity_ratio {thresholds.max_perplexity_ratio:g}"
        )
    return tuple(reasons)


def _unseen(report: Report, thresholds: Thresholds) -> tuple[str, ...]:
    """One reason for all layers, naming the worst: most layers of a mixture have the same cause."""
    beyond = [
        layer for layer in report.experts if layer.unseen > thresholds.max_unseen_experts * max(1, layer.experts)
    ]
    if not beyond:
        return ()
    worst = max(beyond, key=lambda layer: layer.unseen / max(1, layer.experts))
    others = len(beyond) - 1
    more = f", and so is the share of {others} other layer{'s' if others > 1 else ''}" if others else ""
    return (
        f"{worst.unseen} of {worst.experts} experts of layer {worst.layer} saw no calibration token, a share of "
        f"{worst.unseen / max(1, worst.experts):.4g}, which is above max_unseen_experts "
        f"{thresholds.max_unseen_experts:g}{more}",
    )
