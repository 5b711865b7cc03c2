"""Watchlists as someone typed them, read; and decisions of the plan, as the kind that a test expects."""

from __future__ import annotations

from pathlib import Path

import pytest

from bot.records import Details, Job, Published, Skip, Upstream, WatchEntry
from bot.watch.release import Candidate, decide, triage
from bot.watch.watchlist import InvalidWatchlistError, Mistake, load
from tests.support.factories import absent, details, entry, hub_file, upstream

SHA = "0123456789abcdef0123456789abcdef01234567"
TOP = "publish_to: me\nmodels:\n"  # so that the first model is on line 3
# The default data sets are not on a local Hub.
BUILTIN_TEXT = "defaults: {calibration: {sources: [{builtin: stdlib}]}}\n"
SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")

QWEN3_4B = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "hidden_size": 2560,
    "intermediate_size": 9728,
    "num_hidden_layers": 36,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 151_936,
    "tie_word_embeddings": True,
}


def loaded(folder: Path, text: str | bytes) -> tuple[WatchEntry, ...]:
    path = folder / "watchlist.yaml"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return load(path)


def mistakes(folder: Path, text: str | bytes) -> tuple[Mistake, ...]:
    with pytest.raises(InvalidWatchlistError) as caught:
        loaded(folder, text)
    return caught.value.mistakes


def candidate(found: Skip | Job | Candidate) -> Candidate:
    assert isinstance(found, Candidate), found
    return found


def job(found: Skip | Job | Candidate) -> Job:
    assert isinstance(found, Job), found
    return found


def skip(found: Skip | Job | Candidate) -> Skip:
    assert isinstance(found, Skip), found
    return found


def sharded() -> Upstream:
    files = [file for file in upstream().files if file.path != "model.safetensors"]
    index = hub_file("model.safetensors.index.json")
    return upstream(files=(*files, index, *(hub_file(shard) for shard in SHARDS)))


def decided(
    asked: WatchEntry | None = None,
    source: Upstream | None = None,
    target: Published | None = None,
    found: Details | None = None,
) -> Skip | Job:
    """The decision about a model that is to be released, by default for the first time."""
    seen = triage(asked or entry(), source or upstream(), target or absent())
    return decide(candidate(seen), found or details())
