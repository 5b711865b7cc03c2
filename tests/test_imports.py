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
    *(
        "torch",
        "transformers",
        "awq",
        "accelerate",
        "datasets",
        "safetensors",
        "tokenizers",
        "matplotlib",
        "numpy",
    ),
    *("github", "starlette", "uvicorn", "jwt"),
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


def run_without_optional(code: str) -> str:
    """The code in a fresh interpreter where importing any optional package raises ImportError; its stdout."""
    absent = f"import sys; sys.modules.update(dict.fromkeys({OPTIONAL}))\n"
    command = [sys.executable, "-c", absent + code]
    environment = os.environ | {"COLUMNS": "80"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(
    ("modules", "absent"),
    [
        ("bot.cli.app", OPTIONAL),
        # AutoAWQ takes seconds to import, and evaluating must not depend on it.
        ("bot.jobs.tasks, bot.evaluate.metrics, bot.evaluate.plots", ("awq",)),
        ("bot.calibration.sources, bot.evaluate.gate", ("torch", "transformers", "matplotlib")),
        ("bot.evaluate.plots", ("matplotlib",)),
    ],
)
def test_importing_loads_no_package_that_is_not_needed(modules: str, absent: tuple[str, ...]) -> None:
    code = f"import sys; import {modules}; print([name for name in {absent} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_help_of_every_verb_and_check_work_without_optional_packages() -> None:
    check = "sys.argv = ['awq-bot', 'check', '--watchlist', 'watchlist.yaml']\nbot.cli.app.main()"
    assert "watchlist.yaml" in run_without_optional(f"{SHOW_ALL_HELP}\nimport bot.cli.app\n{check}")
