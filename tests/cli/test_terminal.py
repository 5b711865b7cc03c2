"""What the tables for a terminal say."""

from __future__ import annotations

from typing import Any

from rich.console import Console

from bot.cli import terminal
from bot.records import SourceCount, Status, job_result
from tests.support.engines import served
from tests.support.factories import calibration_set, expert_tokens, job, report, source_figures, task_figures

EXPERTS = tuple(expert_tokens(layer) for layer in range(48))
LINE = "128 in 48 layers; calibration tokens per expert: lowest 12, median 4,096; each saw some"


def printed(table: object) -> str:
    console = Console(width=160)
    with console.capture() as capture:
        console.print(table)
    return capture.get()


def test_the_experts_of_a_mixture_have_one_line() -> None:
    measured = report(experts=EXPERTS)
    ready = job_result(job(), stage="quantize", status=Status.READY, report=measured)
    assert LINE in printed(terminal.report_table(measured))
    assert f"experts: {LINE}" in printed(terminal.results_table([ready]))
    assert terminal.experts_line(EXPERTS) == f"experts: {LINE}"


def test_other_models_have_none() -> None:
    assert "experts" not in printed(terminal.report_table(report()))
    assert terminal.experts_line(()) == ""


def test_what_was_measured_is_counted_in_predictions_where_they_are_known() -> None:
    assert "32,704 predicted tokens of" in printed(terminal.report_table(report(predictions=32_704)))
    assert "32,768 tokens of" in printed(terminal.report_table(report()))


def test_a_source_of_which_something_was_left_out_has_one_line() -> None:
    counts: dict[str, Any] = {"label": "chats.jsonl", "documents": 9, "tokens": 90, "share": 0.5}
    reasons = {"without text": 1200, "refused by the chat template": 3}
    left_out = SourceCount(**counts, rows_left_out=reasons, parts_left_out=2, replaced_characters=1)
    assert terminal.calibration_lines(calibration_set(sources=(SourceCount(**counts), left_out))) == (
        "chats.jsonl: rows left out: 3 refused by the chat template, 1,200 without text; "
        "parts other than text left out: 2; characters replaced by U+FFFD: 1",
    )


def test_a_text_that_the_model_does_not_know_is_said_in_both_tables() -> None:
    measured = report(sources=(source_figures("de.txt", perplexity_source=5000.0, documents_left_out=1),))
    said = "de.txt: 1 document that shares text with calibration left out; the source's own perplexity is 5,000:"
    assert said in printed(terminal.report_table(measured))
    ready = job_result(job(), stage="quantize", status=Status.READY, report=measured)
    assert said in printed(terminal.results_table([ready]))


def test_tasks_have_a_line_each_in_both_tables() -> None:
    measured = report(tasks=(task_figures(), task_figures("own", source=0.0)))
    ready = job_result(job(), stage="quantize", status=Status.READY, report=measured)
    for table in (terminal.report_table(measured), terminal.results_table([ready])):
        said = printed(table)
        assert "arc_easy: acc 0.7500 → 0.7200, recovery 96.0 %, 500 examples" in said
        assert "own: acc 0.0000 → 0.7200, 500 examples" in said


def test_each_engine_has_a_line() -> None:
    said = printed(terminal.report_table(report(served=(served(),))))
    close = "gptqmodel 7.6.0: 0.0081 nats from ours on average, 0.0546 at most"
    assert f"{close}; TorchAtenAwqLinear, 10.4 tokens/s on CPU" in said


def test_each_text_is_compared_with_plain_rounding() -> None:
    texts = (
        source_figures("prose.txt", kl_mean=0.02, kl_mean_rounding=0.05),
        source_figures("chats", kl_mean=0.03, kl_mean_rounding=0.02),
        source_figures("code.txt"),
    )
    table = printed(terminal.report_table(report(kl_mean=0.01, kl_mean_rounding=0.042, sources=texts)))
    assert "0.01000 nats per token (4.2 times closer to the source than plain rounding, 0.04200)" in table
    assert "prose.txt: KL 0.02000 (2.5 times closer to the source than plain rounding, 0.05000), top-1" in table
    assert "chats: KL 0.03000 (1.5 times farther from the source than plain rounding, 0.02000), top-1" in table
    assert "code.txt: KL 0.01230, top-1" in table
