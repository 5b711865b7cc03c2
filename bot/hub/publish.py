"""Publish: a folder becomes a repo that is either complete or not yet public, in this order.

Private repo, blobs, one commit with its provenance, everything read back, gating, visibility, tag. The tag makes
it complete. Each step looks at what is there first, so that running it again after any interruption goes on.

With a workflow's identity instead of a token, settings can only be checked (`settings.py`).
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import httpx2
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import HfHubHTTPError

from bot.errors import EnvironmentProblem, PublishError
from bot.hub.access import demand_write_token, exchange
from bot.hub.client import GITATTRIBUTES
from bot.hub.fetch import files_at
from bot.hub.session import Hub, TransferError, status_of, unwrap_transfer_error, wait_before_retry
from bot.hub.settings import carry_gating, check_settings, set_visibility, settings_of, stays_private
from bot.hub.target import (
    allowed,
    check_not_overtaken,
    check_tag,
    is_this,
    no_permission,
    overtaken,
    set_tag,
    target_state,
    write_hint,
)
from bot.hub.verify import read_back, restore_previous
from bot.records import Job, Progress, Provenance, Publication, Published, PublishedFile, TargetState

_COMMIT_TRIES = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Artifact:
    """Folders to send as one, and what the repo holds then.

    files: all of them; those that are not in the folders stay as they are on the Hub.
    """

    folders: tuple[Path, ...]
    files: tuple[PublishedFile, ...]
    summary: str


def publish(hub: Hub, job: Job, artifact: Artifact, progress: Progress) -> Publication:
    """Make the target complete with this artifact. Does nothing when it already is.

    Raises PublishError: no permission, someone else's repo, or what is there is not what was sent.
    """
    started = time.monotonic()
    api, target = _writer(hub, job), job.entry.target
    before = target_state(api, target)
    if not is_this(before, job):
        check_not_overtaken(before, job)
        check_tag(before, job)
        if hub.by_identity:
            check_settings(api, job, before.provenance, filling=before.state is TargetState.EMPTY)
        else:
            _make_room(api, before, job)
        _commit(api, job, artifact, target_state(api, target), progress)
    return _complete(hub, api, job, progress, started)


def finish(hub: Hub, job: Job, progress: Progress) -> Publication:
    """Complete a publication that was cut short, from what is on the Hub alone. Raises PublishError."""
    return _complete(hub, _writer(hub, job), job, progress, time.monotonic())


def keeps_private(job: Job) -> bool:
    return stays_private(job.entry, job.upstream)


def opening_note(job: Job, publication: Publication) -> str:
    """What a person has to do still, for what a workflow's identity published; empty when nothing."""
    if not publication.private or keeps_private(job):
        return ""
    return f"private until `awq-bot create-target {publication.repo_id}` opens it"


def _complete(hub: Hub, api: HfApi, job: Job, progress: Progress, started: float) -> Publication:
    target = job.entry.target
    state = target_state(api, target)
    if state.provenance is None:
        raise PublishError(f"{target}: what was to be completed is no longer there", hint="Plan again.")
    if not is_this(state, job):
        raise overtaken(target)
    new = not state.complete
    if new:
        check_tag(state, job)
        _read_back_or_restore(api, state, state.provenance, progress)
        if hub.by_identity:
            check_settings(api, job, None, filling=False)
        else:
            carry_gating(api, target, job.upstream, None, otherwise="It stays private.")
            set_visibility(api, target, private=keeps_private(job))
        set_tag(api, job, state.head)
    return Publication(
        repo_id=target,
        sha=state.head,
        tag=job.tag,
        url=f"{api.endpoint}/{target}",
        private=bool(settings_of(api, target).private) if hub.by_identity else keeps_private(job),
        new=new,
        duration_s=time.monotonic() - started,
    )


def _writer(hub: Hub, job: Job) -> HfApi:
    exchange(hub, job.entry.target)
    demand_write_token(hub)
    return hub.writer


# --- repo and commit ----------------------------------------------------------------------------------------


def _make_room(api: HfApi, state: Published, job: Job) -> None:
    """A repo that is private until everything was read back, whatever the entry says."""
    if state.state is TargetState.ABSENT:
        create = partial(api.create_repo, state.repo_id, private=True, exist_ok=True)
        allowed(state.repo_id, "create the repo", create)
    elif keeps_private(job):
        set_visibility(api, state.repo_id, private=True)
    elif state.state is TargetState.EMPTY:
        # Only while it is empty: somebody else may have filled it, and opened it, just now.
        set_visibility(api, state.repo_id, private=True, only_at=state.head)
    if state.provenance is not None:
        # An update is public at once, so the gate is closed before it is there.
        carry_gating(api, state.repo_id, job.upstream, state.provenance, otherwise="Nothing was changed there.")


