"""The command line: what all verbs have in common, and how they end. They are in `verbs` and `actions`.

Nothing else prints or exits: they build adapters, call one stage, show what came of it.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import Annotated, NoReturn

import typer
from typer.exceptions import TyperException

import bot
from bot.cli import actions, stages, terminal, tools, watch
from bot.cli.console import child_options, err, log, out, problem_of
from bot.errors import BotError, WatchlistError
from bot.watch.watchlist import InvalidWatchlistError

app = typer.Typer(
    name="awq-bot",
    invoke_without_command=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)
for group in (watch, stages, tools, actions):
    app.add_typer(group.app)
INTERRUPTED = 130


def main() -> None:
    """Run a verb; turn what went wrong into a message, a hint and an exit code."""
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        code = app(standalone_mode=False)
    except InvalidWatchlistError as error:
        # As compilers print it, so that editors and terminals link each line to its place.
        err.print(error.message, markup=False, soft_wrap=True)
        code = error.exit_code
    except BotError as error:
        err.print(terminal.error_text(error), soft_wrap=True)
        code = error.exit_code
    except TyperException as error:
        misuse = WatchlistError(error.format_message(), hint="`awq-bot VERB --help` shows what there is to say.")
        err.print(terminal.error_text(misuse), soft_wrap=True)
        code = misuse.exit_code
    except (KeyboardInterrupt, typer.Abort):
        code = INTERRUPTED
    except BrokenPipeError:
        # The reader of our output went away; what is left to flush would fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 141
    except OSError as error:
        problem = problem_of(error)
        err.print(terminal.error_text(problem), soft_wrap=True)
        code = problem.exit_code
    if code == INTERRUPTED:
        err.print("interrupted; run it again and it goes on from here")
        sys.stdout.flush()
        # Threads may still wait for an answer from the network, and nobody should wait for them.
        os._exit(INTERRUPTED)
    sys.exit(code)


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
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Say more of what is done.")] = False,
    log_file: Annotated[Path | None, typer.Option(help="Also write a log with times to this file.")] = None,
) -> None:
    """Watches models on the Hugging Face Hub and publishes measured AWQ INT4 versions of each new release.

    Start with [bold]awq-bot demo[/], which shows the whole chain on this machine. Then write a watchlist and try
    [bold]awq-bot check[/], [bold]awq-bot plan[/], [bold]awq-bot run[/].

    Reads HF_ENDPOINT (which Hub), HF_TOKEN (to read), HF_WRITE_TOKEN (to publish), or HF_OIDC_RESOURCE (to publish
    with a workflow's identity) and HF_CREATE_TOKEN (to create targets for that).
    """
    context.obj = child_options
    if context.invoked_subcommand is None:
        out.print(context.get_help(), markup=False)
        raise typer.Exit
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
        handler = logging.FileHandler(path)
    except OSError as error:
        raise WatchlistError(
            f"--log-file {path}: {error.strerror}", hint="Name a file, in a folder that is there."
        ) from None
    handler.setFormatter(logging.Formatter("%(asctime)s %(process)d %(levelname)s %(message)s"))
    return handler
