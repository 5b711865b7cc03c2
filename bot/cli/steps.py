"""One step of a workflow: log, annotations, summary and exit code; and how one stage of a job is run."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import typer
from typer.exceptions import TyperException

from bot.checkpoint.repo_files import CARD
from bot.cli import terminal
from bot.cli.console import bug, err, out
from bot.cli.streams import formatted, write_unchanged
from bot.errors import BotError, EnvironmentProblem
from bot.github.environment import Actions, Commands, Level
from bot.github.results import store_result
from bot.github.summaries import code_name, error_page, job_page
from bot.hub.environment import DEFAULT_ENDPOINT
from bot.hub.session import Hub
from bot.jobs.folder import JobDir
from bot.records import Job, JobResult, Status, job_result
from bot.watch.watchlist import InvalidWatchlistError


class Step:
    """Output of one verb: the log, annotations, and the step's summary. Use as a context manager.

    An error becomes an annotation and a section of the summary, and its code the exit code.
    """

    def __init__(self, failed: str) -> None:
        self.actions = Actions.from_environment()
        self._commands = Commands(self.actions)
        self._failed = failed

    def __enter__(self) -> Step:
        _print(self._commands.opening())
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> None:
        problem = error if isinstance(error, BotError) else self._bug(error)
        if problem is not None:
            self.fail(problem)
            self.page(error_page(self._failed, causes(problem)))
        _print(self._commands.closing())
        if problem is not None:
            raise typer.Exit(problem.exit_code) from None

    def _bug(self, error: BaseException | None) -> BotError | None:
        """An unexpected error. Its traceback is printed here, while the runner reads no workflow commands."""
        if not isinstance(error, Exception) or isinstance(error, (typer.Exit, typer.Abort, TyperException)):
            return None
        err.print(formatted(error), markup=False, soft_wrap=True)
        return bug(error)

    def fail(self, error: BotError) -> None:
        err.print(terminal.error_text(error), soft_wrap=True)
        if isinstance(error, InvalidWatchlistError):
            for item in error.mistakes:
                self.annotate("error", _text(item.message, item.hint), file=item.file, line=item.line)
        else:
            title = f"{self._failed}: {code_name(error.exit_code)}"
            self.annotate("error", _text(error.message, error.hint), title=title)

    def annotate(self, level: Level, message: str, *, title: str = "", file: str = "", line: int = 0) -> None:
        if level != "error":
            err.print(f"[yellow]{level}:[/] {terminal.shown(message)}", soft_wrap=True)
        _print(self._commands.annotation(level, message, title=title, file=file, line=line))

    def page(self, markdown: str) -> None:
        self.actions.add_summary(markdown)

    def outputs(self, values: dict[str, object]) -> None:
        self.actions.set_outputs(values)


def _print(lines: Iterable[str]) -> None:
    """Workflow commands, which the runner reads from plain stdout."""
    for line in lines:
        write_unchanged(f"{line}\n")


def _text(message: str, hint: str) -> str:
    return f"{message}\n{hint}" if hint else message


def causes(error: BotError) -> list[tuple[str, str]]:
    if isinstance(error, InvalidWatchlistError):
        return [(str(item), item.hint) for item in error.mistakes]
    return [(error.message, error.hint)]


def run_stage(
    step: Step, stage: str, job: Job, work: Callable[[], JobResult], *, results: Path, folder: Path
) -> JobResult:
    """One stage of a job in `folder`; its result is stored however it ends. Exits with the error's code."""
    result = store_result(results, _result(stage, job, work, results))
    card = _card(folder) if result.status is Status.READY else ""
    step.page(job_page(job, result, endpoint=_endpoint(), card=card))
    out.print(terminal.results_table([result]))
    if result.error is not None:
        step.fail(result.error)
        raise typer.Exit(result.error.exit_code)
    return result


def _result(stage: str, job: Job, work: Callable[[], JobResult], results: Path) -> JobResult:
    try:
        return work()
    except BotError as error:
        return job_result(job, stage=stage, status=Status.FAILED, error=error)
    except Exception as error:
        store_result(results, job_result(job, stage=stage, status=Status.FAILED, error=bug(error, job)))
        raise


def _card(folder: Path) -> str:
    path = JobDir(folder).card / CARD
    return path.read_text(encoding="utf-8") if path.is_file() else ""


def _endpoint() -> str:
    try:
        return Hub.from_environment().endpoint
    except EnvironmentProblem:
        return DEFAULT_ENDPOINT
