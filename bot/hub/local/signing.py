"""Links that carry their own permission, as object storage has them: signed, and good for an hour."""

from __future__ import annotations

import hashlib
import hmac
import secrets
import time
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import quote, urlencode

from bot.hub.local import disk
from bot.hub.local.errors import HubError

_LIFETIME_S = 3600


class Signer:
    """The key is kept on disk, so links outlive a restart."""

    def __init__(self, path: Path) -> None:
        if not path.exists():
            disk.write_atomic(path, secrets.token_bytes(32), mode=0o600)
        self._key = path.read_bytes()

    def url(self, base: str, method: str, path: str, **values: str) -> str:
        """path: not quoted yet; it is what the signature covers, with the method and all the values."""
        signed = {**values, "expires": str(int(time.time()) + _LIFETIME_S)}
        query = urlencode({**signed, "signature": self._signature(method, path, signed)})
        return f"{base}{quote(path)}?{query}"

    def check(self, method: str, path: str, query: Mapping[str, str]) -> None:
        """Raises 403 when the link was not made here, was changed, or is too old."""
        values = {key: value for key, value in query.items() if key != "signature"}
        expected = self._signature("GET" if method == "HEAD" else method, path, values)
        if not hmac.compare_digest(expected, query.get("signature", "")):
            raise HubError(403, "The link's signature does not match")
        if int(values["expires"]) < time.time():
            raise HubError(403, "The link has expired")

    def _signature(self, method: str, path: str, values: Mapping[str, str]) -> str:
        text = "\n".join([method, path, urlencode(sorted(values.items()))])
        return hmac.new(self._key, text.encode(), hashlib.sha256).hexdigest()
