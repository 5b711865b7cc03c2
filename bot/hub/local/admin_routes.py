"""`/_local/`: faults and the request log for another process. Not a part of the Hub's API.

Every request must carry the header `X-Local-Hub`: a page in somebody's browser cannot send it to us unasked.
"""

from __future__ import annotations

import dataclasses

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from bot.hub.local.context import Json, context, json_body
from bot.hub.local.errors import forbidden
from bot.hub.local.faults import Fault

HEADER = "X-Local-Hub"


async def faults(request: Request) -> Response:
    _require_header(request)
    known = context(request).faults
    if request.method == "POST":
        known.add(Fault.from_json(await json_body(request)))
    elif request.method == "DELETE":
        known.clear()
    return Json([dataclasses.asdict(fault) for fault in known.pending])


async def requests(request: Request) -> Response:
    _require_header(request)
    log = context(request).log
    if request.method == "DELETE":
        log.clear()
    return Json([dataclasses.asdict(record) for record in log.records])


def _require_header(request: Request) -> None:
    if HEADER not in request.headers:
        raise forbidden(f"The header {HEADER} is missing")


routes = [
    Route("/_local/faults", faults, methods=["GET", "POST", "DELETE"]),
    Route("/_local/requests", requests, methods=["GET", "DELETE"]),
]
