"""The log of a repo's releases, which needs no server: each provenance names the sha256 of the one before it.

So whoever moves a tag, rewrites the history or takes a release away has to change every later provenance too, and
with it what is signed, and what others have seen.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import partial

from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, RemoteEntryNotFoundError, RevisionNotFoundError

from bot.checkpoint.repo_files import PROVENANCE
from bot.errors import PublishError
from bot.hub.access import request_or_raise
from bot.hub.fetch import read_small_file
from bot.hub.provenance import ProvenanceError, read_provenance
from bot.hub.session import call, status_of
from bot.records import Check, Link, LogEntry, Provenance, Published

_MAX_RELEASES = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class _Step:
    """A release of the log, and where it is."""

    tag: str
    commit: str
    provenance: Provenance


def next_entry(api: HfApi, state: Published) -> LogEntry:
    """What the provenance of the next release says of the one before it.

    Raises PublishError when that release's tag is on another release's commit.
    """
    made = state.provenance
    if made is None:
        return LogEntry(previous=None)
    commit = next((tag.sha for tag in state.tags if tag.name == made.tag), state.head)
    try:
        link, found = request_or_raise(
            state.repo_id, "read the release before it", partial(link_to, api, state.repo_id, commit)
        )
    except ProvenanceError as error:
        hint = f"Delete the tag {made.tag} on the Hub if it is on a wrong commit. Then run it again."
        raise PublishError(f"{state.repo_id}@{commit[:8]}: {PROVENANCE} {error}", hint=hint) from None
    if found.tag != made.tag:
        raise PublishError(
            f"{state.repo_id}: the tag {made.tag} was moved to {commit[:8]}, which is the release {found.tag}",
            hint="Move it back, or delete it, on the Hub. Then run it again.",
        )
    return LogEntry(previous=link)


def link_to(api: HfApi, repo_id: str, commit: str) -> tuple[Link, Provenance]:
    """Raises HfHubHTTPError when there is no provenance, and ProvenanceError as `read_provenance`."""
    content = read_small_file(api, repo_id, PROVENANCE, revision=commit)
    made = read_provenance(content)
    return Link(tag=made.tag, commit=commit, sha256=hashlib.sha256(content).hexdigest()), made


def check_log(api: HfApi, state: Published, commit: str, provenance: Provenance) -> Check:
    """Walk from the newest release to the first, past the one at this commit.

    state: of the repo; provenance: of the release at `commit`.
    """
    newest = _newest(state, commit, provenance)
    try:
        history = [
            item.commit_id for item in call(partial(api.list_repo_commits, state.repo_id, revision=newest.commit))
        ]
        steps = _walk(api, state, newest, history)
    except _BrokenError as error:
        fix = "A tag was moved, or the history was rewritten. Do not use it, and report it to its publisher."
        return Check(name="log", status="failed", found=str(error), fix=fix)
    except HfHubHTTPError as error:
        return Check(name="log", status="unknown", found=f"the Hub answers {status_of(error)}")
    return _judged(steps, commit, provenance)


def _newest(state: Published, commit: str, provenance: Provenance) -> _Step:
    """The release on main, at the commit of its tag where it has one; else the one that is asked about."""
    made = state.provenance
    if made is None or commit == state.head:
        return _Step(tag=provenance.tag, commit=commit, provenance=provenance)
    tagged = next((tag.sha for tag in state.tags if tag.name == made.tag), state.head)
    return _Step(tag=made.tag, commit=tagged, provenance=made)


class _BrokenError(Exception):
    """A link of the log that does not hold."""


def _walk(api: HfApi, state: Published, newest: _Step, history: list[str]) -> list[_Step]:
    """The releases from the newest on, as far as they say what was before. Raises _BrokenError."""
    steps = [newest]
    while (entry := steps[-1].provenance.log) is not None and (link := entry.previous) is not None:
        if len(steps) >= _MAX_RELEASES:
            raise _BrokenError(f"it has more than {_MAX_RELEASES:,} releases")
        after = history[history.index(steps[-1].commit) :] if steps[-1].commit in history else []
        if link.commit not in after[1:]:
            raise _BrokenError(f"the history before {steps[-1].tag} does not have {link.tag} at {link.commit[:8]}")
        steps.append(_followed(api, state, link))
    return steps


def _followed(api: HfApi, state: Published, link: Link) -> _Step:
    where = f"{link.tag} at {link.commit[:8]}"
    try:
        found, made = link_to(api, state.repo_id, link.commit)
    except (RemoteEntryNotFoundError, RevisionNotFoundError):
        raise _BrokenError(f"{where} is missing") from None
    except ProvenanceError as error:
        raise _BrokenError(f"{where}: {PROVENANCE} {error}") from None
    if found != link:
        raise _BrokenError(f"{where} is not the release that the next one names")
    # A deleted tag points at no other files, and the release is where it was.
    tagged = next((tag.sha for tag in state.tags if tag.name == link.tag), link.commit)
    if tagged != link.commit:
        raise _BrokenError(f"the tag {link.tag} is on {tagged[:8]}, and the next release names {link.commit[:8]}")
    return _Step(tag=link.tag, commit=link.commit, provenance=made)


def _judged(steps: list[_Step], commit: str, provenance: Provenance) -> Check:
    first = steps[-1]
    whole = first.provenance.log is not None
    begins = "from the first on" if whole else f"the log begins after {first.tag}, which was published before it"
    if commit not in {step.commit for step in steps}:
        if not whole:
            return Check(name="log", status="unknown", found=f"{provenance.tag} is not in it; {begins}")
        found = f"{provenance.tag} at {commit[:8]} is none of the {len(steps)} releases before {steps[0].tag}"
        fix = "Its tag was moved, or the repo was changed by hand. Do not use it, and report it to its publisher."
        return Check(name="log", status="failed", found=found, fix=fix)
    if len(steps) == 1 and not whole:
        return Check(name="log", status="unknown", found=f"none: {first.tag} was published before the log began")
    count = "1 release" if len(steps) == 1 else f"{len(steps)} releases"
    return Check(name="log", status="ok", found=f"{count}, {begins}")
