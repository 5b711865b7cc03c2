"""Workflow commands: lines on stdout that the runner obeys. Built here, printed by the one who may print."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from typing import Literal

from bot.github.environment import Actions, known_secrets, redacted

Level = Literal["error", "warning", "notice"]

_LONGEST_MESSAGE = 4000  # characters; GitHub cuts at 4096


class Commands:
    """The commands of one step. While it is open the runner obeys nothing else that is printed.

    What a stranger called a model, and what a child process prints, may look like a command.
    """

    def __init__(self, actions: Actions) -> None:
        self._inside = actions.inside
        self._end = secrets.token_hex(16)

    def opening(self) -> Iterator[str]:
        """Tokens are masked first, so that no later line can show one."""
        if self._inside:
            yield from (f"::add-mask::{_data(secret)}" for secret in known_secrets())
            yield f"::stop-commands::{self._end}"

    def annotation(
        self, level: Level, message: str, *, title: str = "", file: str = "", line: int = 0
    ) -> Iterator[str]:
        if self._inside:
            yield f"::{self._end}::"
            yield annotation(level, message, title=title, file=file, line=line)
            yield f"::stop-commands::{self._end}"

    def closing(self) -> Iterator[str]:
        if self._inside:
            yield f"::{self._end}::"


def annotation(level: Level, message: str, *, title: str = "", file: str = "", line: int = 0) -> str:
    """`::error file=…,line=…,title=…::message`, on one line whatever the texts hold."""
    properties = {"file": file, "line": str(line) if line else "", "title": redacted(title)}
    shown = ",".join(f"{name}={_property(value)}" for name, value in properties.items() if value)
    return f"::{level}{' ' + shown if shown else ''}::{_data(redacted(message)[:_LONGEST_MESSAGE])}"


def _data(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")
