"""Where the demo may play: its folder is made anew each time, and nobody else's is."""

from __future__ import annotations

from pathlib import Path

import pytest

from bot.cli.demo import clear_stage
from bot.errors import WatchlistError


def test_a_folder_that_no_demo_made_is_left_alone(tmp_path: Path) -> None:
    notes = tmp_path / "thesis" / "hub" / "notes.txt"
    notes.parent.mkdir(parents=True)
    notes.write_text("two years")
    with pytest.raises(WatchlistError, match="no demo made it") as caught:
        clear_stage(tmp_path / "thesis")
    assert "--root" in caught.value.hint
    assert notes.read_text() == "two years"


def test_a_file_is_no_place_for_a_demo(tmp_path: Path) -> None:
    (tmp_path / "demo").write_text("a file")
    with pytest.raises(WatchlistError, match="is a file"):
        clear_stage(tmp_path / "demo")
    assert (tmp_path / "demo").read_text() == "a file"


def test_an_earlier_demo_is_cleared_and_what_a_person_put_beside_it_stays(tmp_path: Path) -> None:
    root = tmp_path / "new" / "demo"
    clear_stage(root)
    (root / "work" / "job").mkdir(parents=True)
    (root / "watchlist.yaml").write_text("models: []")
    (root / "notes.txt").write_text("mine")
    clear_stage(root)
    assert {path.name for path in root.iterdir()} == {".awq-bot-demo", "notes.txt"}


def test_an_empty_folder_will_do(tmp_path: Path) -> None:
    clear_stage(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [".awq-bot-demo"]
