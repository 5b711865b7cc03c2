"""Planning and publishing stay light: the heavy stages live in processes of their own."""

from __future__ import annotations

import subprocess
import sys

HEAVY = ("torch", "transformers", "awq", "datasets", "github")


def test_importing_the_cli_loads_nothing_heavy() -> None:
    code = f"import bot.cli, sys; print([name for name in {HEAVY} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
