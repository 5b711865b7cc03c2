"""How long work tells how far it is."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """How long work tells how far it is: what it is doing, and how much of how many units are done."""

    def __call__(self, what: str, done: int, total: int, unit: str) -> None: ...


def no_progress(what: str, done: int, total: int, unit: str) -> None:
    """For callers that do not want to watch."""
