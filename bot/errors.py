"""Everything that can go wrong for a user: one class per exit code, each with a message and a hint."""

from __future__ import annotations


class BotError(Exception):
    """An error that a person can act on.

    message: one line, what happened and where. hint: what to do next; may be empty.
    """

    exit_code = 1

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


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
