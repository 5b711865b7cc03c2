"""Publish: a folder becomes a repo that is either complete or not yet public, in this order.

Private repo, blobs, one commit with its provenance, everything read back, gating, visibility, tag. The tag makes
it complete. Each step reads the state of the repo first, so running it again after any interruption resumes.

Trusted Publishers cannot change settings, so these are only checked then (`settings.py`).
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import httpx2
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import HfHubHTTPError

from bot.checkpoint.repo_files import GITATTRIBUTES, PROVENANCE
from bot.errors import EnvironmentProblem, PublishError
from bot.hub.access import demand_write_token, exchange, request_error, request_or_raise, write_hint
from bot.hub.fetch import files_at
from bot.hub.release_log import next_entry
from bot.hub.session import Hub, TransferError, call, status_of, unwrap_transfer_error, wait_before_retry
from bot.hub.settings import check_settings, set_gating, set_visibility, settings_of, stays_private
from bot.hub.signatures import demand_signature, sealed
from bot.hub.targets import check_not_superseded, check_tag, has_release_of, superseded, target_state
from bot.hub.upload import Upload, send, uploads_of
from bot.hub.verify import read_back, restore_previous
from bot.records import (
    Job,
    Progress,
    Provenance,
    Publication,
    Published,
    PublishedFile,
    Tag,
    TargetState,
    from_json,
)
from bot.redaction import holds_secret

_COMMIT_TRIES = 4
_SMALL_BYTES = 1 << 26
pause = time.sleep  # tests replace it, and no other waiting


@dataclass(frozen=True, slots=True, kw_only=True)
class Artifact:
    """Folders to upload as one repo.

    files: all files of the repo; those that are not in the folders are kept as they are on the Hub.
    """

    folders: tuple[Path, ...]
    files: tuple[PublishedFile, ...]
    summary: str


def publish(hub: Hub, job: Job, artifact: Artifact, progress: Progress) -> Publication:
    """Make the target complete with this artifact. Does nothing when it already is.

    Raises PublishError: no permission, a repo that awq-bot did not make, or files that differ from what was sent.
    """
    started = time.monotonic()
    api, target = _write_api(hub, job), job.entry.target
    before = target_state(api, target)
    if not has_release_of(before, job):
        _check_replaceable(api, before, job)
        closed = False
        if hub.trusted_publishing:
            check_settings(api, job, before.provenance, is_empty=before.state is TargetState.EMPTY)
        else:
            closed = _prepare_repo(api, before, job)
        state = target_state(api, target)
        if closed and state.complete:  # by another run, between our look and our change
            set_visibility(api, target, private=False)
        _commit(hub, job, artifact, state, progress)
    return _complete(hub, api, job, progress, started)


def finish(hub: Hub, job: Job, progress: Progress) -> Publication:
    """Complete an interrupted publication from what is on the Hub alone. Raises PublishError."""
    return _complete(hub, _write_api(hub, job), job, progress, time.monotonic())


def make_public_note(job: Job, publication: Publication) -> str:
    """What a person has to do after publishing with Trusted Publishers; empty when nothing."""
    if not publication.private or stays_private(job.entry, job.upstream):
        return ""
    return f"private until `awq-bot create-target {publication.repo_id}` makes it public"


def _check_replaceable(api: HfApi, state: Published, job: Job) -> None:
    """Raises PublishError when this job may not replace what is there."""
    demand_signature(api, state, job.entry.signed_by)
    check_not_superseded(state, job)
    check_tag(state, job)


def _complete(hub: Hub, api: HfApi, job: Job, progress: Progress, started: float) -> Publication:
    target = job.entry.target
    state = target_state(api, target)
    if state.provenance is None:
        raise PublishError(f"{target}: the interrupted publication no longer exists", hint="Plan again.")
    if not has_release_of(state, job):
        raise superseded(target)
    new, private = not state.complete, stays_private(job.entry, job.upstream)
    if new:
        check_tag(state, job)
        _read_back_or_restore(hub, api, job, state, progress)
    demand_signature(api, state, job.entry.signed_by)
    if new:
        if hub.trusted_publishing:
            check_settings(api, job, None, is_empty=False)
        else:
            set_gating(api, target, job.upstream, None, otherwise="It stays private.")
            set_visibility(api, target, private=private)
        _set_tag(api, job, state.head)
        if not hub.trusted_publishing:
            # Another run may have taken it for empty, and made it private. After that it looks for this tag.
            set_visibility(api, target, private=private)
    return Publication(
        repo_id=target,
        sha=state.head,
        tag=job.tag,
        url=f"{api.endpoint}/{target}",
        private=bool(settings_of(api, target).private) if hub.trusted_publishing else private,
        new=new,
        duration_s=time.monotonic() - started,
        provenance_sha256=state.provenance_sha256,
    )


def _write_api(hub: Hub, job: Job) -> HfApi:
    exchange(hub, job.entry.target)
    demand_write_token(hub)
    return hub.writer


# --- repo and commit ----------------------------------------------------------------------------------------


def _prepare_repo(api: HfApi, state: Published, job: Job) -> bool:
    """Create the repo, always private at first; visibility is set after the files are read back.

    Returns whether one that is to be public was made private.
    """
    closed = False
    if state.state is TargetState.ABSENT:
        create = partial(api.create_repo, state.repo_id, private=True, exist_ok=True)
        request_or_raise(state.repo_id, "create the repo", create)
    elif stays_private(job.entry, job.upstream):
        set_visibility(api, state.repo_id, private=True)
    elif state.state is TargetState.EMPTY:
        # Only while it is empty: another run may have just published there.
        closed = set_visibility(api, state.repo_id, private=True, only_at=state.head)
    if state.provenance is not None:
        # The commit of an update is public at once, so gating is set first.
        set_gating(
            api, state.repo_id, job.upstream, state.provenance, otherwise="Nothing was changed in the repo."
        )
    return closed


def _commit(hub: Hub, job: Job, artifact: Artifact, state: Published, progress: Progress) -> None:
    """The blobs, then one commit on top of `state`. When the answer to a commit was lost, look for it first."""
    api, target = hub.writer, job.entry.target
    if has_release_of(state, job):
        return
    if state.state is TargetState.ABSENT:
        raise PublishError(f"{target}: it exists, but the token cannot read it", hint=write_hint(target))
    # The commit goes on top of what is there now: another run may have published since the first look.
    _check_replaceable(api, state, job)
    wanted = {file.path for file in artifact.files}
    uploads = uploads_of(artifact.folders, wanted - {PROVENANCE}, f"hash {target}", progress)
    sealed = _sealed(hub, api, job, artifact, state)
    _check_no_secret(uploads, sealed, target)
    listed = request_or_raise(target, "list its files", partial(files_at, api, target, revision=state.head))
    on_hub = {file.path for file in listed}
    if state.provenance is not None and PROVENANCE not in on_hub:
        raise PublishError(f"{target}: the Hub's list of its files lacks {PROVENANCE}", hint="Run it again later.")
    _check_all_available(artifact, {PROVENANCE, *(item.path_in_repo for item in uploads)} | on_hub, target)
    send(api, target, uploads, progress)
    stale = sorted(on_hub - wanted - {item.path_in_repo for item in sealed} - {GITATTRIBUTES})
    commit = partial(
        api.create_commit,
        target,
        [*uploads, *sealed, *(CommitOperationDelete(path) for path in stale)],
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
            raise PublishError(
                f"{target}: the commit was refused: {reason}", hint="Check its README.md."
            ) from None
        except (HfHubHTTPError, httpx2.RequestError, TransferError) as error:
            if has_release_of(target_state(api, target), job):
                return
            wait = wait_before_retry(error)
            if wait is False or attempt == _COMMIT_TRIES:
                raise _commit_refused(target, error) from None
            pause(0.5 * 2**attempt if wait is True else wait)


def _sealed(hub: Hub, api: HfApi, job: Job, artifact: Artifact, state: Published) -> list[CommitOperationAdd]:
    """The provenance with what is known only now, its entry in the log and our run, and the signature over all."""
    paths = (folder / PROVENANCE for folder in artifact.folders)
    made = from_json(Provenance, next(path for path in paths if path.is_file()).read_bytes())
    made = replace(made, log=next_entry(api, state), published_by=hub.run)
    return sealed(hub.signing, made, target=job.entry.target, wanted=job.entry.signed_by)


def _check_no_secret(uploads: Sequence[Upload], sealed: Sequence[CommitOperationAdd], target: str) -> None:
    """Weights are not looked into. Nothing writes a secret into a card or a record; should it, it stays here."""
    for item in (*uploads, *sealed):
        if item.upload_info.size > _SMALL_BYTES:
            continue
        with CommitOperationAdd.as_file(item) as file:  # an Upload's own would count these bytes as sent
            found = holds_secret(file.read())
        if found:
            raise PublishError(
                f"{target}: {item.path_in_repo} has a secret of this process in it, so nothing is published",
                hint="Look where it comes from, revoke it, and delete the job's folder.",
            )


def _commit_refused(target: str, error: Exception) -> PublishError:
    if not isinstance(error, HfHubHTTPError):
        return PublishError(f"{target}: the connection broke during the commit", hint="Run it again: it resumes.")
    return superseded(target) if status_of(error) == 412 else request_error(target, "commit", error)


def _check_all_available(artifact: Artifact, available: set[str], target: str) -> None:
    if absent := [file.path for file in artifact.files if file.path not in available]:
        raise PublishError(
            f"{target}: {absent[0]} is neither in the job's folder nor on the Hub",
            hint="Delete the job's folder and run it again.",
        )


# --- completing ---------------------------------------------------------------------------------------------


def _read_back_or_restore(hub: Hub, api: HfApi, job: Job, state: Published, progress: Progress) -> None:
    assert state.provenance is not None
    try:
        read_back(api, state.repo_id, state.head, state.provenance.files, progress)
    except HfHubHTTPError as error:
        # A refused download says nothing about the file.
        raise request_error(state.repo_id, "read back what was sent", error) from None
    except PublishError as error:
        if restored := _restored(hub, job, state, error, progress):
            raise PublishError(
                f"{error.message}; the previous release was restored as {restored}",
                hint="Run it again. If it fails again, report it to the Hub's support.",
            ) from None
        raise PublishError(
            error.message, hint="It is not complete. Run it again; if it fails again, delete the repo first."
        ) from None


def _restored(hub: Hub, job: Job, state: Published, error: PublishError, progress: Progress) -> str | None:
    restore = partial(restore_previous, hub, state, progress, signed_by=job.entry.signed_by)
    try:
        return unwrap_transfer_error(restore)
    except (HfHubHTTPError, httpx2.RequestError, TransferError, EnvironmentProblem) as second:
        reason = _reason_of_refusal(second)
        raise PublishError(
            f"{error.message}; restoring the previous release failed too {reason}",
            hint="Run it again, or revert the last commit by hand.",
        ) from None


def _reason_of_refusal(error: Exception) -> str:
    if isinstance(error, HfHubHTTPError):
        return f"({status_of(error)})"
    return f"({error})" if isinstance(error, TransferError) else "(no answer)"


def _set_tag(api: HfApi, job: Job, sha: str) -> None:
    try:
        call(partial(api.create_tag, job.entry.target, tag=job.tag, revision=sha))
    except HfHubHTTPError as error:
        # The answer was lost, or another run completed the same release.
        state = target_state(api, job.entry.target)
        if Tag(name=job.tag, sha=sha) in state.tags:
            return
        check_tag(state, job)
        raise request_error(job.entry.target, f"create the tag {job.tag}", error) from None
