"""The figures of the real model: ratios, the last line, and the table in README.md. Pure, but for writing it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.benchmarks.run import Run

README = Path(__file__).with_name("README.md")
BEGIN, END = "<!-- written by `make bench-real` -->\n", "<!-- end -->\n"
NOT_MEASURED = "**Not measured yet.**\n"
OURS = "awq+gptq"
PEERS = ("autoawq", "rounding")
TEXT = "stdlib"  # what the methods that are compared are calibrated on
NAMES = {"autoawq": "AutoAWQ 0.2.9, fixed", "rounding": "rounding to nearest", OURS: "ours, `awq+gptq`"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Loss:
    """On one text, as a Report has it."""

    text: str
    kl: float
    top1: float
    perplexity: float
    perplexity_source: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """calibration: the name of the text; rounding uses none."""

    method: str
    calibration: str
    run: Run
    losses: tuple[Loss, ...]

    @property
    def kl(self) -> dict[str, float]:
        return {loss.text: loss.kl for loss in self.losses}


def figures_of(measured: Sequence[Measured]) -> dict[str, float | None]:
    """kl_ratio, peer_ratio: the largest over all texts of our KL divergence over AutoAWQ's, and over that of the
    best peer on each text. top1: our smallest. speedup: AutoAWQ's CPU seconds over ours. None: not measured.
    """
    by_method = {one.method: one for one in measured if one.calibration == TEXT}
    ours, autoawq = by_method[OURS], by_method.get("autoawq")
    peers = [by_method[name].kl for name in PEERS if name in by_method]
    return {
        "kl_ratio": max(kl / autoawq.kl[text] for text, kl in ours.kl.items()) if autoawq else None,
        "peer_ratio": max(kl / min(peer[text] for peer in peers) for text, kl in ours.kl.items()),
        "top1": min(loss.top1 for loss in ours.losses),
        "speedup": autoawq.run.cpu_s / ours.run.cpu_s if autoawq else None,
    }


def last_line(figures: Mapping[str, float | None]) -> str:
    shown = {name: figures[name] for name in ("kl_ratio", "peer_ratio", "top1")}
    return "real: " + " ".join(
        f"{name}=-" if value is None else f"{name}={value:.3f}" for name, value in shown.items()
    )


def write_table(results: Mapping[str, Any]) -> None:
    """Between the marks in README.md."""
    before, rest = README.read_text().split(BEGIN)
    README.write_text(before + BEGIN + table(results) + END + rest.split(END, 1)[1])


def table(results: Mapping[str, Any]) -> str:
    """results: an entry of results/real.json. For each text: KL divergence in nats, top-1, perplexity."""
    measured = results["measured"]
    texts = list(results["texts"])
    rows = [
        ["method", "calibration", "CPU seconds", "peak memory, MiB", *texts],
        ["---"] * (4 + len(texts)),
        ["source", "", "", "", *(f"{loss['perplexity_source']:.2f}" for loss in measured[0]["losses"])],
        *(_row(one) for one in measured),
    ]
    ours, *others = (_kl(measured, method) for method in (OURS, *PEERS))
    rows += [
        [
            f"KL, ours ÷ {NAMES[peer].split(',')[0]}",
            "",
            "",
            "",
            *(f"{ours[text] / kl[text]:.3f}" for text in texts),
        ]
        for peer, kl in zip(PEERS, others, strict=True)
        if kl
    ]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def _row(one: Mapping[str, Any]) -> list[str]:
    run = one["run"]
    losses = [f"{loss['kl']:.4f}, {loss['top1']:.1%}, {loss['perplexity']:.2f}" for loss in one["losses"]]
    memory = (run["rss_peak"] - run["rss_imports"]) / 2**20
    calibration = "none" if one["method"] == "rounding" else f"`{one['calibration']}`"
    return [NAMES[one["method"]], calibration, f"{run['cpu_s']:,.0f}", f"{memory:,.0f}", *losses]


def _kl(measured: Sequence[Mapping[str, Any]], method: str) -> dict[str, float]:
    found = [one for one in measured if one["method"] == method and one["calibration"] == TEXT]
    return {loss["text"]: loss["kl"] for one in found for loss in one["losses"]}
