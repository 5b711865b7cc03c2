"""What a card's `license_link` names: a file of its own repo, or an address on the web."""

from __future__ import annotations

import posixpath
from collections.abc import Collection
from dataclasses import dataclass
from urllib.parse import SplitResult, quote, unquote, urlsplit

_HUBS = ("huggingface.co", "www.huggingface.co", "hf.co")
_PAGES = ("blob", "resolve", "raw")
_MAX_CHARS = 2000


@dataclass(frozen=True, slots=True, kw_only=True)
class LicenseLink:
    """file: a path in the repo. url: that file's page at its commit, or an address. Both None: it has no place."""

    file: str | None = None
    url: str | None = None


def read_link(
    stated: str, *, endpoint: str, repo_id: str, old_id: str, sha: str, paths: Collection[str]
) -> LicenseLink:
    """stated: untrusted. old_id: another name of the same repo. paths: of all its files at sha."""
    parts = _parts(stated)
    if parts is None:
        return LicenseLink()
    if parts.netloc or parts.path.startswith("/"):
        path = _path_of_page(parts, {*_HUBS, urlsplit(endpoint).netloc.lower()}, {repo_id.lower(), old_id.lower()})
    else:
        path = posixpath.normpath(unquote(parts.path))
    if path in paths:
        return LicenseLink(file=path, url=f"{endpoint}/{repo_id}/blob/{sha}/{quote(path)}")
    return LicenseLink(url=stated if parts.scheme else None)


def _parts(stated: str) -> SplitResult | None:
    """None for what must not become a link: another scheme, an address without one, unprintable characters."""
    if not stated.isprintable() or len(stated) > _MAX_CHARS:
        return None
    try:
        parts = urlsplit(stated)
    except ValueError:
        return None
    if not parts.scheme:
        return None if parts.netloc else parts
    # A browser takes a backslash for a slash, and what stands before `@` looks like the host.
    is_plain = not any(char in stated for char in ' \\<>"') and "@" not in parts.netloc
    return parts if parts.scheme in ("http", "https") and parts.hostname and is_plain else None


def _path_of_page(parts: SplitResult, hosts: Collection[str], repo_ids: Collection[str]) -> str:
    """The path in the repo of one of its pages on the Hub (`/lab/Tiny/blob/main/LICENSE`); empty for others."""
    if parts.netloc and parts.netloc.lower() not in hosts:
        return ""
    pieces = parts.path.strip("/").split("/", 4)
    if len(pieces) < 5 or "/".join(pieces[:2]).lower() not in repo_ids or pieces[2] not in _PAGES:
        return ""
    return unquote(pieces[4])
