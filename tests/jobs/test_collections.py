"""A release is added to the collections that the watchlist names, and succeeds without them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError

from bot.jobs.folder import JobDir
from bot.jobs.pipeline import _notes
from bot.jobs.stages import JobContext, publish
from bot.localhub import LocalHub
from bot.records import Card, Job, Publication, no_progress
from bot.watch.watchlist import InvalidWatchlistError
from tests.support.factories import CONFIG
from tests.support.linted import edit, make_release
from tests.support.repos import SOURCE, TARGET, as_bot
from tests.support.watch import loaded

TITLE = "AWQ of lab's models"


def published(hub: LocalHub, folder: Path, *titles: str, **entry: Any) -> tuple[Job, Publication]:
    release = make_release(hub, folder, collections=titles, **entry)
    jobdir = JobDir(folder / release.job.job_id)
    jobdir.store(release.job)
    jobdir.store(Card(files=release.artifact.files))
    context = JobContext(hub=as_bot(hub), work=folder, files=folder, progress=no_progress)
    return release.job, publish(context, jobdir)


def items(hub: LocalHub, slug: str) -> list[tuple[str, str]]:
    found = HfApi(endpoint=hub.endpoint, token=False).get_collection(slug)
    assert (found.title, found.private) == (TITLE, False)
    return [(item.item_id, item.item_type) for item in found.items]


def slug_of(hub: LocalHub) -> str:
    """As the client finds it: creating it again answers with the one that is there."""
    api = HfApi(endpoint=hub.endpoint, token=hub.token("bot"))
    return api.create_collection(TITLE, namespace="quantized", exists_ok=True).slug


def test_a_collection_is_created_once_and_kept(hub: LocalHub, tmp_path: Path) -> None:
    job, first = published(hub, tmp_path, TITLE)
    assert first.notes == ()
    assert _notes(job, first) == ""
    slug = slug_of(hub)
    assert slug.startswith("quantized/awq-of-lab-s-models-")
    assert items(hub, slug) == [(TARGET, "model")]
    edit(hub, SOURCE, "config.json", json.dumps(CONFIG | {"n": 2}).encode())
    assert published(hub, tmp_path, TITLE)[1].notes == ()
    assert items(hub, slug_of(hub)) == [(TARGET, "model")]


def test_a_private_repo_is_in_none(hub: LocalHub, tmp_path: Path) -> None:
    job, done = published(hub, tmp_path, TITLE, private=True)
    assert done.private
    assert "not added to its collections: the repo is private" in _notes(job, done)
    assert not (hub.store.root / "collections.json").exists()


def test_what_the_hub_refuses_is_a_note_and_the_release_stands(hub: LocalHub, tmp_path: Path) -> None:
    job, done = published(hub, tmp_path, "x" * 61)
    assert done.new
    assert _notes(job, done) == f"not added to the collection {'x' * 61!r}: the Hub answers 400"


def test_without_collections_nothing_is_asked(hub: LocalHub, tmp_path: Path) -> None:
    assert published(hub, tmp_path)[1].notes == ()
    assert [item for item in hub.requests if "/api/collections" in item.path] == []


def test_the_local_hub_keeps_private_collections_and_foreign_ones_apart(hub: LocalHub) -> None:
    tokens = (hub.token("bot"), hub.token("reader", role="read"))
    bot, reader = (HfApi(endpoint=hub.endpoint, token=token) for token in tokens)
    secret = bot.create_collection("Secret", namespace="quantized", private=True)
    with pytest.raises(HfHubHTTPError, match="404"):
        reader.get_collection(secret.slug)
    with pytest.raises(HfHubHTTPError, match="403"):
        reader.create_collection("Mine", namespace="quantized")
    with pytest.raises(HfHubHTTPError, match="404"):
        bot.add_collection_item(secret.slug, "quantized/none", "model")
    with pytest.raises(HfHubHTTPError, match="409"):
        bot.create_collection("Secret", namespace="quantized")


def test_the_watchlist_names_them_for_all_models_or_one(tmp_path: Path) -> None:
    text = (
        "publish_to: quantized\n"
        "defaults:\n  collections: [All, All]\n"
        "models:\n- lab/One\n- repo_id: lab/Two\n  collections: [Two]\n"
    )
    assert [entry.collections for entry in loaded(tmp_path, text)] == [("All",), ("Two",)]
    for wrong in ("[]x", "x", f"[{'x' * 61}]", "[1]", "['']"):
        with pytest.raises(InvalidWatchlistError):
            loaded(tmp_path, text.replace("[Two]", wrong))


def test_a_release_with_other_collections_is_the_same_release(hub: LocalHub, tmp_path: Path) -> None:
    job = make_release(hub, tmp_path, collections=(TITLE,)).job
    assert make_release(hub, tmp_path).job.digests == job.digests
    assert replace(job.entry, collections=()) == make_release(hub, tmp_path).job.entry
