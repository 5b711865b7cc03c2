"""The folder of the demo: each demo replaces what an earlier one made, and nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest

from bot.cli.demo import clear_folder
from bot.errors import WatchlistError


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


def test_an_empty_folder_is_used(tmp_path: Path) -> None:
    clear_folder(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [".awq-bot-demo"]
