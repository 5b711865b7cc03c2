"""Everything that can go wrong for a user: one class per exit code, each with a message and a hint."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from bot.redaction import redacted
from bot.text import one_line

_MAX_CHARS = 2000


class BotError(Exception):
    """An error that a person can act on.

    message: one line, what happened and where. hint: what to do next; may be empty. Both may quote upstream, so
    control characters and line breaks are removed, and secrets, which a server may have echoed.
    """

    exit_code = 1

    def __init__(self, message: str, *, hint: str = "") -> None:
        self.message = one_line(redacted(message), _MAX_CHARS)
        self.hint = one_line(redacted(hint), _MAX_CHARS)
        super().__init__(self.message)


class WatchlistError(BotError):
    """The watchlist or the command line asks for something that makes no sense."""

    exit_code = 2


class UpstreamError(BotError):
    """The source repo is missing, gated, incomplete, changed under us, or its licence forbids the job."""

    exit_code = 3


class UnsupportedModelError(BotError):
    """A model that AWQ or inference servers do not support."""

    exit_code = 4


class QuantizationError(BotError):
    """Quantizing or calibrating went wrong: non-finite numbers, broken weights, unusable text."""

    exit_code = 5


class QualityGateError(BotError):
    """The artifact was measured and lost more than the entry allows."""

    exit_code = 6


class PublishError(BotError):
    """The target repo cannot be written, or what is there is not what was sent."""

    exit_code = 7


class EnvironmentProblem(BotError):
    """This machine is not fit for the job: disk, memory, GPU, versions, endpoint."""

    exit_code = 8


ERRORS_BY_EXIT_CODE: dict[int, type[BotError]] = {
    error.exit_code: error
    for error in (
        WatchlistError,
        UpstreamError,
        UnsupportedModelError,
        QuantizationError,
        QualityGateError,
        PublishError,
        EnvironmentProblem,
    )
}


def reason_of(error: BaseException) -> str:
    """What an error says, on one line; with its type where that alone says nothing: KeyError('su')."""
    said = one_line(redacted(str(error)), _MAX_CHARS)
    if not said or isinstance(error, (LookupError, MemoryError, RecursionError)):
        return f"{type(error).__name__}: {said}".removesuffix(": ")
    return said


@contextmanager
def untrusted_input(make: Callable[[str], BotError]) -> Iterator[None]:
    """Around code that reads what upstream or a user wrote: whatever it raises becomes make(reason).

    A BotError stays as it is.
    """
    try:
        yield
    except BotError:
        raise
    # The libraries raise anything for a bad file, even bare Exception.
    except Exception as error:
        raise make(reason_of(error)) from error
    except BaseException as error:
        # A panic of a library in Rust is no Exception: https://docs.rs/pyo3/latest/pyo3/panic/struct.PanicException.html
        if type(error).__name__ != "PanicException":
            raise
        raise make(reason_of(error)) from error
