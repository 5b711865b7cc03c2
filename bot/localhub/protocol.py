"""The Hub's error responses, and its rules for names that arrive from clients."""

from __future__ import annotations

import re
from typing import Literal, get_args


class HubError(Exception):
    """An answer that is an error.

    code: `X-Error-Code`, by which clients choose the exception class; may be empty.
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
    """The repo lives under another name now; answered with a redirect."""

    def __init__(self, repo_type: str, old_id: str, new_id: str) -> None:
        super().__init__(f"{repo_type}s/{old_id} is now {new_id}")
        self.repo_type = repo_type
        self.old_id = old_id
        self.new_id = new_id


def bad_request(message: str) -> HubError:
    return HubError(400, message)


def invalid_token() -> HubError:
    # The client tells "bad token" from "no such repo" by this very text.
    return HubError(401, "Invalid credentials in Authorization header")


def forbidden(message: str) -> HubError:
    return HubError(403, message)


def repo_not_found(*, authenticated: bool) -> HubError:
    """The Hub does not tell an anonymous client whether a private repo exists: it asks for a login."""
    if authenticated:
        return HubError(404, "Repository not found", code="RepoNotFound")
    return HubError(401, "Invalid username or password.", code="RepoNotFound")


def revision_not_found(revision: str) -> HubError:
    return HubError(404, f"Invalid rev id: {revision}", code="RevisionNotFound")


def entry_not_found(message: str = "Entry not found", *, commit: str | None = None) -> HubError:
    """commit: where it was looked for; with it, clients remember that the file is not there."""
    headers = {} if commit is None else {"X-Repo-Commit": commit}
    return HubError(404, message, code="EntryNotFound", headers=headers)


def gated(repo_id: str, *, authenticated: bool) -> HubError:
    if authenticated:
        text = f"Access to {repo_id} is restricted and you are not in the authorized list."
        return HubError(403, text, code="GatedRepo")
    return HubError(401, f"Access to {repo_id} is restricted. You must be authenticated.", code="GatedRepo")


def disabled() -> HubError:
    return HubError(403, "Access to this resource is disabled.")


RepoType = Literal["model", "dataset"]
REPO_TYPES: tuple[RepoType, ...] = get_args(RepoType)

_NAME = re.compile(r"(?!.*(--|\.\.))[A-Za-z0-9_](?:[A-Za-z0-9_.-]{0,94}[A-Za-z0-9_])?")
# First segments of the server's own routes.
_RESERVED = frozenset({"api", "datasets", "models", "oauth", "spaces", "_local"})
_COMMIT = re.compile(r"[0-9a-f]{40}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
# What git check-ref-format refuses, one component at a time.
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
    """A relative POSIX path that stays inside a repo on every system; raises 400."""
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
