"""Watched models that are published, and what can happen to them."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from bot.localhub import LocalHub
from bot.records import Provenance, WatchEntry, to_json
from tests.support import factories
from tests.support.repos import source_files, upstream_of


def watched(author: str, name: str, *, owner: str = "quantized", **fields: Any) -> WatchEntry:
    return factories.entry(**{"repo_id": f"{author}/{name}", "target": f"{owner}/{name}-awq"} | fields)


def publish(hub: LocalHub, entries: Sequence[WatchEntry]) -> None:
    """Put sources and complete releases of them on the Hub, without weights that anybody could load."""
    for entry in entries:
        if not hub.store.exists(entry.repo_id):
            hub.seed(entry.repo_id, source_files())
        release(hub, entry)


def release(hub: LocalHub, entry: WatchEntry) -> Provenance:
    """Of what stands at the source now."""
    made = factories.provenance(entry, upstream_of(hub, entry))
    sha = hub.seed(entry.target, {"provenance.json": to_json(made)})
    tag = f"refs/tags/{made.tag}"
    if tag in hub.refs(entry.target):
        hub.repo(entry.target).delete_ref(tag)
    hub.repo(entry.target).create_ref(tag, sha)
    return made


def untag(hub: LocalHub, target: str) -> None:
    for name in hub.refs(target):
        if name.startswith("refs/tags/"):
            hub.repo(target).delete_ref(name)


def move_tag(hub: LocalHub, target: str) -> None:
    """To the commit before."""
    [name] = [name for name in hub.refs(target) if name.startswith("refs/tags/")]
    hub.repo(target).delete_ref(name)
    hub.repo(target).create_ref(name, hub.history(target)[1].sha)


def _replaced(hub: LocalHub, repo_id: str) -> None:
    hub.rename(repo_id, f"{repo_id}-old")
    hub.seed(repo_id, source_files(config__json='{"model_type": "llama"}'))


def _delete(hub: LocalHub, repo_id: str) -> None:
    hub.store.delete(hub.repo(repo_id))


def _set(hub: LocalHub, repo_id: str, **settings: object) -> None:
    hub.repo(repo_id).update_settings(**settings)


Change = Callable[[LocalHub, WatchEntry], object]

# What may happen to a model, by a name that says it. Of tags and of commits apart: a tag that moves alone may be
# noticed a day later.
CHANGES: Mapping[str, Change] = {
    "nothing": lambda hub, entry: None,
    "README-only commit": lambda hub, entry: hub.seed(
        entry.repo_id, {"README.md": re.sub("A tiny", "The tiny", str(source_files()["README.md"]))}
    ),
    "a picture": lambda hub, entry: hub.seed(entry.repo_id, {"plot.png": b"\x89PNG"}),
    "new weights": lambda hub, entry: hub.seed(entry.repo_id, {"model.safetensors": b"other"}),
    "new small file": lambda hub, entry: hub.seed(entry.repo_id, {"generation_config.json": '{"top_k": 1}'}),
    "other licence in the card": lambda hub, entry: hub.seed(
        entry.repo_id, {"README.md": "---\nlicense: mit\n---\n"}
    ),
    "source deleted": lambda hub, entry: _delete(hub, entry.repo_id),
    "source renamed": lambda hub, entry: hub.rename(entry.repo_id, f"{entry.repo_id}-new"),
    "source renamed to another author": lambda hub, entry: hub.rename(entry.repo_id, "else/Moved"),
    "another repo with its name": lambda hub, entry: _replaced(hub, entry.repo_id),
    "source private": lambda hub, entry: _set(hub, entry.repo_id, private=True),
    "source gated": lambda hub, entry: _set(hub, entry.repo_id, gated="auto"),
    "source disabled": lambda hub, entry: _set(hub, entry.repo_id, disabled=True),
    "target changed by hand": lambda hub, entry: hub.seed(entry.target, {"notes.txt": "mine"}),
    "provenance replaced": lambda hub, entry: hub.seed(entry.target, {"provenance.json": "{}"}),
    "target deleted": lambda hub, entry: _delete(hub, entry.target),
    "target renamed": lambda hub, entry: hub.rename(entry.target, f"{entry.target}-2"),
    "target private": lambda hub, entry: _set(hub, entry.target, private=True),
    "target gated": lambda hub, entry: _set(hub, entry.target, gated="manual"),
    "target disabled": lambda hub, entry: _set(hub, entry.target, disabled=True),
}
OF_TAGS: Mapping[str, Change] = {
    "tag deleted": lambda hub, entry: untag(hub, entry.target),
    "tag moved": lambda hub, entry: move_tag(hub, entry.target),
}
