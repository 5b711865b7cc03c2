"""What is asked of the Hub about all watched models: in lists of authors, then of each that may have changed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from bot.hub.client import now
from bot.hub.listings import read_authors
from bot.hub.seen import Seen, key_of, nothing_seen, read_seen, store_seen, worth_listing
from bot.hub.session import Hub
from bot.hub.settings import with_visibility
from bot.hub.signatures import with_signatures
from bot.hub.sources import read_sources
from bot.hub.targets import read_targets, with_origins
from bot.hub.unchanged import Known, Look, know, look_at_targets, remember
from bot.records import AuthorListing, DiscoverRule, Job, Published, Skip, Upstream, WatchEntry
from bot.watch.discovery import authors_to_list
from bot.watch.identity import same_repo_refusals
from bot.watch.release import UP_TO_DATE, Candidate, triage, up_to_date

# Source and target of a model that was read.
Pair = tuple[Upstream, Published]


def list_authors(
    hub: Hub, entries: Sequence[WatchEntry], rules: Sequence[DiscoverRule], memory: Path | None, *, fresh: bool
) -> tuple[Known, tuple[AuthorListing, ...]]:
    """What is known before single repos are asked about, and the lists of the rules' authors. One list per author.

    memory: the file of what was up to date, or None: nothing is remembered, and no author listed for it. fresh:
    what is in the file is not used.
    """
    authors = authors_to_list(rules)
    if memory is None:
        return know(nothing_seen(hub.endpoint), (), now_s=_now_s()), read_authors(hub, authors)
    seen = read_seen(memory, hub.endpoint)
    listings = read_authors(hub, authors, pages=worth_listing(entries, rules, seen, _now_s()))
    # By the Hub's clock, which has shown itself by now.
    known = know(seen, listings, now_s=_now_s(), fresh=fresh)
    whole = {author.lower() for author in authors}
    return known, tuple(listing for listing in listings if listing.author.lower() in whole)


def triage_all(
    hub: Hub, known: Known, looks: Sequence[Look], memory: Path | None, *, must_exist: bool
) -> list[Skip | Job | Candidate]:
    """What is unchanged is up to date; all else is read as a whole, and what of it is up to date is remembered."""
    looks = look_at_targets(hub, known, looks)
    read = iter(_read(hub, [look for look in looks if look.unchanged is None]))
    pairs = [next(read) if look.unchanged is None else None for look in looks]
    conflicts = same_repo_refusals([look.entry for look in looks], [look.repo_id for look in looks])
    triaged = [
        conflict or (triage(look.entry, *pair, must_exist=must_exist) if pair else up_to_date(look.entry))
        for conflict, look, pair in zip(conflicts, looks, pairs, strict=True)
    ]
    if memory is not None:
        store_seen(memory, _remembered(known, zip(looks, pairs, triaged, strict=True)), now_s=known.now_s)
    return triaged


def _read(hub: Hub, looks: Sequence[Look]) -> list[Pair]:
    """A source that was read on the way is not read again."""
    entries = [look.entry for look in looks]
    unread = iter(read_sources(hub, [look.entry for look in looks if look.source is None]))
    sources = [look.source or next(unread) for look in looks]
    targets = with_visibility(hub, entries, sources, read_targets(hub, entries))
    targets = with_signatures(hub, entries, with_origins(hub, entries, sources, targets))
    return list(zip(sources, targets, strict=True))


def _remembered(known: Known, found: Iterable[tuple[Look, Pair | None, Skip | Job | Candidate]]) -> Seen:
    models = dict(known.seen.models)
    for look, pair, decided in found:
        key, seen = key_of(look.entry), look.unchanged
        if pair is not None:
            seen = remember(known, look.entry, *pair) if _is_up_to_date(decided) else None
        if seen is not None:
            models[key] = seen
        elif pair is not None and not _is_as_before(known, pair, decided):
            models.pop(key, None)
    return replace(known.seen, models=models)


def _is_as_before(known: Known, pair: Pair, decided: Skip | Job | Candidate) -> bool:
    """Whether nothing else was learned about it: a repo could not be read, or the list of the target's owner."""
    source, target = pair
    unlisted = target.repo_id.lower() not in known.heads
    return bool(source.problem or target.problem) or (_is_up_to_date(decided) and unlisted)


def _is_up_to_date(decided: Skip | Job | Candidate) -> bool:
    return isinstance(decided, Skip) and decided.reason == UP_TO_DATE


def _now_s() -> int:
    return int(now().timestamp())
