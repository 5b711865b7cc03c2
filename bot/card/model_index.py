"""The figures of a report as `model-index`, from which the Hub shows evaluation results beside the card.

https://huggingface.co/docs/hub/model-cards#evaluation-results
"""

from __future__ import annotations

import re
from typing import Any

from bot.records import Provenance, Report, SourceFigures, TaskFigures, TextSource
from bot.text import one_line

_NO_ID = re.compile(r"[^A-Za-z0-9._/-]+")
_TASK = {"type": "text-generation", "name": "Text generation"}
# Digits behind the point, as in the card's tables or one more.
_PERPLEXITY, _SHARE, _KL, _VALUE = 3, 4, 4, 4


def model_index(provenance: Provenance, *, name: str) -> list[dict[str, Any]]:
    """name: of the published repo, without its owner. One result for each text and each task."""
    results = [*_texts(provenance), *(_task(figures) for figures in provenance.report.tasks)]
    return [{"name": name, "results": results}]


def _texts(provenance: Provenance) -> list[dict[str, Any]]:
    report = provenance.report
    measured: list[tuple[str, SourceFigures | Report]] = [(source.label, source) for source in report.sources]
    asked = {source.evaluation_label: source for source in provenance.evaluation_asked.sources}
    return [
        {
            "task": _TASK.copy(),
            "dataset": _dataset(label, asked.get(label)),
            "metrics": [
                _metric("perplexity", "Perplexity", figures.perplexity_quantized, _PERPLEXITY),
                _metric("perplexity", "Perplexity of the source", figures.perplexity_source, _PERPLEXITY),
                _metric("kl_divergence", "KL divergence to the source in nats, mean", figures.kl_mean, _KL),
                _metric("top1_agreement", "Same most likely next token", figures.top1_agreement, _SHARE),
            ],
        }
        for label, figures in measured or [(report.text_label, report)]
    ]


def _dataset(label: str, source: TextSource | None) -> dict[str, str]:
    """The Hub's key `type` is the id of a data set, or a name for another text: two results must differ in it."""
    named = {"type": _NO_ID.sub("-", one_line(label)).strip("-") or "text", "name": one_line(label)}
    if source is not None and source.dataset:
        named |= {"type": source.dataset, "revision": source.revision or "", "split": source.split or ""}
    return {key: value for key, value in named.items() if value}


def _task(figures: TaskFigures) -> dict[str, Any]:
    kind, task = one_line(figures.metric), one_line(figures.task)
    return {
        "task": _TASK.copy(),
        "dataset": {"type": task, "name": f"{task} (lm-eval)"},
        "metrics": [
            _metric(kind, kind, figures.quantized, _VALUE),
            _metric(kind, f"{kind} of the source", figures.source, _VALUE),
        ],
    }


def _metric(kind: str, name: str, value: float, digits: int) -> dict[str, Any]:
    return {"type": kind, "value": round(value, digits), "name": name}
