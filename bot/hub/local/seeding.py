"""Putting repos into the store without HTTP, as an upstream author's pushes would."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from bot.hub.local import disk, gitattributes
from bot.hub.local.names import RepoType
from bot.hub.local.records import Delete, FileEntry, Gated, Operation, Put
from bot.hub.local.repo import HEADS, Repo
from bot.hub.local.store import Store

Content = bytes | str | Path


def seed(
    store: Store,
    repo_id: str,
    files: Path | Mapping[str, Content],
    *,
    repo_type: RepoType = "model",
    private: bool | None = None,
    gated: Gated | None = None,
    message: str = "Upload files",
    delete: Iterable[str] = (),
    replace_all: bool = False,
    revision: str = "main",
    author: str | None = None,
) -> str:
    """One commit, made on a repo that is created when missing; returns its sha.

    files: a folder, or path in repo → bytes, text, or a file on disk. replace_all: what is not in `files`
    goes. private, gated: None leaves the repo as it is. revision: a branch or a full ref, made from main when new.
    """
    author = author or repo_id.partition("/")[0]
    if not store.exists(repo_id, repo_type=repo_type):
        store.create(repo_id, repo_type=repo_type, private=bool(private), author=author)
    repo = store.repo(repo_id, repo_type=repo_type)
    changes = {name: value for name, value in (("private", private), ("gated", gated)) if value is not None}
    if changes:
        repo.update_settings(**changes)
    ref = revision if revision.startswith("refs/") else HEADS + revision
    if repo.ref(ref) is None:
        repo.create_ref(ref, "main")

    contents = _folder_contents(files) if isinstance(files, Path) else files
    operations: list[Operation] = [Delete(path=path) for path in delete]
    if replace_all:
        kept = {*contents, ".gitattributes", *(operation.path for operation in operations)}
        operations += [Delete(path=path) for path in repo.commit_at(ref).files if path not in kept]
    attributes = repo.gitattributes(ref)
    operations += [
        Put(path=path, entry=_store_content(store, repo, path, content, attributes))
        for path, content in contents.items()
    ]
    commit, _ = repo.add_commit(operations, title=message, author=author, revision=ref)
    return commit.sha


def _folder_contents(folder: Path) -> dict[str, Content]:
    return {
        path.relative_to(folder).as_posix(): path
        for path in sorted(folder.rglob("*"))
        if path.is_file() and ".cache" not in path.relative_to(folder).parts
    }


def _store_content(store: Store, repo: Repo, path: str, content: Content, attributes: bytes) -> FileEntry:
    if isinstance(content, str):
        content = content.encode()
    if isinstance(content, bytes):
        sample, size = content[:512], len(content)
    else:
        with content.open("rb") as file:
            sample, size = file.read(512), content.stat().st_size
    is_lfs = gitattributes.is_large(path, size=size, sample=sample, gitattributes=attributes)
    if isinstance(content, bytes):
        return repo.put_bytes(content, is_lfs=is_lfs)
    temporary = store.temporary_path()
    with content.open("rb") as source, temporary.open("wb") as target:
        sha256, _ = disk.write_hashed(target, disk.chunks(source))
    repo.adopt(temporary, sha256)
    return repo.entry(sha256, is_lfs=is_lfs)
