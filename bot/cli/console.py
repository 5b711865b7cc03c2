"""What the verbs share: two consoles, common options, and the panels of `--help`."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable
from dataclasses import replace
from enum import StrEnum
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import rich.console
import typer
from rich.segment import Segment

from bot.cli.progress import Bars
from bot.cli.streams import write_unchanged
from bot.errors import BotError, EnvironmentProblem, WatchlistError, reason_of
from bot.github.environment import Actions
from bot.hub.session import Hub
from bot.jobs.stages import JobContext
from bot.records import Job, to_json
from bot.redaction import redacted
from bot.text import printable, without_commands
from bot.watch.names import Reference, read_reference


class Console(rich.console.Console):
    """Prints upstream's text, too: escape sequences come from rich alone, no line is a command to a runner.

    And no secret: texts are redacted before they are laid out, and here once more.
    """

    def _render_buffer(self, buffer: Iterable[Segment]) -> str:
        # All output goes through here; no public method sees it line by line.
        safe = (part if part.control else Segment(printable(redacted(part.text)), part.style) for part in buffer)
        return without_commands(super()._render_buffer(safe))


out = Console(highlight=False)
err = Console(stderr=True, highlight=False)
log = logging.getLogger("awq_bot")
child_options: list[str] = []
HUB_PORT = 8765  # of the local Hub
# The modules by which an extra is known to be installed.
EXTRAS = {
    "hub": ("starlette", "uvicorn", "jwt", "markdown_it"),
    "quantize": ("torch", "transformers", "awq", "safetensors", "matplotlib"),
}

WatchlistOption = Annotated[Path, typer.Option("--watchlist", help="The list of models to watch.")]
OnlyOption = Annotated[str | None, typer.Option("--only", metavar="REPO_ID", help="Only this model.")]
WorkOption = Annotated[Path, typer.Option("--work", help="The folder for jobs, on a large disk.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]
_JOB_HELP = "A job's folder: a subfolder of run's --work."
JobOption = Annotated[Path, typer.Option("--job", help=_JOB_HELP)]
MaybeJobOption = Annotated[Path | None, typer.Option("--job", help=_JOB_HELP)]
IsolationOption = Annotated[
    bool,
    typer.Option(
        "--require-isolation", help="Refuse to read a model's files where child processes cannot be isolated."
    ),
]
FreshOption = Annotated[
    bool, typer.Option("--fresh", help="Read everything again, also what is remembered to be up to date.")
]
DryRunOption = Annotated[bool, typer.Option("--dry-run", help="Do everything but write to the Hub.")]


class Panel(StrEnum):
    """The groups of verbs in `--help`, in this order."""

    WATCHLIST = "Watchlist"
    RUN = "Run"
    STAGE = "One stage of a job"
    TOOLS = "Tools"


def job_context(work: Path, files: Path, bars: Bars, *, require_isolation: bool = False) -> JobContext:
    return JobContext(
        hub=replace(Hub.from_environment(), run=Actions.from_environment().run),
        work=work,
        files=files,
        progress=bars,
        child_options=tuple(child_options),
        require_isolation=require_isolation,
    )


def problem_of(error: OSError) -> EnvironmentProblem:
    """For an error of the operating system without a better explanation. Its traceback goes to the log."""
    log.info("%s", error, exc_info=error)
    said = error.strerror or reason_of(error)
    return EnvironmentProblem(
        f"{error.filename}: {said}" if error.filename else said,
        hint="Check the path, its disk and its permissions; `awq-bot --verbose VERB` shows the traceback.",
    )


def bug(error: BaseException, job: Job | None = None) -> BotError:
    """For an error that no code expects. job: what was being done."""
    about = f"{job.entry.repo_id}: " if job is not None else ""
    text = f"{about}unexpected {type(error).__name__}: {error}"
    return BotError(text, hint="This is a bug in awq-bot: please report it, with the log.")


def model_reference(text: str) -> Reference:
    """A model's repo id or URL, as a person typed or pasted it. Raises WatchlistError for anything else."""
    found = read_reference(text)
    if found is None or re.match(r"(?:https?://)?[^/]+/(?:datasets|spaces)/", text.strip()):
        raise WatchlistError(
            f"{text!r} is not a model's repo id", hint="A repo id is `owner/name`, as in the model's URL."
        )
    return found


def needs_extra(extra: str) -> None:
    for module in EXTRAS[extra]:
        if find_spec(module) is None:
            hint = f"In a checkout of awq-bot: pip install -c constraints.txt '.[{extra}]'"
            raise EnvironmentProblem(f"{module} is not installed", hint=hint)


def print_json(value: object) -> None:
    """Records for programs. What a terminal or a runner would act on is escaped; JSON means the same."""
    text = "".join(
        char if char.isprintable() or char == "\n" else _escaped(char) for char in redacted(to_json(value))
    )
    print_raw(text.replace("##[", f"##{_escaped('[')}"))


def _escaped(char: str) -> str:
    return re.sub("....", r"\\u\g<0>", char.encode("utf-16-be", "surrogatepass").hex())


def print_raw(text: str) -> None:
    write_unchanged(redacted(text.rstrip("\n")) + "\n")


def help_without_verb(context: typer.Context) -> None:
    """For the callback of a group of verbs: the group alone prints its help and ends with 0."""
    if context.invoked_subcommand is None:
        out.print(context.get_help(), markup=False)
        raise typer.Exit
