"""Which watched models are as they were when they were found up to date, so that they need not be read again."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError

from bot.hub.fetch import side_by_side
from bot.hub.listings import COMMIT
from bot.hub.seen import (
    ALL_S,
    TAGS_S,
    Seen,
    SeenList,
    SeenModel,
    Turn,
    asked_of,
    files_of,
    is_due,
    key_of,
    turns,
)
from bot.hub.session import Hub, HubFailsError, call
from bot.hub.sources import read_sources
from bot.records import AuthorListing, Head, Published, Upstream, WatchEntry


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """What a plan knows before it asks for single repos.

    heads: by id, in lower case, as lists of authors show them. fresh: nothing that was seen is used.
    """

    seen: Seen
    now_s: int
    fresh: bool = False
    heads: Mapping[str, Head] = field(default_factory=dict)
    turns: Mapping[str, Turn] = field(default_factory=dict)

    def head(self, repo_id: str) -> Head | None:
        """None for what must be asked about, and of which nothing is kept: not listed, private or disabled."""
        found = self.heads.get(repo_id.lower())
        return None if found is None or found.private or found.disabled else found

    def model(self, entry: WatchEntry) -> SeenModel | None:
        return None if self.fresh else self.seen.models.get(key_of(entry))


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """A watched model so far. repo_id: of its source, as the Hub spells it. source: None where it was not read.

    gated: of the source. unchanged: what is known of it, where nothing more has to be read.
    """

    entry: WatchEntry
    repo_id: str
    sha: str
    gated: str | None
    source: Upstream | None = None
    unchanged: SeenModel | None = None


def know(seen: Seen, listings: Iterable[AuthorListing], *, now_s: int, fresh: bool = False) -> Known:
    """listings: of the authors that are worth it."""
    found = tuple(listings)
    heads = {head.repo_id.lower(): head for listing in found for head in listing.heads}
    several = {
        item.author.lower(): SeenList(pages=item.pages + item.unread, read_s=now_s)
        for item in found
        if item.pages + item.unread > 1
    }
    seen = replace(seen, authors=seen.authors | several)
    return Known(seen=seen, now_s=now_s, fresh=fresh, heads=heads, turns=turns(seen.models))


def look_at_sources(hub: Hub, known: Known, entries: Sequence[WatchEntry]) -> tuple[Look, ...]:
    """One API call for each source whose head is not the commit that is remembered."""
    at_head = [_at_head(known, entry) for entry in entries]
    read = iter(read_sources(hub, [entry for entry, look in zip(entries, at_head, strict=True) if look is None]))
    return tuple(look or _of(entry, next(read)) for entry, look in zip(entries, at_head, strict=True))


def look_at_targets(hub: Hub, known: Known, looks: Sequence[Look]) -> tuple[Look, ...]:
    """With what is unchanged. One API call for each target whose tag is to be looked at now."""
    return side_by_side(lambda look: _compared(hub.reader, known, look), looks)


def remember(known: Known, entry: WatchEntry, source: Upstream, target: Published) -> SeenModel | None:
    """What is kept of a model that was read as a whole, and is up to date. None for what is always read.

    That is what is private, as others may read the file, and what must be signed: whoever can write to the target
    or to the file must not be believed.
    """
    head = known.head(entry.target)
    if head is None or source.private or entry.signed_by is not None or target.provenance is None:
        return None
    commits = (source.sha, target.head)
    if head.sha != target.head or not all(COMMIT.fullmatch(sha) for sha in commits):
        return None
    return SeenModel(
        source=source.sha,
        files=files_of(source),
        target=target.head,
        asked=_asked(_of(entry, source), head),
        tag=target.provenance.tag,
        looked_s=known.now_s,
        read_s=known.now_s,
    )


def _of(entry: WatchEntry, source: Upstream) -> Look:
    return Look(entry=entry, repo_id=source.repo_id, sha=source.sha, gated=source.gated, source=source)


def _at_head(known: Known, entry: WatchEntry) -> Look | None:
    """None where the source has to be read."""
    seen, head = known.model(entry), known.head(entry.repo_id)
    if seen is None or head is None or entry.revision != "main" or head.sha != seen.source:
        return None
    return Look(entry=entry, repo_id=head.repo_id, sha=head.sha, gated=head.gated)


def _compared(api: HfApi, known: Known, look: Look) -> Look:
    entry = look.entry
    seen, target = known.model(entry), known.head(entry.target)
    if seen is None or target is None or entry.signed_by is not None:
        return look
    if target.sha != seen.target or _asked(look, target) != seen.asked or not _has_files(look, seen):
        return look
    turn, seen = known.turns[key_of(entry)], replace(seen, source=look.sha)
    if not is_due(turn.tag, seen.looked_s, known.now_s, TAGS_S):
        return replace(look, unchanged=seen)
    if is_due(turn.whole, seen.read_s, known.now_s, ALL_S) or not _is_tagged(api, entry.target, seen):
        return look
    return replace(look, unchanged=replace(seen, looked_s=known.now_s))


def _asked(look: Look, target: Head) -> str:
    return asked_of(look.entry, look.repo_id, look.gated, target.repo_id, target.gated)


def _has_files(look: Look, seen: SeenModel) -> bool:
    """Whether the source has, at another commit perhaps, all that counts as it was."""
    source = look.source
    if source is None:
        return True
    return not source.problem and not source.private and files_of(source) == seen.files


def _is_tagged(api: HfApi, target: str, seen: SeenModel) -> bool:
    """False also where that cannot be read: whoever reads the whole target says why."""
    try:
        refs = call(lambda: api.list_repo_refs(target))
    except (HfHubHTTPError, HubFailsError):
        return False
    is_head = any(branch.name == "main" and branch.target_commit == seen.target for branch in refs.branches)
    return is_head and any(tag.name == seen.tag and tag.target_commit == seen.target for tag in refs.tags)
