"""Every reader of what comes from elsewhere, with inputs that a fuzzer finds. What it once found is in corpus/."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.trust.fuzz import CORPUS, Target, targets

ROOT = Path(__file__).parents[2]
SECONDS = 20
FEWEST_RUNS = 100  # on a busy machine
NAMES = (
    "watchlist",
    "provenance",
    "header",
    "card",
    "config",
    "published_card",
    "index",
    "tokenizer",
    "rate_limit",
)


@pytest.fixture(scope="module")
def readers() -> dict[str, Target]:
    return targets()


def test_each_reader_has_inputs_to_begin_with(readers: dict[str, Target]) -> None:
    assert tuple(readers) == NAMES
    assert {path.name for path in CORPUS.iterdir()} == set(NAMES)
    assert sum(path.stat().st_size for path in CORPUS.rglob("*") if path.is_file()) < 20_000


@pytest.mark.parametrize("path", sorted(CORPUS.glob("*/*")), ids=lambda path: f"{path.parent.name}/{path.name}")
def test_what_was_found_is_read_or_refused(readers: dict[str, Target], path: Path) -> None:
    readers[path.parent.name](path.read_bytes())


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("atheris") is None, reason="atheris has no wheel for this machine")
@pytest.mark.parametrize("name", NAMES)
def test_a_fuzzer_finds_nothing_that_is_not_read_or_refused_by_name(name: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.trust.fuzz", name, str(SECONDS), str(tmp_path)]
    done = subprocess.run(
        command, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-4000:]
    runs = re.search(r"Done (\d+) runs", done.stderr)
    assert runs is not None, done.stderr[-4000:]
    assert int(runs[1]) > FEWEST_RUNS
