"""Any file gives entries or mistakes, and no other error."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from bot.records import WatchEntry
from bot.watch.watchlist import InvalidWatchlistError
from tests.support.watch import SHA, loaded

_WORDS = """publish_to defaults models repo_id target revision recipe calibration sources file dataset gate max_kl
samples licenses allow hold trust_remote_code discover author match since max_parameters x"""
_KEYS = st.sampled_from(_WORDS.split())
_SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=20),
    st.sampled_from(["a/b", "a/c", "me", SHA, "a.txt", "mit", "no"]),
    st.dates(),
)
_YAML = st.recursive(
    _SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(_KEYS, inner, max_size=5), max_leaves=12
)


def _answers(folder: Path, content: bytes) -> None:
    """Entries or mistakes, never another error."""
    with contextlib.suppress(InvalidWatchlistError):
        assert all(isinstance(entry, WatchEntry) for entry in loaded(folder, content))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("any")


_CONTENTS = st.one_of(
    st.text(alphabet=st.characters(codec="utf-8"), max_size=200).map(str.encode),
    st.binary(max_size=200),
    st.text(alphabet="abc/: -[]{}&*!|>'\"\n\t#?,%@`0.~=<", max_size=120).map(str.encode),
)


@settings(deadline=None, max_examples=400, database=None)
@given(content=_CONTENTS)
def test_any_bytes_give_entries_or_mistakes(folder: Path, content: bytes) -> None:
    _answers(folder, content)


@settings(deadline=None, max_examples=120, database=None)
@given(top=st.dictionaries(_KEYS, _YAML, max_size=4), models=st.lists(_YAML, max_size=4), rules=st.lists(_YAML))
def test_any_yaml_gives_entries_or_mistakes(
    folder: Path, top: dict[str, object], models: list[object], rules: list[object]
) -> None:
    _answers(folder, yaml.safe_dump(top | {"models": models, "discover": rules}).encode())