def _commit(api: HfApi, job: Job, artifact: Artifact, state: Published, progress: Progress) -> None:
    """The blobs, then one commit on top of what was seen. A commit whose answer was lost is looked up first."""
    target = job.entry.target
    if is_this(state, job):
        return
    if state.state is TargetState.ABSENT:
        raise PublishError(f"{target}: it exists, and the token may not read it", hint=write_hint(target))
    additions = _additions(artifact)
    listed = allowed(target, "list its files", partial(files_at, api, target, revision=state.head))
    there = {file.path for file in listed}
    _check_whole(artifact, {addition.path_in_repo for addition in additions} | there, target)
    _upload(api, target, additions, progress)
    stale = sorted(there - {file.path for file in artifact.files} - {GITATTRIBUTES})
    commit = partial(
        api.create_commit,
        target,
        [*additions, *(CommitOperationDelete(path) for path in stale)],
        commit_message=artifact.summary,
        parent_commit=state.head,
        revision="main",
    )
    for attempt in range(1, _COMMIT_TRIES + 1):
        try:
            unwrap_transfer_error(commit)
            return
        except ValueError as error:
            reason = " ".join(str(error).split())
            raise PublishError(f"{target}: the commit was refused: {reason}", hint="See its README.md.") from None
        except (HfHubHTTPError, httpx2.RequestError, TransferError) as error:
            if is_this(target_state(api, target), job):
                return
            wait = wait_before_retry(error)
            if wait is False or attempt == _COMMIT_TRIES:
                raise _commit_refused(target, error) from None
            time.sleep(0.5 * 2**attempt if wait is True else wait)


def _additions(artifact: Artifact) -> list[CommitOperationAdd]:
    """The files of the folders that belong to the artifact. Making one of these hashes its file."""
    wanted = {file.path for file in artifact.files}
    found = {
        path.relative_to(folder).as_posix(): path
        for folder in artifact.folders
        for path in folder.rglob("*")
        if path.is_file()
    }
    return [
        CommitOperationAdd(path_in_repo=name, path_or_fileobj=found[name])
        for name in sorted(wanted & found.keys())
    ]


def _check_whole(artifact: Artifact, available: set[str], target: str) -> None:
    if absent := [file.path for file in artifact.files if file.path not in available]:
        raise PublishError(
            f"{target}: {absent[0]} is neither in the job's folder nor on the Hub",
            hint="Delete the job's folder and run it again.",
        )


def _upload(api: HfApi, target: str, additions: list[CommitOperationAdd], progress: Progress) -> None:
    total = sum(addition.upload_info.size for addition in additions)
    done = 0
    for addition in additions:
        send = partial(api.preupload_lfs_files, target, [addition], free_memory=False)
        try:
            allowed(target, f"upload {addition.path_in_repo}", send)
        except OSError as error:
            raise EnvironmentProblem(
                f"{target}: cannot send {addition.path_in_repo}: {error.strerror or error}",
                hint="Look at this machine's disk, then run it again; it goes on from here.",
            ) from None
        done += addition.upload_info.size
        progress(f"upload {target}", done, total, "B")


# --- completing ---------------------------------------------------------------------------------------------


def _read_back_or_restore(api: HfApi, state: Published, provenance: Provenance, progress: Progress) -> None:
    try:
        read_back(api, state.repo_id, state.head, provenance.files, progress)
    except HfHubHTTPError as error:
        # Not to be let in says nothing about what is there.
        raise no_permission(state.repo_id, "read back what was sent", error) from None
    except PublishError as error:
        if restored := _restored(api, state, error):
            raise PublishError(
                f"{error.message}; the previous release is back as {restored}",
                hint="Run it again. If it repeats, the Hub's storage is at fault.",
            ) from None
        raise PublishError(
            error.message, hint="It is not completed. Run it again; if it repeats, delete the repo first."
        ) from None


def _restored(api: HfApi, state: Published, error: PublishError) -> str | None:
    try:
        return unwrap_transfer_error(partial(restore_previous, api, state))
    except (HfHubHTTPError, httpx2.RequestError, TransferError, EnvironmentProblem) as second:
        reason = f"({status_of(second)})" if isinstance(second, HfHubHTTPError) else "(no answer)"
        raise PublishError(
            f"{error.message}; bringing the previous release back failed too {reason}",
            hint="Run it again, or revert the last commit by hand.",
        ) from None


# --- refusals -----------------------------------------------------------------------------------------------


def _commit_refused(target: str, error: Exception) -> PublishError:
    if not isinstance(error, HfHubHTTPError):
        return PublishError(f"{target}: the line broke while committing", hint="Run it again; it goes on.")
    return overtaken(target) if status_of(error) == 412 else no_permission(target, "commit", error)
