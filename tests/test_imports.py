"""The command line starts without what only its child processes, its server or GitHub's API need."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# Extras of pyproject.toml, which may not be installed, and packages that take seconds to import.
OPTIONAL = (
    *("torch", "transformers", "awq", "accelerate", "datasets", "safetensors", "tokenizers", "matplotlib"),
    *("numpy", "github", "starlette", "uvicorn", "jwt"),
)
SHOW_ALL_HELP = """
import contextlib, io, sys
import typer
from bot.cli.app import app

def show_help(command, name):
    with contextlib.redirect_stdout(io.StringIO()) as shown:
        command.main(["--help"], prog_name=name, standalone_mode=False)
    assert "Usage" in shown.getvalue(), name
    for verb in getattr(command, "commands", {}).values():
        show_help(verb, f"{name} {verb.name}")

show_help(typer.main.get_command(app), "awq-bot")
"""


def printed_by(code: str) -> str:
    """Standard output of the code in a fresh interpreter."""
    command, environment = [sys.executable, "-c", f"import sys\n{code}"], os.environ | {"COLUMNS": "80"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(
    ("modules", "not_loaded"),
    [
        ("bot.cli.app", OPTIONAL),
        # It takes seconds, and evaluating must not depend on it.
        ("bot.jobs.tasks, bot.evaluate.metrics, bot.evaluate.plots", ("awq",)),
    ],
)
def test_importing_the_command_line_and_the_tasks_loads_nothing_too_much(
    modules: str, not_loaded: tuple[str, ...]
) -> None:
    assert printed_by(f"import {modules}; print({{*{not_loaded}}} & {{*sys.modules}})") == "set()\n"


def test_help_of_every_verb_and_check_work_without_optional_packages() -> None:
    absent = f"sys.modules.update(dict.fromkeys({OPTIONAL}))"  # importing one raises ImportError
    check = "sys.argv = ['awq-bot', 'check', '--watchlist', 'watchlist.yaml']\nbot.cli.app.main()"
    assert "watchlist.yaml" in printed_by(f"{absent}\n{SHOW_ALL_HELP}\nimport bot.cli.app\n{check}")
