"""Two bots that publish to one target at the same time.

One is held before one of its requests while the other runs to its end, or to one of its own requests. Then the
first ends, and after it the other. What is on the Hub is looked at, and a third run publishes what is new.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx2
import pytest
from huggingface_hub import HfApi

from bot.errors import BotError
from bot.hub import client
from bot.jobs import pipeline
from bot.localhub import LocalHub
from bot.records import Publication
from bot.watch.release import UP_TO_DATE
from tests.support.release import Release
from tests.support.repos import SOURCE, TARGET, as_bot
from tests.trust.faults import KINDS, NEW, contents, is_same

PATIENCE_S = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Race:
    """kind: of RACES. first: held before its request of this number, from 0. second: the same, or to its end."""

    kind: str
    first: int
    second: int | None = None

    def __str__(self) -> str:
        return f"{self.kind}: {self.first}" + (f", {self.second}" if self.second is not None else "")


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """As faults.Ended. said: of both, the error's message, or what is published."""

    mixed: str = ""
    lost: str = ""
    unnamed: str = ""
    said: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Bots:
    """first, second: the releases that the two publish. before: what is complete already."""

    first: Release
    second: Release
    before: Release | None = None


def try_race(race: Race, folder: Path) -> Ended:
    with LocalHub(folder / "hub") as hub:
        bots = RACES[race.kind](hub, folder)
        tagged = _tags(hub)
        with _turns(race) as turns, ThreadPoolExecutor(2) as pool:
            first = pool.submit(turns.run, "first", bots.first.publish)
            turns.wait("first")
            second = pool.submit(turns.run, "second", bots.second.publish)
            turns.wait("second")
            turns.go_on("first", first)
            turns.go_on("second", second)
        unnamed = [wrong for future in (first, second) if (wrong := _unnamed(future))]
        lost = _lost(hub, tagged)
        mixed = _mixed(hub, bots)
        lost = lost or _next_run(hub, folder)
        return Ended(mixed=mixed, lost=lost, unnamed="; ".join(unnamed), said=(_said(first), _said(second)))


# --- taking turns -------------------------------------------------------------------------------------------


class _Turns:
    """Holds a thread before its request of a number."""

    def __init__(self, numbers: Mapping[str, int | None]) -> None:
        self._numbers = numbers
        self._sent = dict.fromkeys(numbers, 0)
        self._held = {name: threading.Event() for name in numbers}
        self._go = {name: threading.Event() for name in numbers}
        self._here = threading.local()

    def run(self, name: str, publish: Callable[[], Publication]) -> Publication:
        self._here.name = name
        try:
            return publish()
        finally:
            self._held[name].set()

    def before_request(self) -> None:
        name = getattr(self._here, "name", None)
        if name is None:
            return
        if self._sent[name] == self._numbers[name]:
            self._held[name].set()
            assert self._go[name].wait(PATIENCE_S), f"{name} was never let go on"
        self._sent[name] += 1

    def wait(self, name: str) -> None:
        """Until it is held, or has ended."""
        assert self._held[name].wait(PATIENCE_S), f"{name} did nothing"

    def go_on(self, name: str, future: Future[Publication]) -> None:
        self._go[name].set()
        future.exception(PATIENCE_S)


