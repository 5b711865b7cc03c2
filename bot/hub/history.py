"""The releases of a target that is ours, from the newest back, with the figures that each one's provenance has.

It is read to be shown. Whether the log of releases holds is what `verify` finds out.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial

from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, RemoteEntryNotFoundError, RevisionNotFoundError

from bot.checkpoint.repo_files import PROVENANCE
from bot.hub.fetch import side_by_side
from bot.hub.provenance import ProvenanceError
from bot.hub.release_log import link_to
from bot.hub.session import Hub, HubFailsError, call, status_of
from bot.hub.targets import published_state
from bot.records import Link, Provenance, Published, PublishedRelease, ReleaseHistory
from bot.text import one_line

MOST_RELEASES = 20  # of one target: a request each
_OUR_TAG = re.compile(r"upstream-[0-9a-f]{8}-[0-9a-f]{8}[0-9a-z-]{0,150}")
_LARGEST_BYTES = 2**60
_MOST_BITS = 64.0
_LARGEST_FIGURE = 1e6


def read_histories(hub: Hub, targets: Sequence[str]) -> tuple[ReleaseHistory, ...]:
    """Of each target at most MOST_RELEASES: three requests, and one for each release but the newest."""
    return side_by_side(partial(_history, hub.reader), targets)


def _history(api: HfApi, target: str) -> ReleaseHistory:
    try:
        state = published_state(api, target)
        if state.provenance is None:
            return ReleaseHistory(repo_id=state.repo_id, problem=state.problem or "")
        dates = {item.commit_id: item.created_at for item in call(lambda: api.list_repo_commits(target))}
        tagged = next((tag.sha for tag in state.tags if tag.name == state.provenance.tag), "")
        newest = _Step(commit=tagged or state.head, made=state.provenance)
        if newest.commit != state.head:  # main was changed by hand after it
            newest = _read(api, state.repo_id, Link(tag=newest.made.tag, commit=tagged, sha256=""))
        return _walked(api, state, newest, dates, complete=bool(tagged))
    except _BrokenError as error:
        return ReleaseHistory(repo_id=target, whole=False, problem=str(error))
    except HfHubHTTPError as error:
        return ReleaseHistory(repo_id=target, problem=f"its history answers {status_of(error)}")
    except HubFailsError as error:
        return ReleaseHistory(repo_id=target, problem=error.message)


class _BrokenError(Exception):
    """Why the walk ends before the first release."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Step:
    """A release on the way back. commit: of its tag, or the head while it has none."""

    commit: str
    made: Provenance


def _walked(
    api: HfApi, state: Published, newest: _Step, dates: Mapping[str, datetime], *, complete: bool
) -> ReleaseHistory:
    """dates: of the commits of main, the newest first. complete: the newest release has its tag."""
    steps, problem, order = [newest], "", list(dates)
    older = None
    try:
        while (older := _link_before(state, steps[-1], order)) is not None and len(steps) < MOST_RELEASES:
            steps.append(_read(api, state.repo_id, older))
    except _BrokenError as error:
        problem = str(error)
    except HfHubHTTPError as error:
        problem = f"the release before {steps[-1].made.tag} answers {status_of(error)}"
    before: list[_Step | None] = [*steps[1:], None]
    releases = [_release(step, older, dates) for step, older in zip(steps, before, strict=True)]
    shown = tuple(item for item in releases[0 if complete else 1 :] if item is not None)
    if not problem and None in releases:
        problem = "a release with figures that cannot be right is left out"
    return ReleaseHistory(
        repo_id=state.repo_id, releases=shown, whole=older is None and not problem, problem=problem
    )


def _link_before(state: Published, step: _Step, order: Sequence[str]) -> Link | None:
    """The release before this one; its sha256 is empty where only a tag says so. Raises _BrokenError.

    order: the commits of main, the newest first.
    """
    after = order[order.index(step.commit) + 1 :] if step.commit in order else []
    if step.made.log is not None:
        link = step.made.log.previous
        if link is not None and link.commit not in after:
            raise _BrokenError(f"the history before {step.made.tag} does not have {link.tag}")
        return link
    # Made before releases named the one before them.
    tags = {tag.sha: tag.name for tag in state.tags if _OUR_TAG.fullmatch(tag.name)}
    commit = next((sha for sha in after if sha in tags), None)
    return Link(tag=tags[commit], commit=commit, sha256="") if commit else None


def _read(api: HfApi, repo_id: str, link: Link) -> _Step:
    """Raises _BrokenError, and HfHubHTTPError for other answers of the Hub."""
    try:
        found, made = link_to(api, repo_id, link.commit)
    except (RemoteEntryNotFoundError, RevisionNotFoundError):
        raise _BrokenError(f"{link.tag} is missing") from None
    except ProvenanceError as error:
        raise _BrokenError(f"{link.tag}: {PROVENANCE} {error}") from None
    if found.tag != link.tag or link.sha256 not in ("", found.sha256):
        raise _BrokenError(f"{link.tag} is not the release that its tag, or the next release, names")
    return _Step(commit=link.commit, made=made)


def _release(step: _Step, older: _Step | None, dates: Mapping[str, datetime]) -> PublishedRelease | None:
    """None for figures that no release has: anybody who can write to the repo could have put them there."""
    made, report, made_at = step.made, step.made.report, dates.get(step.commit)
    sizes = (report.size_quantized_bytes, report.size_source_bytes)
    figures = (report.kl_mean, report.perplexity_source, report.perplexity_quantized)
    if not (
        all(0 <= size <= _LARGEST_BYTES for size in sizes)
        and all(0 <= figure <= _LARGEST_FIGURE for figure in figures)
        and 0 <= report.top1_agreement <= 1
        and 0 < report.bits_per_weight <= _MOST_BITS
    ):
        return None
    return PublishedRelease(
        tag=made.tag,
        commit=step.commit,
        date=f"{made_at.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}" if made_at else "",
        kind="refresh" if older is not None and _same_weights(made, older.made) else "release",
        source_sha=made.source.sha,
        kl_mean=report.kl_mean,
        top1_agreement=report.top1_agreement,
        perplexity_source=report.perplexity_source,
        perplexity_quantized=report.perplexity_quantized,
        bits_per_weight=report.bits_per_weight,
        size_bytes=report.size_quantized_bytes,
        size_source_bytes=report.size_source_bytes,
        bits=made.recipe.bits,
        group_size=made.recipe.group_size,
        method=made.recipe.method,
        tool=one_line(made.tool, 60),
    )


def _same_weights(one: Provenance, other: Provenance) -> bool:
    named = ((made.source.source_digest, made.recipe_digest, made.quantizer) for made in (one, other))
    return len(set(named)) == 1
