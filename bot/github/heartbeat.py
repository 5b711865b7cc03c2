"""A URL that some other service expects to be asked for while the watch is alive."""

from __future__ import annotations

import httpx2

_TIMEOUT_S = 10.0


def beat(url: str) -> bool:
    """Whether it answered. Nobody's failure: the service will miss it and say so."""
    try:
        return httpx2.get(url, timeout=_TIMEOUT_S, follow_redirects=True).is_success
    except (httpx2.HTTPError, httpx2.InvalidURL):
        return False
