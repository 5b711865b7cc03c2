"""Targets: what is published there, and whether a job may publish over it."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace

from huggingface_hub import HfApi
from huggingface_hub.errors import (
    HfHubHTTPError,
    RemoteEntryNotFoundError,
    RevisionNotFoundError,
)

from bot.checkpoint.repo_files import CARD, GITATTRIBUTES, PROVENANCE
from bot.errors import PublishError
from bot.hub.fetch import files_at, id_of_repo, read_and_identify, side_by_side
from bot.hub.provenance import ProvenanceError, read_provenance
from bot.hub.session import Hub, HubFailsError, call, is_missing, status_of
from bot.records import Digests, Job, Published, Tag, TargetState, Upstream, WatchEntry


def read_targets(hub: Hub, entries: Sequence[WatchEntry]) -> tuple[Published, ...]:
    """Each entry's target: one API call for its refs and one resolver call for its provenance."""
    return side_by_side(lambda entry: read_target(hub, entry), entries)


def with_origins(
    hub: Hub, entries: Sequence[WatchEntry], sources: Sequence[Upstream], targets: Sequence[Published]
) -> tuple[Published, ...]:
    """See with_origin."""
    return side_by_side(
        lambda item: with_origin(hub.reader, *item), list(zip(entries, sources, targets, strict=True))
    )


def with_origin(api: HfApi, entry: WatchEntry, source: Upstream, target: Published) -> Published:
    """The target, with what the repo that it was made from is called now.

    One API call where provenance and watchlist name different repos, which may be one that was renamed.
    """
    if source.problem or target.provenance is None or target.is_made_from(entry.repo_id, source.repo_id):
        return target
    # It was deleted or is private: it stays another repo.
    with suppress(HfHubHTTPError, HubFailsError):
        info = call(lambda: api.model_info(target.made_from, expand=["sha"]))
        return replace(target, origin=info.id)
    return target


def read_target(hub: Hub, entry: WatchEntry) -> Published:
    try:
        return published_state(hub.reader, entry.target)
    except HubFailsError as error:
        return Published(repo_id=entry.target, state=TargetState.UNREADABLE, problem=error.message)


def published_state(api: HfApi, repo_id: str) -> Published:
    """The target's state. Two requests, and two more without a provenance."""
    try:
        refs = call(lambda: api.list_repo_refs(repo_id))
    except HfHubHTTPError as error:
        if is_missing(error):
            return Published(repo_id=repo_id, state=TargetState.ABSENT)
        problem = f"the target answers {status_of(error)}"
        return Published(repo_id=repo_id, state=TargetState.UNREADABLE, problem=problem)
    head = next((branch.target_commit for branch in refs.branches if branch.name == "main"), "")
    tags = tuple(Tag(name=tag.name, sha=tag.target_commit) for tag in refs.tags)
    return _with_head(api, Published(repo_id=repo_id, state=TargetState.UNREADABLE, head=head, tags=tags))


def _with_head(api: HfApi, target: Published) -> Published:
    """With its id on the Hub, its state and its provenance, or with why these cannot be read."""
    revision = target.head or "main"
    try:
        content, repo_id = read_and_identify(api, target.repo_id, PROVENANCE, revision=revision)
        provenance, digest = read_provenance(content), hashlib.sha256(content).hexdigest()
        return replace(
            target, repo_id=repo_id, state=TargetState.OURS, provenance=provenance, provenance_sha256=digest
        )
    except (RemoteEntryNotFoundError, RevisionNotFoundError) as error:
        target = replace(target, repo_id=id_of_repo(error.response, target.repo_id))
    except HfHubHTTPError as error:
        return replace(target, problem=f"the target's provenance answers {status_of(error)}")
    except ProvenanceError as error:
        return replace(target, problem=f"{target.repo_id}: {PROVENANCE} {error}")
    except ValueError:  # it is too large
        return replace(target, problem=f"{target.repo_id}: {PROVENANCE} cannot be read")
    try:
        return replace(target, state=_unproven_state(api, target.repo_id, revision))
    except HfHubHTTPError as error:
        return replace(target, problem=f"the target's history answers {status_of(error)}")


def _unproven_state(api: HfApi, repo_id: str, head: str) -> TargetState:
    """EMPTY when there is only what the Hub itself creates: one commit with at most these two files.

    Read at `head` and not at main: another run may be publishing there right now.
    """
    if len(call(lambda: api.list_repo_commits(repo_id, revision=head))) > 1:
        return TargetState.FOREIGN
    paths = {file.path for file in files_at(api, repo_id, revision=head)}
    return TargetState.EMPTY if paths <= {GITATTRIBUTES, CARD} else TargetState.FOREIGN


# --- what may be published over -----------------------------------------------------------------------------


def target_state(api: HfApi, target: str) -> Published:
    state = published_state(api, target)
    if state.problem:
        raise PublishError(f"{target}: {state.problem}", hint="Check it on the Hub, or choose another `target`.")
    if state.is_renamed(target):
        hint = f"Set `target: {state.repo_id}` in the watchlist, or rename it back."
        raise PublishError(f"{target}: it was renamed to {state.repo_id}", hint=hint)
    if state.state is TargetState.FOREIGN:
        raise PublishError(
            f"{target}: it has content that awq-bot did not publish",
            hint="Choose another `target`, or empty it by hand.",
        )
    return state


def has_release_of(state: Published, job: Job) -> bool:
    """By tag and digests: anybody can compute the name of the tag that a release will have."""
    made = state.provenance
    if made is None or made.tag != job.tag:
        return False
    source = made.source
    found = Digests(source=source.source_digest, refresh=source.refresh_digest, recipe=made.recipe_digest)
    return found == job.digests


def check_not_superseded(state: Published, job: Job) -> None:
    """Raises PublishError when the target has changed since the plan, other than by this job.

    A job may take days, and may end after a job that was planned later: it would replace the newer release.
    """
    if state.provenance is None or has_release_of(state, job):
        return
    seen, found = job.replaces, state.provenance.tag
    # After a failed update, restore_previous published the planned state again with another tag.
    if seen is None or (found != seen and not found.startswith(f"{seen}-restored-")):
        raise superseded(job.entry.target)


def check_tag(state: Published, job: Job) -> None:
    """A tag is never moved, so a release whose tag is on another commit could never be completed."""
    taken = next((tag.sha for tag in state.tags if tag.name == job.tag), None)
    if taken is not None and not (has_release_of(state, job) and taken == state.head):
        raise PublishError(
            f"{state.repo_id}: the tag {job.tag} is already on {taken[:8]}: this release was published before",
            hint="Delete that tag on the Hub, then run it again.",
        )


def superseded(target: str) -> PublishError:
    return PublishError(f"{target}: another run has published to it since the plan was made", hint="Run it again.")
