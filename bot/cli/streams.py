"""What is printed and logged, by this process and its libraries: no secrets, and no commands to a runner."""

from __future__ import annotations

import io
import logging
import sys
import threading
import traceback
from types import TracebackType
from typing import Any, TextIO, cast

from bot.redaction import redacted
from bot.text import printable, without_commands


class LibraryOutput:
    """stdout or stderr for libraries, which quote upstream. The consoles write to the stream itself."""

    def __init__(self, stream: TextIO) -> None:
        self.rich_proxied_file = stream  # where rich looks for it

    def write(self, text: str) -> int:
        safe = "\r".join(map(printable, redacted(text).split("\r")))
        self.rich_proxied_file.write(without_commands(safe))
        return len(text)

    def writelines(self, lines: Any) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.rich_proxied_file, name)


class RedactedRecord(logging.LogRecord):
    """A log record without secrets, whichever handler formats it: some are older than our streams."""

    def __init__(self, *fields: Any, **more: Any) -> None:
        super().__init__(*fields, **more)
        if self.exc_info and self.exc_info[1] is not None:
            self.exc_text = formatted(self.exc_info[1])  # what a Formatter prints, instead of formatting exc_info

    def getMessage(self) -> str:  # noqa: N802 - logging's name
        return redacted(super().getMessage())


def prepare_streams() -> None:
    """Called before anything is printed; again in the same process it changes nothing."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # Where the locale, or PYTHONIOENCODING, is not UTF-8, and for file names that are not UTF-8.
            stream.reconfigure(errors="backslashreplace")
    if not isinstance(sys.stdout, LibraryOutput):
        sys.stdout = cast(TextIO, LibraryOutput(sys.stdout))
    if not isinstance(sys.stderr, LibraryOutput):
        sys.stderr = cast(TextIO, LibraryOutput(sys.stderr))
    logging.setLogRecordFactory(RedactedRecord)
    # Python writes a traceback piece by piece, and a secret may be in two of them. Others' hooks stay.
    if sys.excepthook is sys.__excepthook__:
        sys.excepthook = _print_error
    if threading.excepthook is threading.__excepthook__:
        threading.excepthook = _print_error_of_thread
    if sys.unraisablehook is sys.__unraisablehook__:
        sys.unraisablehook = _print_unraisable


def write_unchanged(text: str) -> None:
    """To stdout, for what is redacted already, or has to name a secret: a mask for GitHub, a local Hub's token."""
    stream = getattr(sys.stdout, "rich_proxied_file", sys.stdout)
    stream.write(text)
    stream.flush()  # in order with the output of child processes


def formatted(error: BaseException) -> str:
    """Its traceback, without secrets."""
    return redacted("".join(traceback.format_exception(error))).rstrip("\n")


def _print_error(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    sys.stderr.write(f"{formatted(error)}\n")


def _print_error_of_thread(ended: threading.ExceptHookArgs) -> None:
    if ended.exc_value is not None and not isinstance(ended.exc_value, SystemExit):
        sys.stderr.write(f"in a thread: {formatted(ended.exc_value)}\n")


def _print_unraisable(ended: Any) -> None:
    said = formatted(ended.exc_value) if ended.exc_value is not None else ended.exc_type.__name__
    sys.stderr.write(f"{ended.err_msg or 'ignored'}: {said}\n")
