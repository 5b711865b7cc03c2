"""Collections: lists of repos with a title, in the namespace of a user or an organisation.

https://huggingface.co/docs/hub/collections
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from bot.files import locked, write_atomic
from bot.localhub import protocol
from bot.localhub.access import Identity, require_writer
from bot.localhub.context import Json, context, identity, json_body, open_repo_id, param, text
from bot.localhub.protocol import HubError, parse_repo_type, timestamp
from bot.localhub.store import Store

_MAX_TITLE = 60
Collection = dict[str, Any]


def create(request: Request, body: Mapping[str, Any]) -> Response:
    title, namespace = text(body, "title"), text(body, "namespace")
    require_writer(_known(request), namespace)
    if not 0 < len(title) <= _MAX_TITLE:
        raise protocol.bad_request(f"`title` must have 1 to {_MAX_TITLE} characters")
    store = context(request).store
    with _lock(store):
        found = _read(store)
        slug = _slug(namespace, title)
        if slug in found:
            message = "You already have a collection of this title"
            answer = {"error": message, "slug": slug}
            return Json(answer, status_code=409, headers={"X-Error-Message": message})
        found[slug] = {
            "slug": slug,
            "title": title,
            "owner": {"name": namespace},
            "items": [],
            "lastUpdated": timestamp(),
            "position": len(found),
            "private": bool(body.get("private")),
            "theme": "blue",
            "upvotes": 0,
        }
        _write(store, found)
        return Json(found[slug])


def add_item(request: Request, body: Mapping[str, Any]) -> Response:
    item = body.get("item")
    if not isinstance(item, dict):
        raise protocol.bad_request("`item` is missing")
    kind, item_id, who = parse_repo_type(item.get("type")), text(item, "id"), _known(request)
    store, slug = context(request).store, _path_slug(request)
    with _lock(store):
        found = _read(store)
        collection = _named(found, slug, who)
        require_writer(who, collection["owner"]["name"])
        repo = open_repo_id(context(request), item_id, kind, who).repo
        if any((each["id"], each["type"]) == (repo.repo_id, kind) for each in collection["items"]):
            message = "It is in this collection already"
            return Json({"error": message}, status_code=409, headers={"X-Error-Message": message})
        number = len(collection["items"])
        object_id = hashlib.sha256(f"{slug} {kind} {repo.repo_id}".encode()).hexdigest()[:24]
        collection["items"].append({"_id": object_id, "id": repo.repo_id, "type": kind, "position": number})
        collection["lastUpdated"] = timestamp()
        _write(store, found)
        return Json(collection)


def read(request: Request) -> Response:
    return Json(_named(_read(context(request).store), _path_slug(request), identity(request)))


def _known(request: Request) -> Identity:
    who = identity(request)
    if who is None:
        raise HubError(401, "Invalid username or password.")
    return who


def _named(found: Mapping[str, Collection], slug: str, who: Identity | None) -> Collection:
    collection = found.get(slug)
    if collection is None or (
        collection["private"] and not (who and who.may_write_to(collection["owner"]["name"]))
    ):
        raise HubError(404, "Collection not found")
    return collection


def _path_slug(request: Request) -> str:
    return f"{param(request, 'namespace')}/{param(request, 'slug')}"


def _slug(namespace: str, title: str) -> str:
    """As the Hub's: the title in lower case, and an id."""
    words = re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")
    return f"{namespace}/{words}-{hashlib.sha256(f'{namespace} {title}'.encode()).hexdigest()[:24]}"


def _lock(store: Store) -> Any:
    return locked(store.root / "collections.lock")


def _read(store: Store) -> dict[str, Collection]:
    path = store.root / "collections.json"
    found: dict[str, Collection] = json.loads(path.read_bytes()) if path.is_file() else {}
    return found


def _write(store: Store, found: Mapping[str, Collection]) -> None:
    write_atomic(store.root / "collections.json", json.dumps(found, indent=2).encode())


def _with_json(path: str, work: Any) -> Route:
    async def endpoint(request: Request) -> Response:
        return await run_in_threadpool(work, request, await json_body(request))

    return Route(path, endpoint, methods=["POST"])


routes = [
    _with_json("/api/collections", create),
    _with_json("/api/collections/{namespace}/{slug}/items", add_item),
    Route("/api/collections/{namespace}/{slug}", read, methods=["GET"]),
]
