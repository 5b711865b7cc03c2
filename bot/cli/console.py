"""What the verbs share: two consoles, their options, and what each of them looks at first."""

from __future__ import annotations

import logging
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from bot.cli import terminal
from bot.errors import EnvironmentProblem
from bot.hub.session import Hub
from bot.jobs.stages import JobContext

out = Console(highlight=False)
err = Console(stderr=True, highlight=False)
log = logging.getLogger("awq_bot")
child_options: list[str] = []
HUB_PORT = 8765  # of the local Hub
# What tells that an extra is installed, by the names that are imported.
EXTRAS = {
    "hub": ("starlette", "uvicorn", "jwt", "markdown_it"),
    "quantize": ("torch", "transformers", "awq", "safetensors", "matplotlib"),
}

WatchlistOption = Annotated[Path, typer.Option("--watchlist", help="The list of models to watch.")]
WorkOption = Annotated[Path, typer.Option("--work", help="Where jobs keep their files; a disk with room.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the result as JSON, for programs.")]
JobOption = Annotated[Path, typer.Option("--job", help="The folder of one job, as `run` made it below --work.")]
MaybeJobOption = Annotated[
    Path | None, typer.Option("--job", help="The folder of one job, as `run` made it below --work.")
]
DryRunOption = Annotated[bool, typer.Option("--dry-run", help="Do everything but write to the Hub.")]


def job_context(work: Path, files: Path, bars: terminal.Bars) -> JobContext:
    return JobContext(
        hub=Hub.from_environment(), work=work, files=files, progress=bars, child_options=tuple(child_options)
    )


def problem_of(error: OSError) -> EnvironmentProblem:
    """A file or a line that failed where nothing better is known of it. Where it came up goes to the log."""
    log.info("%s", error, exc_info=error)
    said = error.strerror or next(iter(str(error).splitlines()), type(error).__name__)
    return EnvironmentProblem(
        f"{error.filename}: {said}" if error.filename else said,
        hint="Check the path, its disk and who may use it; `awq-bot --verbose VERB` shows where it came up.",
    )


def needs_extra(extra: str) -> None:
    for module in EXTRAS[extra]:
        if find_spec(module) is None:
            hint = f"In a checkout of awq-bot: pip install -c constraints.txt '.[{extra}]'"
            raise EnvironmentProblem(f"{module} is not installed", hint=hint)


def print_raw(text: str) -> None:
    sys.stdout.write(text.rstrip("\n") + "\n")
