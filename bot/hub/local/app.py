"""The two applications of a hub, put together from the rooms that hold their routes."""

from __future__ import annotations

from urllib.parse import quote

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from bot.hub.local import (
    admin_routes,
    commit_routes,
    file_routes,
    lfs_routes,
    oauth_routes,
    pages,
    read_routes,
    repo_routes,
)
from bot.hub.local.context import Context, Json
from bot.hub.local.errors import HubError, RepoMovedError


def hub_app(context: Context) -> Starlette:
    rooms = (repo_routes, commit_routes, lfs_routes, oauth_routes, read_routes, file_routes, admin_routes, pages)
    app = Starlette(
        routes=[route for room in rooms for route in room.routes],
        exception_handlers={HubError: _error_answer, RepoMovedError: _moved_answer},
    )
    app.router.redirect_slashes = False
    app.state.context = context
    return app


def files_app(context: Context) -> Starlette:
    app = Starlette(
        routes=[*file_routes.stored_routes, *lfs_routes.upload_routes],
        exception_handlers={HubError: _error_answer},
    )
    app.router.redirect_slashes = False
    app.state.context = context
    return app


def _error_answer(request: Request, error: Exception) -> Response:
    assert isinstance(error, HubError)
    # A header is one line of Latin text, whatever name the message quotes.
    message = " ".join(error.message.encode("ascii", "backslashreplace").decode().split())
    headers = {**error.headers, "X-Error-Message": message}
    if error.code:
        headers["X-Error-Code"] = error.code
    return Json({"error": error.message}, status_code=error.status, headers=headers)


def _moved_answer(request: Request, error: Exception) -> Response:
    assert isinstance(error, RepoMovedError)
    path = request.url.path.replace(f"/{error.old_id}", f"/{quote(error.new_id)}", 1)
    query = f"?{request.url.query}" if request.url.query else ""
    return RedirectResponse(f"{path}{query}", status_code=307)
