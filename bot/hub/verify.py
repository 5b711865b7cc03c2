"""Download every file of a published repo again and compare it: after publishing, and for anyone at any time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial

from huggingface_hub import CommitOperationAdd, CommitOperationCopy, CommitOperationDelete, HfApi
from huggingface_hub.errors import (
    HfHubHTTPError,
    RemoteEntryNotFoundError,
    RevisionNotFoundError,
)

from bot.checkpoint.repo_files import PROVENANCE, PUBLIC_KEY, SIGNATURE
from bot.errors import PublishError, UpstreamError
from bot.hub.fetch import files_at, git_blob_id, read_small_file, remote_sha256
from bot.hub.provenance import ProvenanceError, provenance_at
from bot.hub.release_log import check_log, link_to
from bot.hub.session import Hub, TransferError, call, is_missing, status_of
from bot.hub.signatures import ADDED, check_signer, sealed, signer_of
from bot.hub.signing import SignatureRefusedError, SignatureUnknownError
from bot.hub.targets import published_state
from bot.records import (
    Check,
    HubFile,
    Link,
    LogEntry,
    Progress,
    Provenance,
    Published,
    PublishedFile,
    Signer,
    Tag,
    TargetState,
    byte_counter,
)

_GIT_ID = 40  # characters of the id of a file that is no large one
_MAY_BE_GATED = "If it is gated, ask for access and set HF_TOKEN."


def verify(
    hub: Hub, repo_id: str, *, revision: str | None, progress: Progress, signer: Signer | None = None
) -> tuple[Check, ...]:
    """Tag, log, signature, what runs it names, every file by sha256, and whether the source still has its hashes.

    signer: who must have signed it.

    Downloads everything and keeps nothing. Raises UpstreamError when the repo or revision is missing or cannot be
    read, and PublishError when awq-bot did not publish it.
    """
    api = hub.reader
    state = published_state(api, repo_id)
    if state.state is TargetState.ABSENT:
        raise UpstreamError(f"{repo_id}: no such repo, or private", hint="Check its name, or set HF_TOKEN.")
    commit = commit_of(state, revision)
    provenance = provenance_of(api, state, commit)
    return (
        _check_tag(state, commit, provenance, asked=revision),
        check_log(api, state, commit, provenance),
        check_signer(api, repo_id, commit, wanted=signer),
        *_check_runs(provenance),
        *_check_files(api, repo_id, commit, provenance, progress),
        _check_source(api, repo_id, commit, provenance),
    )


def read_back(
    api: HfApi, repo_id: str, revision: str, files: tuple[PublishedFile, ...], progress: Progress
) -> None:
    """Raises PublishError naming the first file that is missing or whose sha256 differs."""
    what = f"read back {repo_id}"
    for file, sha256 in _remote_hashes(api, repo_id, revision, files, progress=progress, what=what):
        if sha256 != file.sha256:
            problem = "is missing" if sha256 is None else "differs from what was sent"
            raise PublishError(f"{repo_id}@{revision[:8]}: {file.path} {problem}")


def restore_previous(hub: Hub, state: Published, progress: Progress, *, signed_by: Signer | None) -> str | None:
    """Restore the newest complete release before the head, in a new commit with a new tag.

    Returns that tag, or None when there is no earlier release. History is never rewritten and no tag is moved.
    Raises TransferError when what was restored is not what it was.
    """
    api = hub.writer
    found = _previous_release(api, state, signed_by)
    if found is None:
        return None
    link, provenance = found
    sha, found_tag = link.commit, provenance.tag
    old = {file.path: file for file in files_at(api, state.repo_id, revision=sha)}
    new = {file.path: file for file in files_at(api, state.repo_id, revision=state.head)}
    tag = f"{found_tag}-restored-{state.head[:8]}"
    provenance = replace(provenance, tag=tag, log=LogEntry(previous=link), published_by=hub.run)
    seals = sealed(hub.signing, provenance, target=state.repo_id, wanted=signed_by)
    sealing = {item.path_in_repo for item in seals}
    copied = old.keys() - {PROVENANCE, SIGNATURE, PUBLIC_KEY}
    changed = [old[path] for path in sorted(copied) if new.get(path) != old[path]]
    commit = api.create_commit(
        state.repo_id,
        [
            *(_as_it_was(api, state.repo_id, file, sha) for file in changed),
            *(CommitOperationDelete(path) for path in new if path not in copied | sealing),
            *seals,
        ],
        commit_message=f"Restore {found_tag}",
        commit_description="The files of the release after it differed from what was sent.",
        parent_commit=state.head,
        revision="main",
    )
    try:
        read_back(api, state.repo_id, commit.oid, provenance.files, progress)
    except PublishError as error:
        raise TransferError(f"{error.message}; the files of {found_tag} are as they were") from None
    call(partial(api.create_tag, state.repo_id, tag=tag, revision=commit.oid))
    return tag


def _as_it_was(api: HfApi, repo_id: str, file: HubFile, sha: str) -> CommitOperationAdd | CommitOperationCopy:
    """A file of an earlier commit. The Hub copies large files itself; no weights pass through this machine."""
    if len(file.content_hash) != _GIT_ID:
        return CommitOperationCopy(file.path, file.path, src_revision=sha)
    content = read_small_file(api, repo_id, file.path, revision=sha)
    if git_blob_id(content) != file.content_hash:
        raise TransferError(f"{file.path} at {sha[:8]} is not what the Hub lists")
    return CommitOperationAdd(file.path, content)


def _previous_release(api: HfApi, state: Published, signed_by: Signer | None) -> tuple[Link, Provenance] | None:
    """The newest commit below the head with the tag that its own provenance names, and with that signature."""
    for commit in call(partial(api.list_repo_commits, state.repo_id, revision=state.head)):
        sha = commit.commit_id
        tags = {tag.name for tag in state.tags if tag.sha == sha}
        if sha != state.head and tags:
            try:
                link, provenance = link_to(api, state.repo_id, sha)
                signer = signer_of(api, state.repo_id, sha, wanted=signed_by) if signed_by is not None else None
            except (RemoteEntryNotFoundError, ProvenanceError, SignatureRefusedError):
                continue  # a person tagged this commit
            except SignatureUnknownError as error:
                raise TransferError(f"the signature of {sha[:8]} cannot be checked: {error}") from None
            if provenance.tag in tags and (signed_by is None or signer is not None):
                return link, provenance
    return None


def _remote_hashes(
    api: HfApi, repo_id: str, revision: str, files: tuple[PublishedFile, ...], *, progress: Progress, what: str
) -> Iterator[tuple[PublishedFile, str | None]]:
    """Each file with the sha256 of what the Hub serves, or None when it is missing."""
    count = byte_counter(progress, what, sum(file.size_bytes for file in files))
    for file in files:
        found = remote_sha256(api, repo_id, file.path, revision=revision, on_bytes=count)
        if found is None:
            count(file.size_bytes)
        yield file, found


def commit_of(state: Published, revision: str | None) -> str:
    """Of a tag, or what was asked for: a commit."""
    if revision in (None, "main"):
        return state.head
    named = next((tag.sha for tag in state.tags if tag.name == revision), None)
    return named or str(revision)


def provenance_of(api: HfApi, state: Published, commit: str) -> Provenance:
    """Raises UpstreamError without such a revision, and PublishError without a provenance of awq-bot."""
    if commit == state.head and state.provenance is not None:
        return state.provenance
    if not state.head:
        raise UpstreamError(f"{state.repo_id}: {state.problem or 'it has no commit'}", hint=_MAY_BE_GATED)
    where = f"{state.repo_id}@{commit[:8]}"
    try:
        return provenance_at(api, state.repo_id, commit)
    except RevisionNotFoundError:
        hint = f"Its tags: {', '.join(tag.name for tag in state.tags) or 'none'}."
        raise UpstreamError(f"{state.repo_id}: no revision {commit}", hint=hint) from None
    except RemoteEntryNotFoundError:
        raise PublishError(f"{where}: it has no {PROVENANCE}", hint="awq-bot did not publish this.") from None
    except HfHubHTTPError as error:
        raise UpstreamError(f"{where}: {PROVENANCE} answers {status_of(error)}", hint=_MAY_BE_GATED) from None
    except ProvenanceError as error:
        hint = "awq-bot did not write this. Do not use the files, and report it to their publisher."
        raise PublishError(f"{where}: {PROVENANCE} {error}", hint=hint) from None


def _check_tag(state: Published, commit: str, provenance: Provenance, *, asked: str | None) -> Check:
    """That the name that was asked for is the release's own, and points at this commit."""
    tag, here = provenance.tag, commit[:8]
    if asked != tag and any(named.name == asked for named in state.tags):
        found = f"{asked} is on {here}, which is the release {tag}"
        fix = "The tag was moved, or is not awq-bot's. Report it, and use a commit that you verified before."
        return Check(name="tag", status="failed", found=found, fix=fix)
    if Tag(name=tag, sha=commit) in state.tags:
        return Check(name="tag", status="ok", found=f"{tag} is {here}")
    elsewhere = next((named.sha for named in state.tags if named.name == tag), None)
    if elsewhere is not None:
        fix = "The repo was changed by hand, or the tag was moved. Use a tagged revision."
        return Check(name="tag", status="failed", found=f"{tag} is {elsewhere[:8]}; this is {here}", fix=fix)
    found = f"{tag} is missing; this is {here}"
    if commit == state.head:
        found += ": publishing was interrupted before its last step, which sets the tag"
    fix = "If all files are ok they are what was published. Its publisher completes it with `awq-bot run`."
    return Check(name="tag", status="failed", found=found, fix=fix)


