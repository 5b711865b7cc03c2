"""What was sent is what is there: every file downloaded again and compared, and the way back when it is not."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from huggingface_hub import CommitOperationAdd, CommitOperationCopy, CommitOperationDelete, HfApi
from huggingface_hub.errors import RemoteEntryNotFoundError

from bot.checkpoint.repo_files import PROVENANCE
from bot.errors import PublishError
from bot.hub.client import provenance_at
from bot.hub.fetch import files_at, remote_sha256
from bot.hub.session import call
from bot.records import Progress, Provenance, Published, PublishedFile, to_json


def read_back(
    api: HfApi, repo_id: str, revision: str, files: tuple[PublishedFile, ...], progress: Progress
) -> None:
    """Raises PublishError naming the first file that is missing or differs by sha256."""
    total = sum(file.size_bytes for file in files)
    done = 0
    for file in files:
        found = remote_sha256(api, repo_id, file.path, revision=revision)
        if found != file.sha256:
            what = "is not there" if found is None else "is not what was sent"
            raise PublishError(f"{repo_id}@{revision[:8]}: {file.path} {what}")
        done += file.size_bytes
        progress(f"read back {repo_id}", done, total, "B")


def restore_previous(api: HfApi, state: Published) -> str | None:
    """Bring the newest complete release before the head back, in a commit and under a tag of its own.

    Returns that tag, or None when there is no earlier release. History is never rewritten and no tag is moved.
    """
    found = _previous_release(api, state)
    if found is None:
        return None
    sha, provenance = found
    old = {file.path: file for file in files_at(api, state.repo_id, revision=sha)}
    new = {file.path: file for file in files_at(api, state.repo_id, revision=state.head)}
    tag = f"{provenance.tag}-restored-{state.head[:8]}"
    changed = [path for path, file in old.items() if path != PROVENANCE and new.get(path) != file]
    commit = api.create_commit(
        state.repo_id,
        [
            # Large files are copied on the Hub; nothing of the weights passes through this machine.
            *(CommitOperationCopy(path, path, src_revision=sha) for path in changed),
            *(CommitOperationDelete(path) for path in new if path not in old),
            CommitOperationAdd(PROVENANCE, to_json(replace(provenance, tag=tag)).encode()),
        ],
        commit_message=f"Restore {provenance.tag}",
        commit_description="What was published after it did not read back as it was sent.",
        parent_commit=state.head,
        revision="main",
    )
    call(partial(api.create_tag, state.repo_id, tag=tag, revision=commit.oid))
    return tag


def _previous_release(api: HfApi, state: Published) -> tuple[str, Provenance] | None:
    """The newest commit below the head that the tag named in its own provenance points at."""
    for commit in call(partial(api.list_repo_commits, state.repo_id, revision=state.head)):
        sha = commit.commit_id
        tags = {tag.name for tag in state.tags if tag.sha == sha}
        if sha != state.head and tags:
            try:
                provenance = provenance_at(api, state.repo_id, sha)
            except (RemoteEntryNotFoundError, ValueError):
                continue  # a tag that a person put on a commit of their own
            if provenance.tag in tags:
                return sha, provenance
    return None
