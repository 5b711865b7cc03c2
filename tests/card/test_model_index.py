"""`model-index`, read as the Hub's own client reads it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard, ModelCardData
from huggingface_hub.repocard_data import model_index_to_eval_results

from bot.card.model_card import render_card
from bot.card.model_index import model_index
from bot.localhub.card import check_card, front_matter
from bot.records import Evaluation, Provenance, TextSource
from tests.support.factories import SHA, job, provenance, report, source_figures, task_figures

TEXTS = (
    TextSource(dataset="lab/texts", revision=SHA, split="test"),
    TextSource(file="texts/more.txt", sha256="0"),
)
LABELS = tuple(source.evaluation_label for source in TEXTS)


def made() -> Provenance:
    figures = (source_figures(LABELS[0]), source_figures(LABELS[1], kl_mean=0.02468, top1_agreement=0.90006))
    return provenance(evaluation_asked=Evaluation(sources=TEXTS), report=report(sources=figures))


def test_the_hubs_client_reads_every_figure_with_its_text() -> None:
    data = ModelCard(render_card(job(), made(), chat=True)).data
    assert isinstance(data, ModelCardData)
    results = data.eval_results
    assert results is not None
    assert data.model_name == "Tiny-awq"
    assert [
        (each.dataset_type, each.dataset_split, each.dataset_revision, each.metric_type, each.metric_value)
        for each in results
    ] == [
        ("lab/texts", "test", SHA, "perplexity", 16.4),
        ("lab/texts", "test", SHA, "perplexity", 16.0),
        ("lab/texts", "test", SHA, "kl_divergence", 0.0123),
        ("lab/texts", "test", SHA, "top1_agreement", 0.9345),
        ("texts/more.txt", None, None, "perplexity", 16.4),
        ("texts/more.txt", None, None, "perplexity", 16.0),
        ("texts/more.txt", None, None, "kl_divergence", 0.0247),
        ("texts/more.txt", None, None, "top1_agreement", 0.9001),
    ]
    assert [each.dataset_name for each in results[::4]] == [*LABELS]


def test_a_report_of_one_text_without_figures_by_text_has_one_result() -> None:
    name, results = model_index_to_eval_results(model_index(provenance(), name="Tiny-awq"))
    assert (name, len(results)) == ("Tiny-awq", 4)
    assert {each.dataset_name for each in results} == {"builtin:stdlib (test split)"}


def test_tasks_of_lm_eval_are_results_too() -> None:
    figures = replace(made().report, tasks=(task_figures(),))
    _, results = model_index_to_eval_results(model_index(replace(made(), report=figures), name="x"))
    assert [(each.dataset_type, each.metric_type, each.metric_value) for each in results[-2:]] == [
        ("arc_easy", "acc", 0.72),
        ("arc_easy", "acc", 0.75),
    ]


@pytest.mark.parametrize(
    "broken",
    [
        "text",
        [{"results": []}],
        [{"name": "x", "results": [{"task": {"type": "text-generation"}, "metrics": []}]}],
        [{"name": "x", "results": [None]}],
        [
            {
                "name": "x",
                "results": [{"task": {"type": "t"}, "dataset": {"type": "d", "name": "d"}, "metrics": [{}]}],
            }
        ],
    ],
)
def test_the_local_hub_refuses_what_the_client_could_not_read(broken: object) -> None:
    errors, _ = check_card(f"---\n{yaml.safe_dump({'model-index': broken})}---\n")
    assert len(errors) == 1
    assert "model-index" in errors[0]


def test_the_golden_cards_are_accepted() -> None:
    for path in (Path(__file__).parent / "golden").glob("*.md"):
        metadata = front_matter(path.read_text())
        assert metadata is not None
        model_index_to_eval_results(metadata["model-index"])
        assert check_card(path.read_text()) == ([], [])
