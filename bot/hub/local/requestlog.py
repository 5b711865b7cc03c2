"""What was asked and what was answered, in memory and as one JSON line each on disk."""

from __future__ import annotations

import dataclasses
import json
import threading
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

_KEPT = 100_000


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestRecord:
    """path: as it came over the wire, still quoted. status: 0 when there was none. bytes_sent: of the body."""

    time: str
    host: Literal["hub", "files"]
    method: str
    path: str
    query: str
    status: int
    bytes_sent: int
    duration_s: float
    user: str | None
    authenticated: bool
    """Whether an Authorization header came with it, valid or not."""
    range: str | None
    fault: bool


class RequestLog:
    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._records: deque[RequestRecord] = deque(maxlen=_KEPT)

    def add(self, record: RequestRecord) -> None:
        line = json.dumps(dataclasses.asdict(record))
        with self._lock:
            self._records.append(record)
            with self.path.open("a", encoding="utf-8") as file:
                file.write(line + "\n")

    @property
    def records(self) -> tuple[RequestRecord, ...]:
        with self._lock:
            return tuple(self._records)

    def clear(self) -> None:
        """Forgets what is in memory; the file stays."""
        with self._lock:
            self._records.clear()
