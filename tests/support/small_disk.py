"""A small file system for a test, where mounting is permitted."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def mounted(folder: Path, *, options: str = "size=1m") -> Iterator[Path]:
    """An empty tmpfs at folder. Skips the test where mounting is not permitted.

    In CI it is permitted, to root or through sudo, and a test that is skipped there would never run at all. A
    person's sudo is not ours to use.
    """
    in_ci = bool(os.environ.get("CI"))
    become_root = ["sudo", "-n"] if in_ci and os.geteuid() != 0 else []
    folder.mkdir()
    command = [*become_root, "mount", "-t", "tmpfs", "-o", f"mode=777,{options}", "tmpfs", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        (pytest.fail if in_ci else pytest.skip)(f"mounting is not permitted here: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run([*become_root, "umount", str(folder)], check=True)
