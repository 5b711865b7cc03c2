"""Names of repos as the Hub has them, and as people paste them."""

from __future__ import annotations

import re
from typing import NamedTuple

NAME = r"[A-Za-z0-9_]+(?:(?:[.-]|\.-|-\.)[A-Za-z0-9_]+)*"
REPO_ID = rf"^{NAME}/{NAME}$"


class Reference(NamedTuple):
    """A repo as people paste it. revision: None where it is main, or none was given."""

    repo_id: str
    revision: str | None = None


_ADDRESS = re.compile(r"(?:https?://[^/]+|(?:www\.)?(?:hf\.co|huggingface\.co))/(?:datasets/|models/)?")
_PAGE = re.compile(r"(?:tree|commit)/(.+)|(?:blob|resolve)/([^/]+)/")


def read_reference(text: str) -> Reference | None:
    """`owner/name`, `owner/name@revision`, or the address of a page below a repo; None for anything else."""
    visible = "".join(char for char in text if char.isprintable()).strip()
    path = re.split(r"[?#]", visible)[0].rstrip("/")
    address = _ADDRESS.match(path)
    path, _, revision = path[address.end() if address else 0 :].partition("@")
    owner, name, page = (*path.rstrip("/").split("/", 2), "", "")[:3]
    if not re.fullmatch(REPO_ID, f"{owner}/{name}") or (page and not address):
        return None
    if shown := _PAGE.match(page):
        revision = shown[1] or shown[2]
    return Reference(f"{owner}/{name}", None if revision in ("", "main") else revision)
