"""What was found up to date, and at which commits, remembered from one plan to the next.

What stands at a commit never changes. So where source and target are at the same commits, with the same settings,
and the entry and the bot are the same as well, a model that was up to date still is, and nothing is asked. Tags
can move without a commit: each is looked at once a day, and everything else is read again within four weeks, a
part at a time.

The file is only a cache: it may be lost, truncated, of another version, or written by another program. At worst, a
model is taken for up to date. Jobs and refusals are based on what was just read.
"""

from __future__ import annotations

import hashlib
import logging
from collections import Counter
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Annotated, NamedTuple

from pydantic import Field

import bot
from bot.checkpoint.repo_files import CARD, GITATTRIBUTES
from bot.errors import EnvironmentProblem
from bot.files import cache_folder, write_atomic
from bot.records import DiscoverRule, Upstream, WatchEntry, canonical_json, from_json, sha256_of

DAY_S = 86_400
TAGS_S, ALL_S = DAY_S, 28 * DAY_S  # the periods in which the tag, and all of it, is looked at again
_UNUSED_S, _PAGES_S = 30 * DAY_S, 7 * DAY_S
_MOST_BYTES, _MOST_MODELS = 30_000_000, 20_000
# Of fewer each is read: their lists would cost a plan that remembers nothing as much as they save the next one.
_FEW_MODELS = 3
_GOLDEN = (5**0.5 - 1) / 2  # whose multiples are spread evenly, in any part of them
_CODE = ("hub", "records", "watch", "checkpoint")  # the packages that read and compare

_Commit = Annotated[str, Field(pattern="^[0-9a-f]{40}$")]
_Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


@dataclass(frozen=True, slots=True, kw_only=True)
class SeenModel:
    """A model that was up to date, with source and target at these commits.

    files: sha256 of what counts of the source. asked: sha256 of the entry, and of the names and settings of both.
    tag: of the release, which was on the target's head at looked_s. read_s: when both were read as a whole. Both
    in seconds since 1970.
    """

    source: _Commit
    files: _Sha256
    target: _Commit
    asked: _Sha256
    tag: str
    looked_s: int
    read_s: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SeenList:
    """How many pages the list of an author's repos has, at least."""

    pages: int
    read_s: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """models: by `key_of`; authors: by name, in lower case, those whose list has several pages."""

    endpoint: str = ""
    code: str = ""
    models: dict[str, SeenModel] = field(default_factory=dict)
    authors: dict[str, SeenList] = field(default_factory=dict)


def nothing_seen(endpoint: str) -> Seen:
    return Seen(endpoint=endpoint, code=_code())


# --- the file -----------------------------------------------------------------------------------------------


def seen_file(endpoint: str) -> Path:
    """A file for each Hub."""
    return cache_folder("seen") / f"{sha256_of(endpoint)[:16]}.json"


def read_seen(path: Path, endpoint: str) -> Seen:
    """Empty where there is none that this version of the bot wrote about this Hub."""
    empty = nothing_seen(endpoint)
    with suppress(OSError, ValueError):
        if path.is_file() and path.stat().st_size <= _MOST_BYTES:
            found = from_json(Seen, path.read_bytes())
            return found if (found.endpoint, found.code) == (empty.endpoint, empty.code) else empty
    return empty


def store_seen(path: Path, seen: Seen, *, now_s: int) -> None:
    """Without what was not looked at for a month. Of two bots the later one wins; a full disk is no error."""
    used = {key: model for key, model in seen.models.items() if 0 <= now_s - model.looked_s < _UNUSED_S}
    latest = sorted(used, key=lambda key: used[key].looked_s, reverse=True)[:_MOST_MODELS]
    authors = {name: found for name, found in seen.authors.items() if _is_recent(found, now_s)}
    kept = replace(seen, models={key: used[key] for key in latest}, authors=authors)
    try:
        with suppress(FileExistsError):
            path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, canonical_json(kept), concurrent=True)
    except (OSError, EnvironmentProblem) as error:  # it is all asked again next time
        logging.getLogger("awq_bot").info("what is up to date could not be remembered: %s", error)


