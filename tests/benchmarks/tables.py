"""The figures of the real model and of the peers: ratios, last lines, and tables in README.md."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.benchmarks.kept import Measured
from tests.benchmarks.methods import AUTOAWQ, METHODS, OURS, ROUNDING

README = Path(__file__).with_name("README.md")
PEERS = Path(__file__).parent / "results" / "peers.json"
NOT_MEASURED = "**Not measured yet.**\n"
Kl = dict[str, float]  # KL divergence by the name of the text
# The packages that a method's versions are named by, in its label.
_PACKAGES = {"autoawq": "autoawq", "gptqmodel": "gptqmodel", "llm-": "llmcompressor", "auto-": "auto-round"}


def marks(target: str) -> tuple[str, str]:
    """What a table of README.md begins and ends with."""
    return f"<!-- written by `make {target}` -->\n", f"<!-- end of `make {target}` -->\n"


def write_table(target: str, table: str) -> None:
    """Between the marks in README.md."""
    begin, end = marks(target)
    before, rest = README.read_text().split(begin)
    README.write_text(before + begin + table + end + rest.split(end, 1)[1])


def peers_on(model_sha256: str, calibration_sha256: str, texts: Mapping[str, Mapping[str, Any]]) -> dict[str, Kl]:
    """What results/peers.json has of this model, calibrated and measured on these tokens, by method."""
    results = json.loads(PEERS.read_text()) if PEERS.exists() else {}
    found: dict[str, Kl] = {}
    for entry in results.values():
        for model in entry["models"].values():
            same = (model["model_sha256"], model["calibration"]["sha256"]) == (model_sha256, calibration_sha256)
            if same and {name: text["sha256"] for name, text in model["texts"].items()} == {
                name: text["sha256"] for name, text in texts.items()
            }:
                found |= {one["method"]: _kl(one) for one in model["measured"] if one["method"] != OURS.name}
    return found


def figures_of_real(
    measured: Sequence[Measured], peers: Mapping[str, Kl], *, calibration: str
) -> dict[str, float | None]:
    """kl_ratio, peer_ratio: the largest over all texts of our KL divergence over AutoAWQ's, and over that of the
    best peer on each text. top1: our smallest. speedup: AutoAWQ's CPU seconds over ours. None: not measured.

    peers: those that were measured elsewhere.
    """
    by_method = {one.method: one for one in measured if one.calibration == calibration}
    ours, autoawq = by_method.pop(OURS.name), by_method.get(AUTOAWQ.name)
    others = {**peers, **{name: one.kl for name, one in by_method.items()}}
    return {
        "kl_ratio": max(kl / autoawq.kl[text] for text, kl in ours.kl.items()) if autoawq else None,
        "peer_ratio": max(ratio for _, ratio in ratios_to_best(ours.kl, others).values()),
        "top1": min(loss.top1 for loss in ours.losses),
        "speedup": autoawq.run.cpu_s / ours.run.cpu_s if autoawq else None,
    }


def ratios_to_best(ours: Kl, others: Mapping[str, Kl]) -> dict[str, tuple[str, float]]:
    """For each text: who has the smallest KL divergence, and ours over it."""
    made = {}
    for text, kl in ours.items():
        best = min(others, key=lambda name: others[name][text])
        made[text] = (best, kl / others[best][text])
    return made


def last_line_of_real(figures: Mapping[str, float | None]) -> str:
    shown = {name: figures[name] for name in ("kl_ratio", "peer_ratio", "top1")}
    return "real: " + " ".join(
        f"{name}=-" if value is None else f"{name}={value:.3f}" for name, value in shown.items()
    )


def last_line_of_peers(models: Mapping[str, Mapping[str, Any]]) -> str:
    """best: whom our KL divergence is largest against, over all models and texts."""
    pairs = [pair for model in models.values() for pair in _against_best(model["measured"]).values()]
    best, ratio = max(pairs, key=lambda pair: pair[1])
    return f"peers: best={best} kl_ratio={ratio:.3f}"


def real_table(results: Mapping[str, Any]) -> str:
    """results: an entry of results/real.json. For each text: KL divergence in nats, top-1, perplexity."""
    texts = list(results["texts"])
    rows = [
        *_header(["method", "calibration", "CPU seconds", "peak memory, MiB", *texts]),
        ["source", "", "", "", *(f"{loss['perplexity_source']:.2f}" for loss in results["measured"][0]["losses"])],
        *([_label(one), _calibration(one), *_cost(one), *_losses(one)] for one in results["measured"]),
    ]
    by_method = {one["method"]: _kl(one) for one in results["measured"] if one["method"] != OURS.name}
    compared = (OURS.name, results["compared"])
    ours = next(_kl(one) for one in results["measured"] if (one["method"], one["calibration"]) == compared)
    for name in (AUTOAWQ.name, ROUNDING.name):
        if name in by_method:
            shares = [f"{kl / by_method[name][text]:.3f}" for text, kl in ours.items()]
            rows.append([f"KL, ours ÷ {METHODS[name].label.split(',')[0]}", "", "", "", *shares])
    return _shown(rows)


def peers_table(results: Mapping[str, Any]) -> str:
    """results: all of results/peers.json; a table for each model, of a quick run if there is no other."""
    entry = results.get("full") or results["quick"]
    return "\n".join(_model_table(name, model) for name, model in entry["models"].items())


def _model_table(name: str, model: Mapping[str, Any]) -> str:
    texts, calibration = list(model["texts"]), model["calibration"]
    rows = [
        *_header(["method", "bits per weight", "CPU seconds", "peak memory, MiB", *texts]),
        ["source", "", "", "", *(f"{loss['perplexity_source']:.2f}" for loss in model["measured"][0]["losses"])],
        *([_label(one), f"{one['bits_per_weight']:.2f}", *_cost(one), *_losses(one)] for one in model["measured"]),
        *([METHODS[one].label, "", "", "", f"not measured: {why}"] for one, why in model["failed"].items()),
    ]
    best = _against_best(model["measured"])
    rows.append(
        ["**KL, ours ÷ best peer**", "", "", "", *(f"**{ratio:.3f}** ({of})" for of, ratio in best.values())]
    )
    tokens = f"{calibration['blocks']} blocks of {calibration['seq_len']} tokens"
    return f"`{name}`, groups of {model['group_size']}, {tokens}:\n\n{_shown(rows)}"


def _against_best(measured: Sequence[Mapping[str, Any]]) -> dict[str, tuple[str, float]]:
    by_method = {one["method"]: _kl(one) for one in measured}
    return ratios_to_best(by_method.pop(OURS.name), by_method)


def _kl(one: Mapping[str, Any]) -> Kl:
    return {loss["text"]: loss["kl"] for loss in one["losses"]}


def _label(one: Mapping[str, Any]) -> str:
    name, label = one["method"], METHODS[one["method"]].label
    version = next(
        (one["versions"][package] for start, package in _PACKAGES.items() if name.startswith(start)), ""
    )
    first, *rest = label.split(", ")
    return ", ".join([f"{first} {version}".strip(), *rest])


def _calibration(one: Mapping[str, Any]) -> str:
    return "none" if one["method"] == ROUNDING.name else f"`{one['calibration']}`"


def _cost(one: Mapping[str, Any]) -> list[str]:
    run = one["run"]
    return [f"{run['cpu_s']:,.0f}", f"{(run['rss_peak'] - run['rss_imports']) / 2**20:,.0f}"]


def _losses(one: Mapping[str, Any]) -> list[str]:
    return [f"{loss['kl']:.4f}, {loss['top1']:.1%}, {loss['perplexity']:.2f}" for loss in one["losses"]]


def _header(names: list[str]) -> list[list[str]]:
    return [names, ["---"] * len(names)]


def _shown(rows: Sequence[Sequence[str]]) -> str:
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)
