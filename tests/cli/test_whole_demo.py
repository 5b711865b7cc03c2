"""`make demo`, the first thing that people run."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_whole_demo_succeeds_and_shows_its_steps(tmp_path: Path) -> None:
    """The demo checks its own steps; this checks what it prints."""
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
        "The model card on the Hub",
        "An hour later, nothing is new",
        "upstream changed: model.safetensors",
        "small files changed upstream: generation_config.json",
        "Anyone can verify a published repo",
        "Every step did what it says",
        "awq-bot hub --root demo/hub",
        "http://127.0.0.1:8765/quantized/qwen3-tiny-awq",
    )
    assert [step for step in steps if step not in shown] == []
    assert "# qwen3-tiny" in (tmp_path / "demo" / "card.md").read_text()
    assert {path.name for path in tmp_path.iterdir()} == {"demo"}
