"""A Python with nothing in it, as GitHub's machines have one, and how pip finds its packages from here."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

# How pip finds its packages here is this machine's business.
PIP = {
    name: value for name, value in os.environ.items() if name.startswith("PIP_") or name.lower().endswith("_proxy")
}


def fresh_python(folder: Path) -> str:
    """The PATH of a machine that has it."""
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    return f"{folder / 'bin'}:/usr/bin:/bin"
