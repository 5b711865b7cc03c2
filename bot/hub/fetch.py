"""Read from a Hub without storing anything: small files, ranges, streams of large files, many at once."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import httpx2
from huggingface_hub import HfApi, hf_hub_url
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status

from bot.files import CHUNK_BYTES
from bot.hub.client import SILENCE_S
from bot.hub.session import call, status_of, workers
from bot.records import HubFile, OnBytes, ignore_bytes

MAX_SMALL_FILE_BYTES = 20_000_000
_FILE_PAGE = re.compile(r"/([\w.-]+/[\w.-]+)/resolve/", re.ASCII)
_WORKERS = 8

Item = TypeVar("Item")
Result = TypeVar("Result")


def side_by_side(function: Callable[[Item], Result], items: Iterable[Item]) -> tuple[Result, ...]:
    with workers(_WORKERS) as pool:
        return tuple(pool.map(function, items))


def read_small_file(api: HfApi, repo_id: str, path: str, *, revision: str) -> bytes:
    """One GET without a HEAD. Raises ValueError when the file is larger than MAX_SMALL_FILE_BYTES."""
    return read_and_identify(api, repo_id, path, revision=revision)[0]


def read_and_identify(api: HfApi, repo_id: str, path: str, *, revision: str) -> tuple[bytes, str]:
    """Like read_small_file, and `id_of_repo`."""

    def ask() -> tuple[bytes, str]:
        content = bytearray()
        with _opened(api, repo_id, path, revision) as response:
            for chunk in response.iter_bytes():
                content += chunk
                if len(content) > MAX_SMALL_FILE_BYTES:
                    raise ValueError(f"{path} is larger than {MAX_SMALL_FILE_BYTES:,} bytes")
            return bytes(content), id_of_repo(response, repo_id)

    return call(ask)


def id_of_repo(response: httpx2.Response | None, asked: str) -> str:
    """The id of the repo that answered a request for a file: the Hub redirects from a repo's earlier names."""
    hops = [] if response is None else [hop.url for hop in (*response.history, response)]
    pages = (_FILE_PAGE.match(url.path) for url in hops if url.host == hops[0].host and url.port == hops[0].port)
    return next((page[1] for page in reversed([*pages]) if page), asked)


def read_range(api: HfApi, repo_id: str, path: str, *, revision: str, start: int, size: int) -> bytes:
    """`size` bytes from `start`, or fewer at the end of the file."""

    def ask() -> bytes:
        content = bytearray()
        wanted = f"bytes={start}-{start + size - 1}"
        with _opened(api, repo_id, path, revision, {"Range": wanted, "Accept-Encoding": "identity"}) as response:
            # A server may ignore the range and send the whole file:
            # https://www.rfc-editor.org/rfc/rfc9110#section-14.2
            skip = start if response.status_code == 200 else 0
            for chunk in response.iter_bytes(CHUNK_BYTES):
                content += chunk
                if len(content) >= skip + size:
                    break
        return bytes(content[skip : skip + size])

    return call(ask)


def remote_sha256(
    api: HfApi, repo_id: str, path: str, *, revision: str, on_bytes: OnBytes = ignore_bytes
) -> str | None:
    """sha256 of a file's bytes as the Hub serves them, streamed; None when the file is missing."""
    counted = 0

    def ask() -> str | None:
        nonlocal counted
        on_bytes(-counted)  # a retry starts from the first byte
        counted = 0
        digest = hashlib.sha256()
        try:
            with _opened(api, repo_id, path, revision) as response:
                for chunk in response.iter_bytes(CHUNK_BYTES):
                    digest.update(chunk)
                    on_bytes(len(chunk))
                    counted += len(chunk)
        except HfHubHTTPError as error:
            # A repo's listing may name a file that its storage does not have.
            if status_of(error) == 404:
                return None
            raise
        return digest.hexdigest()

    return call(ask)


def git_blob_id(content: bytes) -> str:
    """As git and the Hub name a file that is no large one: https://git-scm.com/book/en/v2/Git-Internals-Git-Objects"""
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def files_at(api: HfApi, repo_id: str, *, revision: str = "main", repo_type: str = "model") -> tuple[HubFile, ...]:
    """Every file of a repo at a revision, from its tree."""

    def ask() -> tuple[HubFile, ...]:
        tree = api.list_repo_tree(repo_id, recursive=True, revision=revision, repo_type=repo_type)
        return tuple(_hub_file(item) for item in tree if isinstance(item, RepoFile))

    return call(ask)


def _hub_file(item: RepoFile) -> HubFile:
    content_hash = item.lfs.sha256 if item.lfs else item.blob_id
    return HubFile(path=item.path, size_bytes=item.size, content_hash=content_hash)


@contextmanager
def _opened(
    api: HfApi, repo_id: str, path: str, revision: str, more_headers: dict[str, str] | None = None
) -> Iterator[httpx2.Response]:
    url = hf_hub_url(repo_id, path, revision=revision, endpoint=api.endpoint)
    headers = build_hf_headers(token=api.token) | (more_headers or {})
    with get_session().stream("GET", url, headers=headers, follow_redirects=True, timeout=SILENCE_S) as response:
        if response.status_code >= 400:
            response.read()
        hf_raise_for_status(response)
        yield response
