"""The folder of all repos: creating, finding, moving and deleting them, and seeding them without HTTP."""

from __future__ import annotations

import errno
import json
import shutil
import uuid
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from bot.files import chunks, locked, sync_folder, write_atomic, write_hashed
from bot.localhub import git
from bot.localhub.protocol import (
    REPO_TYPES,
    Delete,
    FileEntry,
    Gated,
    HubError,
    Operation,
    Put,
    RepoMovedError,
    RepoSettings,
    RepoType,
    check_repo_id,
    repo_not_found,
    timestamp,
)
from bot.localhub.repo import HEADS, Repo


class Store:
    """Creating, deleting and moving a repo is one rename of its folder each, so it is atomic."""

    def __init__(self, root: Path) -> None:
        self.root = root.resolve()
        self.temporary = self.root / "tmp"
        for folder in ("models", "datasets", "tmp"):
            (self.root / folder).mkdir(parents=True, exist_ok=True)

    def clean(self) -> None:
        """Removes unfinished files of an earlier process. Only for the process that serves this folder."""
        shutil.rmtree(self.temporary)
        self.temporary.mkdir()

    def temporary_path(self) -> Path:
        return self.temporary / uuid.uuid4().hex

    def repos(self, repo_type: RepoType, *, owner: str = "") -> Iterator[Repo]:
        """owner: whose alone, in whatever case of its letters."""
        folders = (folder for folder in (self.root / f"{repo_type}s").iterdir() if folder.is_dir())
        asked = (folder for folder in folders if owner.lower() in ("", folder.name.lower()))
        for path in sorted(path for folder in asked for path in folder.glob("*/repo.json")):
            repo_id = f"{path.parent.parent.name}/{path.parent.name}"
            yield Repo(path.parent, repo_type=repo_type, repo_id=repo_id)

    def repo(self, repo_id: str, *, repo_type: RepoType = "model", authenticated: bool = True) -> Repo:
        """Raises the Hub's "repo not found", or RepoMovedError for an earlier name or another spelling."""
        repo = self._unchecked(repo_id, repo_type)
        if repo.exists:
            return repo
        moves = {old.lower(): new for old, new in self._moves().items()}
        new_id = self._spelled(repo) or moves.get(repo.key.lower())
        if new_id is not None:
            raise RepoMovedError(repo_type, repo_id, new_id)
        raise repo_not_found(authenticated=authenticated)

    def spelled_so(self, repo_id: str, *, repo_type: RepoType = "model") -> Repo:
        """The repo that has this name, in whatever case of its letters."""
        return self._unchecked(self._spelled(self._unchecked(repo_id, repo_type)) or repo_id, repo_type)

    def exists(self, repo_id: str, *, repo_type: RepoType = "model") -> bool:
        return self._unchecked(repo_id, repo_type).exists

    def create(
        self,
        repo_id: str,
        *,
        repo_type: RepoType = "model",
        private: bool = False,
        gated: Gated = False,
        author: str,
    ) -> Repo:
        """Raises 409 when it exists."""
        repo = self._unchecked(repo_id, repo_type)
        if self._spelled(repo) is not None:
            raise HubError(409, "You already created this repo")
        draft = Repo(self.temporary_path(), repo_type=repo_type, repo_id=repo_id)
        for folder in ("objects", "commits", "refs"):
            (draft.folder / folder).mkdir(parents=True)
        draft.write_initial_commit(author=author)
        settings = RepoSettings(created_at=timestamp(), private=private, gated=gated)
        write_atomic(draft.folder / "repo.json", settings.to_json(), concurrent=True)
        try:
            self._rename(draft.folder, repo.folder)
        except HubError:
            shutil.rmtree(draft.folder)
            raise
        self._forget_move(repo)
        return repo

    def delete(self, repo: Repo) -> None:
        deleted = self.temporary_path()
        with repo.locked():
            repo.folder.rename(deleted)
            sync_folder(repo.folder.parent)
        shutil.rmtree(deleted)

    def move(self, repo: Repo, new_id: str) -> Repo:
        """Raises 409 when the new name is taken. The old name redirects from now on."""
        target = self._unchecked(new_id, repo.repo_type)
        with repo.locked():
            self._rename(repo.folder, target.folder)
            sync_folder(repo.folder.parent)
        with locked(self.root / "moves.lock"):
            moves = {old: new for old, new in self._moves().items() if old != target.key}
            moves = {old: new_id if new == repo.repo_id else new for old, new in moves.items()}
            self._write_moves({**moves, repo.key: new_id})
        return target

    def _unchecked(self, repo_id: str, repo_type: RepoType) -> Repo:
        assert repo_type in REPO_TYPES
        namespace, name = check_repo_id(repo_id).split("/")
        folder = self.root / f"{repo_type}s" / namespace / name
        return Repo(folder, repo_type=repo_type, repo_id=repo_id)

    def _spelled(self, repo: Repo) -> str | None:
        """The id of a repo of this name whose letters differ in case: names on the Hub ignore case."""
        ids = (other.repo_id for other in self.repos(repo.repo_type))
        return next((other for other in ids if other.lower() == repo.repo_id.lower() != other), None)

    def _rename(self, source: Path, target: Path) -> None:
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            source.rename(target)
        except OSError as error:
            if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
                raise HubError(409, "You already created this repo") from None
            raise
        sync_folder(target.parent)
        sync_folder(target.parent.parent)

    def _moves(self) -> dict[str, str]:
        try:
            moves: dict[str, str] = json.loads((self.root / "moves.json").read_bytes())
        except FileNotFoundError:
            return {}
        return moves

    def _write_moves(self, moves: Mapping[str, str]) -> None:
        write_atomic(self.root / "moves.json", json.dumps(moves, indent=2).encode(), concurrent=True)

    def _forget_move(self, repo: Repo) -> None:
        if repo.key not in self._moves():
            return
        with locked(self.root / "moves.lock"):
            self._write_moves({old: new for old, new in self._moves().items() if old != repo.key})


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
    """Makes one commit, in a repo that is created if missing; returns its sha.

    files: a folder, or path in repo → bytes, text, or a file on disk. replace_all: deletes the other files.
    private, gated: None leaves the setting. revision: a branch or a full ref; a new one starts at main.
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
    is_lfs = git.is_large(path, size=size, sample=sample, gitattributes=attributes)
    if isinstance(content, bytes):
        return repo.put_bytes(content, is_lfs=is_lfs)
    temporary = store.temporary_path()
    with content.open("rb") as source, temporary.open("wb") as target:
        sha256, _ = write_hashed(target, chunks(source))
    repo.adopt(temporary, sha256)
    return repo.entry(sha256, is_lfs=is_lfs)
