"""How long-running work reports its progress."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Protocol

# Called with the number of bytes that were just read; negative when they will be read again.
OnBytes = Callable[[int], None]


class Progress(Protocol):
    """what: a label such as `pull lab/Tiny`; done and total: in `unit`, which is "B" for bytes."""

    def __call__(self, what: str, done: int, total: int, unit: str) -> None: ...


def no_progress(what: str, done: int, total: int, unit: str) -> None:
    """For callers that show nothing."""


def byte_counter(progress: Progress, what: str, total: int) -> OnBytes:
    """A callback, safe to call from several threads, that adds up the bytes and reports the sum."""
    lock = threading.Lock()
    counted = reported = 0

    def count(size_bytes: int) -> None:
        nonlocal counted, reported
        with lock:
            counted += size_bytes
            # A file on a server may be longer than its listing says.
            done = min(counted, total)
            if done != reported:
                reported = done
                progress(what, done, total, "B")

    return count


def ignore_bytes(size_bytes: int) -> None:
    """The counter of callers that show nothing."""
