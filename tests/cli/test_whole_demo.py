"""What `make demo` types: the first thing that people run."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_demo_happens_from_end_to_end_and_shows_it(tmp_path: Path) -> None:
    """It fails itself when a step did not do what it says; here it is what people see."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    done = subprocess.run(
        [sys.executable, "-m", "bot", "demo", "--root", "demo"],
        env=kept | {"COLUMNS": "120"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    shown = " ".join(done.stdout.split())
    steps = (
        "A lab releases two models",
        "$ awq-bot check",
        "first release",
        "What people see on the Hub",
        "nothing new",
        "upstream changed: model.safetensors",
        "small files changed upstream: generation_config.json",
        "Anybody can hold what is published against its provenance",
        "All of it happened",
    )
    assert [step for step in steps if step not in shown] == []
    assert "# qwen3-tiny" in (tmp_path / "demo" / "card.md").read_text()
    assert {path.name for path in tmp_path.iterdir()} == {"demo"}
