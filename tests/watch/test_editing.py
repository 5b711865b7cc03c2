"""A new watchlist, and a model added to one that a person wrote."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from bot.watch.document import new_watchlist, with_model
from bot.watch.names import Reference, read_reference

ROOT = Path(__file__).parents[2]


def test_the_templates_watchlist_is_what_init_writes() -> None:
    assert (ROOT / "watchlist.yaml").read_text() == new_watchlist(ROOT)


TINY = Reference("lab/Tiny")


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("models: []\n", "models:\n  - lab/Tiny\n"),
        ("models: []  # none yet\npublish_to: me\n", "models:  # none yet\n  - lab/Tiny\npublish_to: me\n"),
        ("models: []", "models:\n  - lab/Tiny\n"),
        ("models: [a/b]\n", "models: [a/b, lab/Tiny]\n"),
        ("models: [\n  a/b,  # first\n]\n", "models: [\n  a/b, lab/Tiny,  # first\n]\n"),
        ("{publish_to: me, models: []}\n", "{publish_to: me, models: [lab/Tiny]}\n"),
        ("models:\n- a/b\n", "models:\n- a/b\n- lab/Tiny\n"),
        ("models:\n    - a/b", "models:\n    - a/b\n    - lab/Tiny\n"),
        ("models:\r\n  - a/b\r\n", "models:\r\n  - a/b\r\n  - lab/Tiny\r\n"),
    ],
)
def test_a_model_is_added_in_the_style_of_the_file(before: str, after: str) -> None:
    assert with_model(before, TINY) == after
    assert yaml.safe_load(after)["models"] == [*yaml.safe_load(before)["models"], "lab/Tiny"]


ONE_LINE = "  - a/b  # first\n"
SEVERAL_LINES = "  - repo_id: 'a/b'   # why\n    recipe: {bits: 4,\n             group_size: 64}   # small\n"
BLOCK_OF_TEXT = "  - repo_id: a/b\n    hold: |\n      waiting\n      for v2\n"


@pytest.mark.parametrize("last", [ONE_LINE, SEVERAL_LINES, BLOCK_OF_TEXT])
def test_every_other_character_stays_as_it_was(last: str) -> None:
    head, tail = "\ufeff# Ours.\nmodels:\n  # Small ones.\n", "  # the end\n\n# About us.\npublish_to:   'me'\n"
    assert with_model(head + last + tail, TINY) == f"{head}{last}  - lab/Tiny\n{tail}"


@pytest.mark.parametrize(
    ("revision", "shown"), [("v1", "v1"), ("1.10", "'1.10'"), ("2026-01-31", "'2026-01-31'"), ("no", "'no'")]
)
def test_a_revision_is_written_so_that_yaml_reads_it_as_text(revision: str, shown: str) -> None:
    text = with_model("models: []\n", Reference("lab/Tiny", revision))
    assert text == f"models:\n  - {{repo_id: lab/Tiny, revision: {shown}}}\n"


@pytest.mark.parametrize(
    ("pasted", "found"),
    [
        ("lab/Tiny", TINY),
        (" lab/Tiny/ ", TINY),
        ("lab/Tiny@main", TINY),
        ("lab/Tiny@refs/pr/1", Reference("lab/Tiny", "refs/pr/1")),
        ("https://huggingface.co/lab/Tiny/tree/main", TINY),
        ("https://huggingface.co/lab/Tiny/tree/refs/pr/1/", Reference("lab/Tiny", "refs/pr/1")),
        ("https://huggingface.co/lab/Tiny/blob/v1/config.json#L3", Reference("lab/Tiny", "v1")),
        ("https://huggingface.co/lab/Tiny/discussions", TINY),
        ("https://huggingface.co/datasets/lab/Tiny", TINY),
        ("https://hub.example/lab/Tiny/", TINY),
        ("hf.co/lab/Tiny?library=vllm", TINY),
        ("http://127.0.0.1:8765/lab/Tiny", TINY),
        ("Tiny", None),
        ("lab/Tiny/more", None),
        ("https://huggingface.co/lab", None),
        ("lab/..", None),
        ("", None),
    ],
)
def test_a_repo_is_read_as_people_paste_it(pasted: str, found: Reference | None) -> None:
    assert read_reference(pasted) == found
