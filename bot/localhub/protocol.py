"""The vocabulary of a hub: repos and commits as records, the Hub's error responses, its rules for names."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal, get_args

RepoType = Literal["model", "dataset"]
REPO_TYPES: tuple[RepoType, ...] = get_args(RepoType)
Gated = Literal["auto", "manual", False]


# --- records ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class FileEntry:
    """One file of one commit. blob_id: git's; for a large file, that of its LFS pointer."""

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
    downloads: int = 0
    """In the last 30 days. Nothing counts them here: they are as they are set."""

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
    """The files after a commit; raises 404 for a deletion of nothing, 400 for paths that conflict."""
    result = dict(files)
    # Deletions first, so that one commit can delete a folder and fill it again.
    for operation in operations:
        if isinstance(operation, Delete):
            path = check_path(operation.path.rstrip("/"))
            deleted = [name for name in result if name == path and not operation.is_folder]
            deleted += [name for name in result if name.startswith(f"{path}/") and operation.is_folder]
            if not deleted:
                raise entry_not_found("A file with this name doesn't exist")
            for name in deleted:
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


# --- errors -------------------------------------------------------------------------------------------------


class HubError(Exception):
    """An error response.

    code: `X-Error-Code`, from which clients choose the exception class; may be empty.
    """

    def __init__(
        self, status: int, message: str, *, code: str = "", headers: dict[str, str] | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code
        self.headers = dict(headers or {})


class RepoMovedError(Exception):
    """The repo was renamed; answered with a redirect."""

    def __init__(self, repo_type: str, old_id: str, new_id: str) -> None:
        super().__init__(f"{repo_type}s/{old_id} is now {new_id}")
        self.repo_type = repo_type
        self.old_id = old_id
        self.new_id = new_id


def bad_request(message: str) -> HubError:
    return HubError(400, message)


def invalid_token() -> HubError:
    # huggingface_hub recognizes a bad token by this exact text (`hf_raise_for_status`).
    return HubError(401, "Invalid credentials in Authorization header")


def forbidden(message: str) -> HubError:
    return HubError(403, message)


def repo_not_found(*, authenticated: bool) -> HubError:
    """The Hub does not reveal to an anonymous client whether a private repo exists: it asks for a login."""
    if authenticated:
        return HubError(404, "Repository not found", code="RepoNotFound")
    return HubError(401, "Invalid username or password.", code="RepoNotFound")


def revision_not_found(revision: str) -> HubError:
    return HubError(404, f"Invalid rev id: {revision}", code="RevisionNotFound")


def entry_not_found(message: str = "Entry not found", *, commit: str | None = None) -> HubError:
    """commit: the one that lacks the file; with it, clients cache that the file does not exist."""
    headers = {} if commit is None else {"X-Repo-Commit": commit}
    return HubError(404, message, code="EntryNotFound", headers=headers)


def gated(repo_id: str, *, authenticated: bool) -> HubError:
    if authenticated:
        text = f"Access to {repo_id} is restricted and you are not in the authorized list."
        return HubError(403, text, code="GatedRepo")
    return HubError(401, f"Access to {repo_id} is restricted. You must be authenticated.", code="GatedRepo")


def disabled() -> HubError:
    return HubError(403, "Access to this resource is disabled.")


# --- names --------------------------------------------------------------------------------------------------


_NAME = re.compile(r"(?!.*(--|\.\.))[A-Za-z0-9_](?:[A-Za-z0-9_.-]{0,94}[A-Za-z0-9_])?")
# First segments of the server's routes.
_RESERVED = frozenset({"api", "datasets", "models", "oauth", "spaces", "_local"})
_COMMIT = re.compile(r"[0-9a-f]{40}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
# https://git-scm.com/docs/git-check-ref-format
_BAD_REF = re.compile(r"[\x00-\x20\x7f~^:?*\[\\]|\.\.|@\{|//")


def parse_repo_type(value: object) -> RepoType:
    if value in (None, "model"):
        return "model"
    if value == "dataset":
        return "dataset"
    raise bad_request(f"Unsupported repo type: {value!r}")


def check_repo_id(repo_id: str) -> str:
    """`namespace/name`, both plain; raises 400."""
    namespace, slash, name = repo_id.partition("/")
    if not slash or not (_NAME.fullmatch(namespace) and _NAME.fullmatch(name)):
        raise bad_request(f"Invalid repo id: {repo_id!r}")
    if namespace.lower() in _RESERVED or name.endswith((".git", ".ipynb")):
        raise bad_request(f"Reserved name in repo id: {repo_id!r}")
    return repo_id


def check_path(path: str) -> str:
    """A relative POSIX path that stays inside a repo on every operating system; raises 400."""
    parts = path.split("/")
    hostile = (
        any(part in ("", ".", "..") or len(part.encode()) > 255 for part in parts)
        or parts[0].lower() == ".git"
        or "\\" in path
        or any(ord(char) < 32 or ord(char) == 127 for char in path)
        or len(path.encode()) > 1024
    )
    if hostile:
        raise bad_request(f"Invalid path in repo: {path!r}")
    return path


def check_ref_name(name: str) -> str:
    """The short name of a branch or a tag; raises 400."""
    parts = name.split("/")
    bad = (
        _BAD_REF.search(name) is not None
        or any(not part or part.startswith(".") or part.endswith((".lock", ".")) for part in parts)
        or name == "@"
        or name.startswith(("refs/", "-"))
        or len(name.encode()) > 120
    )
    if bad:
        raise bad_request(f"Invalid reference name: {name!r}")
    return name


def is_commit_id(text: str) -> bool:
    return _COMMIT.fullmatch(text) is not None


def check_sha256(text: object) -> str:
    if isinstance(text, str) and _SHA256.fullmatch(text):
        return text
    raise HubError(422, f"Invalid LFS object id: {text!r}")
