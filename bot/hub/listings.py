"""Which model repos an author has, and which commit each is at: one listing per author, in pages."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC
from functools import partial
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import httpx2
from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.hf_api import ModelInfo
from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status

from bot.hub.client import SILENCE_S
from bot.hub.fetch import side_by_side
from bot.hub.session import Hub, HubFailsError, UnreadableError, call, status_of
from bot.hub.sources import REPO_ID
from bot.records import AuthorListing, Head, ListedRepo

# https://huggingface.co/docs/huggingface_hub/package_reference/hf_api#huggingface_hub.HfApi.list_models.expand
_OF_A_HEAD = ("disabled", "gated", "private", "sha")
_OF_A_REPO = ("config", "createdAt", "downloads", "library_name", "safetensors", "tags")
# A page of the Hub has up to 1,000 repos: https://huggingface.co/docs/hub/api#get-apimodels
_MOST_PAGES = 100
_MOST_REPOS = 50_000  # of one author, in memory
COMMIT = re.compile(r"[0-9a-f]{40}")

# Tags of quantized repos, those that name a method first.
_METHODS = ("awq", "gptq", "fp8", "bitsandbytes", "compressed-tensors", "exl2", "4-bit", "8-bit")


def read_authors(
    hub: Hub, authors: Iterable[str], *, pages: Mapping[str, int] | None = None
) -> tuple[AuthorListing, ...]:
    """Every author's repos, each author once whatever the case of its name. One API call per page.

    pages: other authors, in lower case, of whom nothing but heads is wanted, and how many pages of their lists may
    be read for that. They come last.
    """
    named: dict[str, str] = {}
    for author in authors:
        named.setdefault(author.lower(), author)
    asked = [(author, 0) for author in named.values()]
    asked += [(author, most) for author, most in (pages or {}).items() if author not in named]
    return side_by_side(lambda item: _listing(hub, item[0], heads_in=item[1]), asked)


@dataclass(slots=True)
class _Read:
    """What was read of a list so far, by id."""

    repos: dict[str, ListedRepo] = field(default_factory=dict)
    heads: dict[str, Head] = field(default_factory=dict)
    pages: int = 0
    unread: bool = False


def _listing(hub: Hub, author: str, *, heads_in: int) -> AuthorListing:
    """heads_in: how many pages may be read for heads alone; 0: the whole list is wanted.

    All repos, or the problem: part of a list is never taken for all of it. A head in a part of it is one.
    """
    read = _Read()
    problem = _problem_of(hub.reader, author, read, heads_in)
    if problem and not heads_in:
        read.repos.clear()
    if problem and heads_in:
        said = "%s: its list of repos ends on page %d (%s), so models that are not on it are asked one by one"
        logging.getLogger("awq_bot").warning(said, author, read.pages + 1, problem)
    return AuthorListing(
        author=author,
        repos=tuple(read.repos.values()),
        problem=problem,
        heads=tuple(read.heads.values()),
        pages=read.pages,
        unread=read.unread,
    )


def _problem_of(api: HfApi, author: str, read: _Read, heads_in: int) -> str | None:
    try:
        _fill(api, author, read, heads_in)
    except HfHubHTTPError as error:
        return None if status_of(error) == 404 else f"the Hub answers {status_of(error)}"
    except HubFailsError as error:
        return error.message
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        # huggingface_hub fails on unexpected types, such as a date that is none.
        return f"its list cannot be read: {type(error).__name__}"
    if not heads_in and read.unread:
        return f"it has more than {len(read.repos):,} repos"
    return None


def _fill(api: HfApi, author: str, read: _Read, heads_in: int) -> None:
    """By id: a repo that is created meanwhile moves another one to the next page, which lists it again."""
    expand = _OF_A_HEAD if heads_in else (*_OF_A_HEAD, *_OF_A_REPO)
    for page, has_next in _pages(api, author, expand):
        read.pages += 1
        named = [item for item in page if isinstance(item.get("id"), str) and REPO_ID.fullmatch(item["id"])]
        read.heads |= {item["id"]: head for item in named if (head := _head(item))}
        if not heads_in:
            read.repos |= {item["id"]: _repo(_info(item)) for item in named}
        read.unread = has_next
        if read.pages >= (heads_in or _MOST_PAGES) or max(len(read.repos), len(read.heads)) >= _MOST_REPOS:
            return


def _pages(api: HfApi, author: str, expand: Iterable[str]) -> Iterator[tuple[list[dict[str, Any]], bool]]:
    """Each page, and whether there is another one. A page that fails is asked for again alone."""
    asked: list[tuple[str, str]] = [
        ("author", author),
        ("sort", "createdAt"),
        *(("expand", key) for key in expand),
    ]
    while asked:
        page, asked = call(partial(_page, api, tuple(asked)))
        yield page, bool(asked)


def _page(api: HfApi, query: tuple[tuple[str, str], ...]) -> tuple[list[dict[str, Any]], list[tuple[str, str]]]:
    """The repos of a page, and the query of the next one; empty after the last."""
    url, headers = f"{api.endpoint}/api/models", build_hf_headers(token=api.token)
    response = get_session().get(url, params=[*query], headers=headers, timeout=SILENCE_S)
    hf_raise_for_status(response)
    page = response.json()
    if not (isinstance(page, list) and all(isinstance(item, dict) for item in page)):
        raise UnreadableError("a list of repos is none")
    return page, _next_query(response)


def _next_query(response: httpx2.Response) -> list[tuple[str, str]]:
    """Of the Link header nothing but the query is used: the token is for our endpoint alone."""
    url = response.links.get("next", {}).get("url")
    return parse_qsl(urlsplit(url).query) if url else []


def _head(item: Mapping[str, Any]) -> Head | None:
    """None where the list does not show all of it, or in other types than the Hub's."""
    sha, gated, private = item.get("sha"), item.get("gated"), item.get("private")
    is_commit = isinstance(sha, str) and COMMIT.fullmatch(sha)
    if not is_commit or not isinstance(private, bool) or gated not in (False, "auto", "manual"):
        return None
    return Head(
        repo_id=item["id"],
        sha=str(sha),
        gated=gated or None,
        private=private,
        disabled=bool(item.get("disabled")),
    )


