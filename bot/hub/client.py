"""The HTTP client of all requests, huggingface_hub's own among them: with timeouts, and without its retries."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import Any

import httpx2
from huggingface_hub import set_client_factory
from huggingface_hub.utils import hf_raise_for_status
from huggingface_hub.utils._http import hf_request_event_hook

# Answers after which the same request may succeed.
RETRIED = (408, 429, 500, 502, 503, 504)
CONNECT_S = 20.0
SILENCE_S = 60.0
WORK_S = 600.0  # how long a Hub may take for a commit, or to join the parts of a large file


class UnansweredError(httpx2.RequestError):
    """A request without an answer, for __cause__. huggingface_hub would retry the cause itself."""


class _Client(httpx2.Client):
    """Like huggingface_hub's own client, with timeouts, and without its retries; a broken download it resumes."""

    def __init__(self) -> None:
        super().__init__(
            event_hooks={
                "request": [hf_request_event_hook, _set_timeouts],
                "response": [_note_clock, _raise_if_retried],
            },
            follow_redirects=True,
            timeout=None,
        )

    def send(self, request: httpx2.Request, **options: Any) -> httpx2.Response:
        try:
            return super().send(request, **options)
        except httpx2.TransportError as error:
            raise UnansweredError(str(error), request=request) from error


def now() -> datetime:
    """By the Hub's clock, as far as its answers have shown it."""
    return datetime.now(UTC) + _clock[0]


_clock = [timedelta()]  # how far the Hub's is ahead of ours


def _note_clock(response: httpx2.Response) -> None:
    """Files come from caches, which repeat the date of the first answer."""
    if not response.request.url.path.startswith("/api/"):
        return
    try:
        shown = parsedate_to_datetime(response.headers["Date"])
    except (KeyError, ValueError):
        return
    _clock[0] = shown.astimezone(UTC) - datetime.now(UTC)


def _raise_if_retried(response: httpx2.Response) -> None:
    if response.status_code in RETRIED:
        response.read()
        hf_raise_for_status(response)


def _set_timeouts(request: httpx2.Request) -> None:
    """huggingface_hub waits without limit for an answer: by default, and in `model_info` always."""
    answer_s = SILENCE_S if request.method in ("GET", "HEAD") else WORK_S
    limits = {"connect": CONNECT_S, "read": answer_s, "write": SILENCE_S, "pool": SILENCE_S}
    asked = {name: limit for name, limit in request.extensions.get("timeout", {}).items() if limit is not None}
    request.extensions["timeout"] = limits | asked


set_client_factory(_Client)
