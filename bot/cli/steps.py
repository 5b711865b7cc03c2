"""One step of a workflow: how its verb speaks to the runner and to people, and how one leg of a job is run.

Like `actions`, whose verbs it serves, it prints and exits.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Literal

import typer
from rich.console import Console
from rich.markup import escape
from typer.exceptions import TyperException

from bot.checkpoint.repo_files import CARD
from bot.cli import terminal
from bot.errors import BotError, EnvironmentProblem
from bot.github.attempts import tried_content
from bot.github.environment import Actions, Commands, Level, redacted
from bot.github.results import store_result
from bot.github.summaries import code_name, error_page, job_page
from bot.hub.session import DEFAULT_ENDPOINT, Hub
from bot.jobs.folder import JobDir
from bot.jobs.pipeline import Outcome
from bot.records import Job, JobResult
from bot.watch.watchlist import InvalidWatchlistError

FAULT_HINT = "A fault of the bot: report it with the job's log."

out = Console(highlight=False)
err = Console(stderr=True, highlight=False)


class Step:
    """One verb's voice: to the runner, to the step's page, and to whoever reads the log.

    An error that a person can act on is annotated, put on the page, and ends the process with its code.
    """

    def __init__(self, failed: str) -> None:
        self.actions = Actions.from_environment()
        self._commands = Commands(self.actions)
        self._failed = failed

    def __enter__(self) -> Step:
        _obey(self._commands.opening())
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> None:
        problem = error if isinstance(error, BotError) else self._fault(error)
        if problem is not None:
            self.fail(problem)
            self.page(error_page(self._failed, causes(problem)))
        _obey(self._commands.closing())
        if problem is not None:
            raise typer.Exit(problem.exit_code) from None

    def _fault(self, error: BaseException | None) -> BotError | None:
        """What only a developer can mend. Its trace is printed here, while what it quotes commands nothing."""
        if not isinstance(error, Exception) or isinstance(error, (typer.Exit, typer.Abort, TyperException)):
            return None
        err.print(escape(redacted("".join(traceback.format_exception(error)))), soft_wrap=True)
        return BotError(f"unexpected {type(error).__name__}: {error}", hint=FAULT_HINT)

    def fail(self, error: BotError) -> None:
        err.print(redacted(terminal.error_text(error)), soft_wrap=True)
        if isinstance(error, InvalidWatchlistError):
            for item in error.mistakes:
                self.annotate("error", _said(item.message, item.hint), file=item.file, line=item.line)
        else:
            title = f"{self._failed}: {code_name(error.exit_code)}"
            self.annotate("error", _said(error.message, error.hint), title=title)

    def annotate(self, level: Level, message: str, *, title: str = "", file: str = "", line: int = 0) -> None:
        if level != "error":
            err.print(f"[yellow]{level}:[/] {escape(redacted(message))}", soft_wrap=True)
        _obey(self._commands.annotation(level, message, title=title, file=file, line=line))

    def page(self, markdown: str) -> None:
        self.actions.add_summary(markdown)

    def outputs(self, values: dict[str, object]) -> None:
        self.actions.set_outputs(values)


def _obey(lines: Iterable[str]) -> None:
    """Lines for the runner. Written at once, so that they come between what children print."""
    for line in lines:
        print(line, flush=True)  # noqa: T201


def _said(message: str, hint: str) -> str:
    return f"{message}\n{hint}" if hint else message


def causes(error: BotError) -> list[tuple[str, str]]:
    if isinstance(error, InvalidWatchlistError):
        return [(str(item), item.hint) for item in error.mistakes]
    return [(error.message, error.hint)]


def run_leg(
    step: Step, stage: str, job: Job, work: Callable[[], Outcome], *, results: Path, folder: Path
) -> Outcome:
    """One leg of a job in `folder`, with its end written down whatever it is. Exits with the error's code."""
    outcome = _outcome(stage, job, work, results)
    result = _result(job, stage, outcome)
    store_result(results, result)
    card = _card(folder) if result.status == "quantized" else ""
    step.page(job_page(job, result, endpoint=_endpoint(), card=card))
    out.print(terminal.outcome_table([outcome], prepared=stage == "quantize"))
    if outcome.error is not None:
        step.fail(outcome.error)
        raise typer.Exit(outcome.error.exit_code)
    return outcome


def _outcome(stage: str, job: Job, work: Callable[[], Outcome], results: Path) -> Outcome:
    try:
        return work()
    except BotError as error:
        return Outcome(job=job, error=error)
    except Exception as error:
        text = f"{job.entry.repo_id}: unexpected {type(error).__name__}: {error}"
        fault = BotError(text, hint=FAULT_HINT)
        store_result(results, _result(job, stage, Outcome(job=job, error=fault)))
        raise


def _result(job: Job, stage: str, outcome: Outcome) -> JobResult:
    error, publication = outcome.error, outcome.publication
    status: Literal["quantized", "published", "unchanged", "failed"]
    if error is not None:
        status = "failed"
    elif publication is None:
        status = "quantized"
    else:
        status = "published" if publication.new else "unchanged"
    return JobResult(
        job_id=job.job_id,
        target=job.entry.target,
        repo_id=job.entry.repo_id,
        content=tried_content(job),
        stage=stage,
        status=status,
        exit_code=error.exit_code if error is not None else 0,
        message=redacted(error.message) if error is not None else "",
        hint=error.hint if error is not None else "",
        report=outcome.report,
        publication=publication,
        duration_s=outcome.duration_s,
    )


def _card(folder: Path) -> str:
    path = JobDir(folder).card / CARD
    return path.read_text(encoding="utf-8") if path.is_file() else ""


def _endpoint() -> str:
    try:
        return Hub.from_environment().endpoint
    except EnvironmentProblem:
        return DEFAULT_ENDPOINT