@cache
def _code() -> str:
    """A version of the bot that reads or compares in another way has to ask for everything again."""
    digest = hashlib.sha256(bot.__version__.encode())
    for package in _CODE:
        for path in sorted((Path(bot.__file__).parent / package).glob("*.py")):
            digest.update(path.read_bytes())
    return digest.hexdigest()


# --- what is remembered, and compared -----------------------------------------------------------------------


def key_of(entry: WatchEntry) -> str:
    return f"{entry.repo_id}@{entry.revision} {entry.target}"


def files_of(source: Upstream) -> str:
    """sha256 of what may change a decision: not the card and the day of the commit. Settings are in `asked_of`."""
    files = [(file.path, file.size_bytes, file.content_hash) for file in source.files]
    counted = sorted(item for item in files if item[0] not in (CARD, GITATTRIBUTES))
    terms = [source.licenses, source.license_name, source.license_link, source.license_file, source.new_version]
    return sha256_of([counted, terms])


def asked_of(entry: WatchEntry, *settings: str | None) -> str:
    """settings: names and gating of source and target. Wherever the entry is in its file, it is the same."""
    return sha256_of([replace(entry, line=0), settings])


def pages_of(seen: Seen, author: str, now_s: int) -> int:
    """How many pages its list is thought to have."""
    found = seen.authors.get(author)
    return found.pages if found is not None and _is_recent(found, now_s) else 1


def _is_recent(found: SeenList, now_s: int) -> bool:
    return 0 <= now_s - found.read_s < _PAGES_S


# --- whose turn it is ---------------------------------------------------------------------------------------


class Turn(NamedTuple):
    """When in a period a model's tag, and when all of it, is looked at: shares of the two periods."""

    tag: float
    whole: float


def turns(keys: Iterable[str]) -> dict[str, Turn]:
    """Spread evenly, in an order that no name shows. Of those that are read whole on a day, each hour has few."""
    ordered = sorted(keys, key=lambda key: hashlib.sha256(key.encode()).digest())
    return {key: Turn(number / len(ordered), number * _GOLDEN % 1) for number, key in enumerate(ordered)}


def is_due(turn: float, last_s: int, now_s: int, period_s: int) -> bool:
    """Whether its turn has come since it was last done, or that is longer ago than the period."""
    offset = int(turn * period_s)
    if not 0 <= now_s - last_s < period_s:
        return True
    return (now_s - offset) // period_s > (last_s - offset) // period_s


def worth_listing(
    entries: Iterable[WatchEntry], rules: Iterable[DiscoverRule], seen: Seen, now_s: int
) -> Mapping[str, int]:
    """The authors, in lower case, whose list may cost less than their single repos, and how many pages of it.

    A source on main costs one request, and a target two. A list has 1,000 repos on a page, so that of an author
    with very many repos and two watched ones is not worth it; how long it is shows when it is read. Sources that
    rules find are listed anyway.
    """
    kept = [entry for entry in entries if entry.signed_by is None and not entry.private]
    found = [rule for rule in rules if rule.mode == "publish" and rule.entry.signed_by is None]
    found = [rule for rule in found if not rule.entry.private]
    if len(kept) + sum(rule.limit for rule in found) < _FEW_MODELS:
        return {}
    saved: Counter[str] = Counter()
    for entry in kept:
        saved[_owner(entry.repo_id)] += entry.revision == "main"
        saved[_owner(entry.target)] += 2
    for rule in found:
        saved[rule.publish_to.lower()] += 2 * rule.limit
    return {author: count - 1 for author, count in saved.items() if pages_of(seen, author, now_s) < count}


def _owner(repo_id: str) -> str:
    return repo_id.partition("/")[0].lower()
