"""What the tables for a terminal say of a mixture of experts."""

from __future__ import annotations

from rich.console import Console

from bot.cli import terminal
from bot.records import Status, job_result
from tests.support.factories import expert_tokens, job, report

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
