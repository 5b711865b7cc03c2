"""What a repo is made of, and what a commit changes in it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

from bot.localhub.protocol import bad_request, check_path, entry_not_found

Gated = Literal["auto", "manual", False]


@dataclass(frozen=True, slots=True, kw_only=True)
class FileEntry:
    """One file of one commit. blob_id: git's, that of the pointer when the file is a large one."""

    sha256: str
    size_bytes: int
    blob_id: str
    is_lfs: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Commit:
    sha: str
    parent: str | None
    title: str
    message: str
    author: str
    date: str
    files: Mapping[str, FileEntry]

    def to_json(self) -> bytes:
        return json.dumps(dataclasses.asdict(self), ensure_ascii=False).encode()

    @classmethod
    def from_json(cls, text: bytes) -> Commit:
        fields: dict[str, Any] = json.loads(text)
        files = {path: FileEntry(**entry) for path, entry in fields.pop("files").items()}
        return cls(files=files, **fields)


@dataclass(frozen=True, slots=True, kw_only=True)
class RepoSettings:
    created_at: str
    private: bool = False
    gated: Gated = False
    disabled: bool = False
    granted: tuple[str, ...] = ()
    """Users who may read the files although the repo is gated."""

    def to_json(self) -> bytes:
        return json.dumps(dataclasses.asdict(self), indent=2).encode()

    @classmethod
    def from_json(cls, text: bytes) -> RepoSettings:
        fields: dict[str, Any] = json.loads(text)
        return cls(**{**fields, "granted": tuple(fields["granted"])})


@dataclass(frozen=True, slots=True, kw_only=True)
class Put:
    path: str
    entry: FileEntry


@dataclass(frozen=True, slots=True, kw_only=True)
class Delete:
    """is_folder: everything below `path`."""

    path: str
    is_folder: bool = False


Operation = Put | Delete


def timestamp() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def apply(files: Mapping[str, FileEntry], operations: Sequence[Operation]) -> dict[str, FileEntry]:
    result = dict(files)
    # Deletions first: a client that deletes a folder and fills it again in one commit means just that.
    for operation in operations:
        if isinstance(operation, Delete):
            path = check_path(operation.path.rstrip("/"))
            doomed = [name for name in result if name == path and not operation.is_folder]
            doomed += [name for name in result if name.startswith(f"{path}/") and operation.is_folder]
            if not doomed:
                raise entry_not_found("A file with this name doesn't exist")
            for name in doomed:
                del result[name]
    for operation in operations:
        if isinstance(operation, Put):
            result[check_path(operation.path)] = operation.entry
    _refuse_files_that_are_folders(result)
    return result


def _refuse_files_that_are_folders(files: Mapping[str, FileEntry]) -> None:
    for path in files:
        parent = path.rpartition("/")[0]
        while parent:
            if parent in files:
                raise bad_request(f"{parent!r} cannot be both a file and a folder")
            parent = parent.rpartition("/")[0]
