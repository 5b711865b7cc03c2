"""Which model repos an author has: one listing per author, in pages."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC
from typing import Any

from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.hf_api import ExpandModelProperty_T, ModelInfo

from bot.hub.fetch import side_by_side
from bot.hub.session import Hub, HubFailsError, call, status_of
from bot.hub.sources import REPO_ID
from bot.records import AuthorListing, ListedRepo

# https://huggingface.co/docs/huggingface_hub/package_reference/hf_api#huggingface_hub.HfApi.list_models.expand
_EXPAND: list[ExpandModelProperty_T] = [
    "config",
    "createdAt",
    "downloads",
    "gated",
    "library_name",
    "private",
    "safetensors",
    "tags",
]

# Tags of quantized repos, those that name a method first.
_METHODS = ("awq", "gptq", "fp8", "bitsandbytes", "compressed-tensors", "exl2", "4-bit", "8-bit")


def read_authors(hub: Hub, authors: Iterable[str]) -> tuple[AuthorListing, ...]:
    """Every author's repos, each author once whatever the case of its name. One API call per page."""
    named: dict[str, str] = {}
    for author in authors:
        named.setdefault(author.lower(), author)
    return side_by_side(lambda author: _listing(hub, author), named.values())


def _listing(hub: Hub, author: str) -> AuthorListing:
    """All of its repos, or the problem: part of a list is never taken for all of it."""
    try:
        found = call(lambda: _listed(hub.reader, author))
    except HfHubHTTPError as error:
        if status_of(error) == 404:
            return AuthorListing(author=author)
        return AuthorListing(author=author, problem=f"the Hub answers {status_of(error)}")
    except HubFailsError as error:
        return AuthorListing(author=author, problem=error.message)
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        # huggingface_hub fails on unexpected types, such as a date that is none.
        return AuthorListing(author=author, problem=f"its list cannot be read: {type(error).__name__}")
    return AuthorListing(author=author, repos=tuple(found.values()))


def _listed(api: HfApi, author: str) -> dict[str, ListedRepo]:
    """By id: a repo that is created meanwhile moves another one to the next page, which lists it again."""
    listed = api.list_models(author=author, sort="created_at", expand=_EXPAND)
    return {info.id: _repo(info) for info in listed if REPO_ID.fullmatch(info.id)}


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
