"""Failures on request: what a network and a busy server do to a client, made repeatable."""

from __future__ import annotations

import re
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from bot.hub.local.errors import bad_request


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """What happens to the next `times` requests that match, after letting `skip` of them pass.

    method, path: regular expressions, the first against the whole method, the second found anywhere in the
    path as it came over the wire. times: None is for ever.
    """

    path: str = ""
    method: str = ".*"
    times: int | None = 1
    skip: int = 0
    delay_s: float = 0.0
    status: int | None = None
    """Answered instead of doing anything."""
    headers: Mapping[str, str] = field(default_factory=dict)
    """For the answer with `status`, e.g. Retry-After."""
    body: str = ""
    cut_after_bytes: int | None = None
    """The connection closes after so many bytes of the answer's body."""
    lose_answer: bool = False
    """The request is carried out, then the connection closes without an answer."""

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Fault:
        try:
            fault = cls(**fields)
            re.compile(fault.path)
            re.compile(fault.method)
        except (TypeError, re.error) as error:
            raise bad_request(f"Not a fault: {error}") from None
        return fault

    def matches(self, method: str, path: str) -> bool:
        return re.fullmatch(self.method, method) is not None and re.search(self.path, path) is not None


class Faults:
    """Every fault keeps its own count; of several that match, the one added first is taken."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: list[tuple[Fault, int]] = []

    def add(self, fault: Fault) -> None:
        with self._lock:
            self._counts.append((fault, 0))

    def clear(self) -> None:
        with self._lock:
            self._counts.clear()

    @property
    def pending(self) -> tuple[Fault, ...]:
        """The faults that will still happen to somebody."""
        with self._lock:
            return tuple(fault for fault, seen in self._counts if _left(fault, seen))

    def take(self, method: str, path: str) -> Fault | None:
        with self._lock:
            for position, (fault, seen) in enumerate(self._counts):
                if _left(fault, seen) and fault.matches(method, path):
                    self._counts[position] = (fault, seen + 1)
                    if seen >= fault.skip:
                        return fault
        return None


def _left(fault: Fault, seen: int) -> bool:
    return fault.times is None or seen < fault.skip + fault.times
