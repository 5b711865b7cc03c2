"""The folder that holds every repo: creating, finding, moving and deleting them. Disk only, no HTTP."""

from __future__ import annotations

import errno
import json
import shutil
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path

from bot.hub.local import disk
from bot.hub.local.errors import HubError, RepoMovedError, repo_not_found
from bot.hub.local.names import REPO_TYPES, RepoType, check_repo_id
from bot.hub.local.records import Gated, RepoSettings, timestamp
from bot.hub.local.repo import Repo


class Store:
    """A repo comes into being, goes and changes its name by one rename of a folder each."""

    def __init__(self, root: Path) -> None:
        self.root = root.resolve()
        self.temporary = self.root / "tmp"
        for folder in ("models", "datasets", "tmp"):
            (self.root / folder).mkdir(parents=True, exist_ok=True)

    def clean(self) -> None:
        """Drops what an earlier process left unfinished. Only for the one who serves this folder."""
        shutil.rmtree(self.temporary)
        self.temporary.mkdir()

    def temporary_path(self) -> Path:
        return self.temporary / uuid.uuid4().hex

    def repos(self, repo_type: RepoType) -> Iterator[Repo]:
        for path in sorted(self.root.glob(f"{repo_type}s/*/*/repo.json")):
            repo_id = f"{path.parent.parent.name}/{path.parent.name}"
            yield Repo(path.parent, repo_type=repo_type, repo_id=repo_id)

    def repo(self, repo_id: str, *, repo_type: RepoType = "model", authenticated: bool = True) -> Repo:
        """Raises the Hub's "repo not found", or RepoMovedError when it has another name now."""
        repo = self._unchecked(repo_id, repo_type)
        if repo.exists:
            return repo
        new_id = self._moves().get(f"{repo_type}s/{repo_id}")
        if new_id is not None:
            raise RepoMovedError(repo_type, repo_id, new_id)
        raise repo_not_found(authenticated=authenticated)

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
        draft = Repo(self.temporary_path(), repo_type=repo_type, repo_id=repo_id)
        for folder in ("objects", "commits", "refs"):
            (draft.folder / folder).mkdir(parents=True)
        draft.write_initial_commit(author=author)
        settings = RepoSettings(created_at=timestamp(), private=private, gated=gated)
        disk.write_atomic(draft.folder / "repo.json", settings.to_json())
        try:
            self._rename(draft.folder, repo.folder)
        except HubError:
            shutil.rmtree(draft.folder)
            raise
        self._forget_move(repo)
        return repo

    def delete(self, repo: Repo) -> None:
        grave = self.temporary_path()
        with repo.locked():
            repo.folder.rename(grave)
            disk.fsync_folder(repo.folder.parent)
        shutil.rmtree(grave)

    def move(self, repo: Repo, new_id: str) -> Repo:
        """Raises 409 when the new name is taken. The old name redirects from now on."""
        target = self._unchecked(new_id, repo.repo_type)
        with repo.locked():
            self._rename(repo.folder, target.folder)
            disk.fsync_folder(repo.folder.parent)
        with disk.locked(self.root / "moves.lock"):
            moves = {old: new for old, new in self._moves().items() if old != target.key}
            moves = {old: new_id if new == repo.repo_id else new for old, new in moves.items()}
            self._write_moves({**moves, repo.key: new_id})
        return target

    def _unchecked(self, repo_id: str, repo_type: RepoType) -> Repo:
        assert repo_type in REPO_TYPES
        namespace, name = check_repo_id(repo_id).split("/")
        folder = self.root / f"{repo_type}s" / namespace / name
        return Repo(folder, repo_type=repo_type, repo_id=repo_id)

    def _rename(self, source: Path, target: Path) -> None:
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            source.rename(target)
        except OSError as error:
            if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
                raise HubError(409, "You already created this repo") from None
            raise
        disk.fsync_folder(target.parent)
        disk.fsync_folder(target.parent.parent)

    def _moves(self) -> dict[str, str]:
        try:
            moves: dict[str, str] = json.loads((self.root / "moves.json").read_bytes())
        except FileNotFoundError:
            return {}
        return moves

    def _write_moves(self, moves: Mapping[str, str]) -> None:
        disk.write_atomic(self.root / "moves.json", json.dumps(moves, indent=2).encode())

    def _forget_move(self, repo: Repo) -> None:
        if repo.key not in self._moves():
            return
        with disk.locked(self.root / "moves.lock"):
            self._write_moves({old: new for old, new in self._moves().items() if old != repo.key})
