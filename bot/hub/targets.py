"""Targets: what is published there, and whether a job may publish over it."""

from __future__ import annotations

from collections.abc import Sequence

from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, RemoteEntryNotFoundError, RevisionNotFoundError

from bot.checkpoint.repo_files import CARD, GITATTRIBUTES, PROVENANCE
from bot.errors import PublishError
from bot.hub.fetch import files_at, read_small_file, side_by_side
from bot.hub.session import Hub, HubFailsError, call, is_missing, status_of
from bot.records import Job, Provenance, Published, Tag, TargetState, WatchEntry, from_json


def read_targets(hub: Hub, entries: Sequence[WatchEntry]) -> tuple[Published, ...]:
    """Each entry's target: one API call for its refs and one resolver call for its provenance."""
    return side_by_side(lambda entry: read_target(hub, entry), entries)


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
    state, provenance, problem = _read_head(api, repo_id, head)
    return Published(
        repo_id=repo_id, state=state, head=head, tags=tags, provenance=provenance, problem=problem or None
    )


def _read_head(api: HfApi, repo_id: str, head: str) -> tuple[TargetState, Provenance | None, str]:
    """The state of the head, its provenance, and why that cannot be read."""
    try:
        return TargetState.OURS, provenance_at(api, repo_id, head or "main"), ""
    except (RemoteEntryNotFoundError, RevisionNotFoundError):
        pass
    except HfHubHTTPError as error:
        return TargetState.UNREADABLE, None, f"the target's provenance answers {status_of(error)}"
    except ValueError:
        return TargetState.UNREADABLE, None, f"{repo_id}: {PROVENANCE} cannot be read"
    try:
        return _unproven_state(api, repo_id, head or "main"), None, ""
    except HfHubHTTPError as error:
        return TargetState.UNREADABLE, None, f"the target's history answers {status_of(error)}"


def provenance_at(api: HfApi, repo_id: str, revision: str) -> Provenance:
    """Raises HfHubHTTPError when the file is missing, and ValueError when it cannot be parsed."""
    return from_json(Provenance, read_small_file(api, repo_id, PROVENANCE, revision=revision))


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
    if state.state is TargetState.FOREIGN:
        raise PublishError(
            f"{target}: it has content that awq-bot did not publish",
            hint="Choose another `target`, or empty it by hand.",
        )
    return state


def has_release_of(state: Published, job: Job) -> bool:
    return state.provenance is not None and state.provenance.tag == job.tag


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