@contextmanager
def _turns(race: Race) -> Iterator[_Turns]:
    turns = _Turns({"first": race.first, "second": race.second})
    send = client._Client.send

    def held(self: client._Client, request: httpx2.Request, **options: Any) -> httpx2.Response:
        turns.before_request()
        return send(self, request, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(client._Client, "send", held)
        yield turns


# --- how it ended -------------------------------------------------------------------------------------------


def _said(future: Future[Publication]) -> str:
    error = future.exception()
    return str(error) if error is not None else future.result().tag


def _unnamed(future: Future[Publication]) -> str:
    error = future.exception()
    if error is None:
        return ""
    if not isinstance(error, BotError):
        return f"{type(error).__name__}: {error}"
    return "" if error.message and error.hint else f"{error.message!r} has no hint"


def _tags(hub: LocalHub) -> dict[str, str]:
    if not hub.store.exists(TARGET):
        return {}
    return {ref: sha for ref, sha in hub.refs(TARGET).items() if "/tags/" in ref}


def _lost(hub: LocalHub, before: Mapping[str, str]) -> str:
    after = _tags(hub)
    moved = [tag for tag in before if after.get(tag) != before[tag]]
    return f"the tags {moved} are gone or were moved" if moved else ""


def _mixed(hub: LocalHub, bots: Bots) -> str:
    """Every commit but the first is one release, whole."""
    made = [contents(release) for release in (bots.first, bots.second, bots.before) if release is not None]
    for commit in hub.history(TARGET):
        files = hub.files(TARGET, revision=commit.sha)
        if files.keys() - {".gitattributes"} and not any(is_same(files, release) for release in made):
            return f"{commit.title} is {sorted(files)}"
    return ""


def _next_run(hub: LocalHub, folder: Path) -> str:
    """What a run that starts now cannot do: publish what is new, and find nothing to do after that."""
    now = Release.of(hub, folder / "next", NEW)
    try:
        now.publish()
    except BotError as error:
        return f"it cannot be published any more: {error.message}"
    found = pipeline.plan(as_bot(hub), [now.job.entry])
    if [item.reason for item in found.skipped] != [UP_TO_DATE] or found.jobs:
        return f"the next plan says {[*found.skipped, *found.jobs]}"
    return "" if not now.private else "it stayed private"


# --- who publishes what -------------------------------------------------------------------------------------


def _empty(hub: LocalHub, folder: Path) -> tuple[Release | None, Release]:
    """A first release, into a public repo with nothing in it."""
    release = Release.of(hub, folder, NEW)
    HfApi(endpoint=hub.endpoint, token=hub.token("bot")).create_repo(TARGET)
    return None, release


_KINDS = {**KINDS, "into an empty repo": _empty}
_NEWER = NEW | {"model.safetensors": b"newer" * 3000}


def _twice(kind: str) -> Callable[[LocalHub, Path], Bots]:
    """The same release by both. Where both quantize, they made other bytes, as another machine may."""

    def make(hub: LocalHub, folder: Path) -> Bots:
        before, first = _KINDS[kind](hub, folder)
        if kind in ("refresh", "finish"):
            return Bots(first=first, second=first, before=before)
        made = Release.of(hub, folder / "other", NEW | {"model.safetensors": b"new?" * 3000})
        return Bots(first=first, second=replace(first, artifact=made.artifact), before=before)

    return make


def _older_and_newer(kind: str, *, newer_first: bool) -> Callable[[LocalHub, Path], Bots]:
    """A release, and the one after it, which was planned before the older one was published."""

    def make(hub: LocalHub, folder: Path) -> Bots:
        before, older = _KINDS[kind](hub, folder)
        hub.seed(SOURCE, {"config.json": '{"model_type": "qwen3", "newer": true}'})
        newer = Release.of(hub, folder, _NEWER)
        first, second = (newer, older) if newer_first else (older, newer)
        return Bots(first=first, second=second, before=before)

    return make


RACES: Mapping[str, Callable[[LocalHub, Path], Bots]] = {
    **{f"{kind}, twice": _twice(kind) for kind in _KINDS},
    **{f"{kind} held, newer": _older_and_newer(kind, newer_first=False) for kind in _KINDS},
    **{f"newer held, {kind}": _older_and_newer(kind, newer_first=True) for kind in _KINDS},
}
# How many the first sends when it is alone, at least.
_SENT = {"first release": 34, "update": 32, "refresh": 31, "finish": 12, "into an empty repo": 36}
REQUESTS: Mapping[str, int] = {
    kind: 34
    if kind.startswith("newer")
    else next(number for name, number in _SENT.items() if kind.startswith(name))
    for kind in RACES
}
