"""Names that arrive from clients: checked before anything else sees them."""

from __future__ import annotations

import re
from typing import Literal, get_args

from bot.hub.local.errors import HubError, bad_request

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
