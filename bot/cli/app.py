"""The command line: what all verbs have in common, and how they end.

Only this package prints and exits: a verb reads the environment, calls one stage and shows the result.
"""

from __future__ import annotations

import inspect
import logging
import os
import re
import signal
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import FrameType
from typing import Annotated, Any, NoReturn

import typer
from typer.exceptions import TyperException

import bot
from bot.cli import actions, setup, stages, status, terminal, tools, watch
from bot.cli.console import Panel, child_options, err, help_without_verb, log, out, problem_of
from bot.cli.streams import prepare_streams
from bot.errors import BotError, WatchlistError
from bot.jobs.confined import PARENT
from bot.jobs.environment import forbid_core_dumps
from bot.watch.watchlist import InvalidWatchlistError

_HELP = ["-h", "--help"]
app = typer.Typer(
    name="awq-bot",
    invoke_without_command=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": _HELP, "max_content_width": 100},
)
for group in (setup, watch, status, stages, tools):
    app.add_typer(group.app)
app.add_typer(actions.app, rich_help_panel=Panel.TOOLS)
INTERRUPTED = 130


def main() -> None:
    """Run a verb; turn what went wrong into a message, a hint and an exit code."""
    prepare_streams()
    forbid_core_dumps()
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        code = command()(prog_name="awq-bot", standalone_mode=False)
    except InvalidWatchlistError as error:
        # As compilers print it, so that editors and terminals link each line to its place.
        err.print(error.message, markup=False, soft_wrap=True)
        code = error.exit_code
    except BotError as error:
        err.print(terminal.error_text(error), soft_wrap=True)
        code = error.exit_code
    except TyperException as error:
        misuse = _misuse(error)
        err.print(terminal.error_text(misuse), soft_wrap=True)
        code = misuse.exit_code
    except (KeyboardInterrupt, typer.Abort):
        code = INTERRUPTED
    except BrokenPipeError:
        # The reader of our output has closed it, and flushing the rest would fail again:
        # https://docs.python.org/3/library/signal.html#note-on-sigpipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 141
    except OSError as error:
        problem = problem_of(error)
        err.print(terminal.error_text(problem), soft_wrap=True)
        code = problem.exit_code
    if code == INTERRUPTED:
        if PARENT not in os.environ:  # Ctrl-C reaches a child process too, and its parent says it
            err.print("interrupted; to go on, run the same command again")
        sys.stdout.flush()
        # Threads may still wait for an answer from the network; the user should not wait for them.
        os._exit(INTERRUPTED)
    sys.exit(code)


def _misuse(error: Any) -> WatchlistError:
    """Arguments that a verb does not take. Of the parser's message, what pydantic adds to it is left out."""
    context = getattr(error, "ctx", None)
    hint = f"See `{context.command_path if context else 'awq-bot'} --help`."
    if context and context.parent and getattr(error, "option_name", None) in ("--verbose", "-v", "--log-file"):
        hint = f"{error.option_name} comes before the command: awq-bot {error.option_name} ..."
    return WatchlistError(error.format_message().replace("Value error, ", ""), hint=hint)


@cache
def command() -> Any:
    """All verbs. The lines of their help are broken for the terminal, not where the docstrings are."""
    group: Any = typer.main.get_command(app)
    for verb in group.commands.values():
        verb.rich_help_panel = verb.rich_help_panel or Panel.STAGE
    for verb in _verbs(group):
        verb.help = re.sub(r"(?<!\n)\n(?!\n)", " ", inspect.cleandoc(verb.help or ""))
        for option in verb.get_params(typer.Context(verb, help_option_names=_HELP)):
            if getattr(option, "is_flag", False):
                option.metavar = ""  # not `<bool>`: it takes no value
    return group


def _verbs(command: Any) -> Iterator[Any]:
    yield command
    for verb in getattr(command, "commands", {}).values():
        yield from _verbs(verb)


def _interrupt(number: int, frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt


def _version(asked: bool) -> None:
    if asked:
        out.print(f"awq-bot {bot.__version__}")
        raise typer.Exit


@app.callback()
def options(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Verbose output.")] = False,
    log_file: Annotated[Path | None, typer.Option(help="Also write a log to this file.")] = None,
) -> None:
    """Watch models on the Hugging Face Hub and publish measured AWQ INT4 versions of each new release.

    Try it with [bold]awq-bot demo[/]. Then: [bold]awq-bot init[/], [bold]awq-bot add REPO_ID[/],
    [bold]awq-bot plan[/], [bold]awq-bot run[/].

    Environment: HF_TOKEN reads and HF_WRITE_TOKEN publishes. HF_ENDPOINT names another Hub. Trusted Publishers
    use HF_OIDC_RESOURCE, and HF_CREATE_TOKEN for [bold]create-target[/].
    """
    context.obj = child_options
    help_without_verb(context)
    log.setLevel(logging.DEBUG if verbose else logging.INFO)
    log.propagate = False
    for handler in tuple(log.handlers):  # of an earlier call in this process
        log.removeHandler(handler)
        handler.close()
    log.addHandler(terminal.LogLines(err, logging.DEBUG if verbose else logging.WARNING))
    if log_file is not None:
        log.addHandler(_log_file_handler(log_file))
        child_options.extend(("--log-file", str(log_file.resolve())))
    if verbose:
        child_options.append("--verbose")


def _log_file_handler(path: Path) -> logging.Handler:
    try:
        handler = logging.FileHandler(path, encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        raise WatchlistError(
            f"--log-file {path}: {error.strerror}", hint="Name a file, in a folder that is there."
        ) from None
    handler.setFormatter(terminal.Printable("%(asctime)s %(process)d %(levelname)s %(message)s"))
    return handler
