"""One repo on disk: objects by content, immutable commits, and refs that are replaced atomically.

    repo.json                    settings
    objects/<2 hex>/<sha256>     contents
    commits/<sha>.json           a commit with its whole list of files
    refs/<quoted full name>      the commit that a branch or a tag points at

Objects are written before the commit that names them, and the commit before its ref. So a process that is killed
leaves the repo as it was, or with the whole change.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from urllib.parse import quote, unquote

from bot.files import chunks, locked, sync_folder, write_atomic
from bot.localhub import git
from bot.localhub.protocol import (
    Commit,
    FileEntry,
    HubError,
    Operation,
    Put,
    RepoSettings,
    RepoType,
    apply,
    bad_request,
    check_ref_name,
    is_commit_id,
    repo_not_found,
    revision_not_found,
    timestamp,
)

HEADS, TAGS, PULLS = "refs/heads/", "refs/tags/", "refs/pr/"


class Repo:
    """Reads need no lock; changes take the repo's lock."""

    def __init__(self, folder: Path, *, repo_type: RepoType, repo_id: str) -> None:
        self.folder = folder
        self.repo_type = repo_type
        self.repo_id = repo_id

    @property
    def namespace(self) -> str:
        return self.repo_id.partition("/")[0]

    @property
    def key(self) -> str:
        return f"{self.repo_type}s/{self.repo_id}"

    @property
    def exists(self) -> bool:
        return (self.folder / "repo.json").is_file()

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(locked(self.folder / "lock"))
            except FileNotFoundError:
                raise repo_not_found(authenticated=True) from None
            if not self.exists:  # deleted or moved while we waited
                raise repo_not_found(authenticated=True)
            yield

    # -- settings

    def settings(self) -> RepoSettings:
        return RepoSettings.from_json((self.folder / "repo.json").read_bytes())

    def update_settings(self, **changes: object) -> RepoSettings:
        with self.locked():
            settings = replace(self.settings(), **changes)  # type: ignore[arg-type]
            write_atomic(self.folder / "repo.json", settings.to_json(), concurrent=True)
        return settings

    def grant(self, user: str) -> None:
        """Lets a user read the files although the repo is gated."""
        with self.locked():
            settings = self.settings()
            granted = tuple(dict.fromkeys((*settings.granted, user)))
            write_atomic(self.folder / "repo.json", replace(settings, granted=granted).to_json(), concurrent=True)

    # -- objects

    def object_path(self, sha256: str) -> Path:
        return self.folder / "objects" / sha256[:2] / sha256

    def has_object(self, sha256: str) -> bool:
        return self.object_path(sha256).is_file()

    def read(self, entry: FileEntry) -> bytes:
        return self.object_path(entry.sha256).read_bytes()

    def adopt(self, temporary: Path, sha256: str) -> None:
        """Moves in a file with this sha256 that was synced to disk."""
        target = self._new_object_path(sha256)
        temporary.replace(target)
        sync_folder(target.parent)
        sync_folder(target.parent.parent)

    def entry(self, sha256: str, *, is_lfs: bool) -> FileEntry:
        """The entry of a stored object for a commit; raises 400 for one that is not stored."""
        path = self.object_path(sha256)
        if not path.is_file():
            raise bad_request(
                "Your push was rejected because an LFS pointer pointed to a file that does not exist."
            )
        size = path.stat().st_size
        if is_lfs:
            blob_id = git.object_id("blob", git.lfs_pointer(sha256, size))
        else:
            with path.open("rb") as file:
                blob_id = git.blob_id_of_chunks(size, chunks(file))
        return FileEntry(sha256=sha256, size_bytes=size, blob_id=blob_id, is_lfs=is_lfs)

    # -- refs

    def refs(self) -> dict[str, str]:
        """full name (`refs/heads/main`) → commit, sorted by name."""
        found = {}
        for path in (self.folder / "refs").iterdir():
            if path.name.startswith("refs%2F"):
                found[unquote(path.name)] = path.read_text().strip()
        return dict(sorted(found.items()))

    def ref(self, full_name: str) -> str | None:
        try:
            return self._ref_path(full_name).read_text().strip()
        except OSError:  # missing, or a name that is too long for the file system
            return None

    def resolve(self, revision: str) -> str:
        """The commit that a branch, a tag, a full ref or a full sha names; raises 404."""
        for full_name in (HEADS + revision, TAGS + revision, revision):
            if full_name.startswith("refs/") and (sha := self.ref(full_name)):
                return sha
        if is_commit_id(revision) and self._commit_path(revision).is_file():
            return revision
        raise revision_not_found(revision)

    def create_ref(self, full_name: str, revision: str) -> None:
        with self.locked():
            sha = self.resolve(revision)
            if self.ref(full_name) is not None:
                raise HubError(409, f"Reference already exists: {full_name}")
            self._write_ref(full_name, sha)

    def delete_ref(self, full_name: str) -> None:
        if full_name == HEADS + "main":
            raise HubError(403, "The main branch cannot be deleted")
        with self.locked():
            if self.ref(full_name) is None:
                raise revision_not_found(full_name)
            self._ref_path(full_name).unlink()
            sync_folder(self.folder / "refs")

    # -- commits

    def commit(self, sha: str) -> Commit:
        return _load_commit(self._commit_path(sha))

    def commit_at(self, revision: str) -> Commit:
        return self.commit(self.resolve(revision))

    def history(self, sha: str) -> Iterator[Commit]:
        """The commits from this one back to the first."""
        current: str | None = sha
        while current is not None:
            commit = self.commit(current)
            yield commit
            current = commit.parent

    def add_commit(
        self,
        operations: Sequence[Operation],
        *,
        title: str,
        message: str = "",
        author: str,
        revision: str = "main",
        expected_parent: str | None = None,
        as_pull_request: bool = False,
    ) -> tuple[Commit, str]:
        """Applies the operations to a branch; returns the new commit and its ref.

        Raises 412 when the branch is not at `expected_parent`.
        """
        with self.locked():
            ref = self._branch_ref(revision)
            parent = self.ref(ref)
            if parent is None:
                raise revision_not_found(revision)
            # The Hub accepts an abbreviated commit of at least seven characters.
            if expected_parent is not None and not (
                len(expected_parent) >= 7 and parent.startswith(expected_parent)
            ):
                raise HubError(412, f"A commit has happened since. Please refresh and try again: {parent}")
            files = apply(self.commit(parent).files, operations)
            files = self._with_tracked_large_files(files, operations)
            commit = self._write_commit(files, parent=parent, title=title, message=message, author=author)
            if as_pull_request:
                ref = f"{PULLS}{self._next_pull_number()}"
            self._write_ref(ref, commit.sha)
        return commit, ref

    def write_initial_commit(self, *, author: str) -> Commit:
        """For a new repo that no other process sees yet, so without the lock."""
        content = git.default_gitattributes(self.repo_type)
        entry = self.put_bytes(content)
        commit = self._write_commit(
            {".gitattributes": entry}, parent=None, title="initial commit", message="", author=author
        )
        self._write_ref(HEADS + "main", commit.sha)
        return commit

    def put_bytes(self, content: bytes, *, is_lfs: bool = False) -> FileEntry:
        sha256 = hashlib.sha256(content).hexdigest()
        if not self.has_object(sha256):
            write_atomic(self._new_object_path(sha256), content, concurrent=True)
        return self.entry(sha256, is_lfs=is_lfs)

    def gitattributes(self, revision: str) -> bytes:
        entry = self.commit_at(revision).files.get(".gitattributes")
        return b"" if entry is None else self.read(entry)

    def _new_object_path(self, sha256: str) -> Path:
        path = self.object_path(sha256)
        try:
            path.parent.mkdir(exist_ok=True)
        except FileNotFoundError:  # deleted meanwhile; creating its folders would restore half of it
            raise repo_not_found(authenticated=True) from None
        return path

    def _commit_path(self, sha: str) -> Path:
        return self.folder / "commits" / f"{sha}.json"

    def _ref_path(self, full_name: str) -> Path:
        return self.folder / "refs" / quote(full_name, safe="")

    def _write_ref(self, full_name: str, sha: str) -> None:
        write_atomic(self._ref_path(full_name), f"{sha}\n".encode(), concurrent=True)

    def _branch_ref(self, revision: str) -> str:
        if revision.startswith("refs/"):
            return revision
        if self.ref(TAGS + revision) is not None and self.ref(HEADS + revision) is None:
            raise bad_request(f"Cannot commit to a tag: {revision}")
        return HEADS + check_ref_name(revision)

    def _next_pull_number(self) -> int:
        numbers = [int(name.removeprefix(PULLS)) for name in self.refs() if name.startswith(PULLS)]
        return max(numbers, default=0) + 1

    def _with_tracked_large_files(
        self, files: dict[str, FileEntry], operations: Sequence[Operation]
    ) -> dict[str, FileEntry]:
        """Like the Hub, adds a line to `.gitattributes` for each large file that no pattern matches."""
        current = files.get(".gitattributes")
        content = b"" if current is None else self.read(current)
        new = sorted({op.path for op in operations if isinstance(op, Put) and op.entry.is_lfs} & files.keys())
        untracked = [path for path in new if not git.is_tracked(path, content)]
        if not untracked:
            return files
        return {**files, ".gitattributes": self.put_bytes(git.with_tracked(content, untracked))}

    def _write_commit(
        self, files: Mapping[str, FileEntry], *, parent: str | None, title: str, message: str, author: str
    ) -> Commit:
        date = timestamp()
        tree = git.tree_ids({path: entry.blob_id for path, entry in files.items()})[""]
        sha = git.commit_id(
            tree=tree,
            parent=parent,
            author=author,
            timestamp_s=int(datetime.fromisoformat(date).timestamp()),
            title=title,
            message=message,
        )
        ordered = dict(sorted(files.items()))
        commit = Commit(
            sha=sha, parent=parent, title=title, message=message, author=author, date=date, files=ordered
        )
        write_atomic(self._commit_path(sha), commit.to_json(), concurrent=True)
        return commit


@lru_cache(maxsize=512)
def _load_commit(path: Path) -> Commit:
    return Commit.from_json(path.read_bytes())