def _info(item: dict[str, Any]) -> ModelInfo:
    # Its constructor has no annotations.
    return ModelInfo(**item)  # type: ignore[no-untyped-call]


def _repo(info: ModelInfo) -> ListedRepo:
    """Sizes and types of what others wrote into their files are not trusted."""
    config = info.config if isinstance(info.config, dict) else {}
    model_type, tags = config.get("model_type"), _texts(info.tags)
    created = info.created_at.astimezone(UTC).replace(microsecond=0) if info.created_at else None
    total = getattr(info.safetensors, "total", None)
    return ListedRepo(
        repo_id=info.id,
        created=created.isoformat().replace("+00:00", "Z") if created else "",
        downloads=info.downloads if isinstance(info.downloads, int) else 0,
        parameters=total if isinstance(total, int) else None,
        architectures=_texts(config.get("architectures")),
        model_type=model_type if isinstance(model_type, str) else None,
        quantized=_quantized(config, tags),
        library=info.library_name if isinstance(info.library_name, str) else None,
        tags=tags,
        gated=bool(info.gated),
        private=bool(info.private),
    )


def _quantized(config: dict[str, Any], tags: tuple[str, ...]) -> str:
    """The method that the config names, or the tag by which the Hub says so."""
    quantization = config.get("quantization_config")
    if isinstance(quantization, dict):
        return str(quantization.get("quant_method") or "some method")
    found = next((method for method in _METHODS if method in tags), "")
    return found or next((tag for tag in tags if tag.startswith("base_model:quantized:")), "")


def _texts(value: object) -> tuple[str, ...]:
    return tuple(item for item in value if isinstance(item, str)) if isinstance(value, list) else ()