def _check_runs(provenance: Provenance) -> Iterator[Check]:
    """What the provenance says of where it was made. Only a signature by the workflow's identity shows it."""
    for name, run in (("built by", provenance.built_by), ("published by", provenance.published_by)):
        if run is not None:
            yield Check(name=name, status="unknown", found=f"it claims {run}")


def _check_files(
    api: HfApi, repo_id: str, commit: str, provenance: Provenance, progress: Progress
) -> Iterator[Check]:
    what = f"verify {repo_id}"
    for file, sha256 in _remote_hashes(api, repo_id, commit, provenance.files, progress=progress, what=what):
        if sha256 == file.sha256:
            yield Check(name=file.path, status="ok", found=f"sha256 {sha256[:16]}…")
        else:
            found = "missing" if sha256 is None else f"sha256 {sha256[:16]}…, published was {file.sha256[:16]}…"
            fix = "Do not use it, and report it to its publisher."
            yield Check(name=file.path, status="failed", found=found, fix=fix)
    known = {file.path for file in provenance.files} | ADDED
    for extra in files_at(api, repo_id, revision=commit):
        if extra.path not in known:
            fix = "It was added by hand after publishing."
            yield Check(name=extra.path, status="failed", found="not in the provenance", fix=fix)


def _check_source(api: HfApi, repo_id: str, commit: str, provenance: Provenance) -> Check:
    """That the card names the same source, and that this commit of it still has the recorded hashes."""
    source = provenance.source
    name = f"source {source.repo_id}@{source.sha[:8]}"
    try:
        card = call(lambda: api.model_info(repo_id, revision=commit, expand=["cardData"])).card_data
        base = card.base_model if card is not None else None
        if base not in (source.repo_id, [source.repo_id]):
            found = f"the card says that it was made from {str(base)[:100]}"
            fix = "Do not use it, and report it to its publisher."
            return Check(name=name, status="failed", found=found, fix=fix)
        listed = {file.path: file.content_hash for file in files_at(api, source.repo_id, revision=source.sha)}
    except HfHubHTTPError as error:
        why = "deleted, or private" if is_missing(error) else f"answers {status_of(error)}"
        return Check(name=name, status="unknown", found=why)
    changed = [file.path for file in source.source_files if listed.get(file.path) != file.content_hash]
    if changed:
        return Check(name=name, status="failed", found=f"other hashes: {', '.join(changed[:3])}")
    return Check(name=name, status="ok", found=f"all {len(source.source_files)} hashes are as recorded")
