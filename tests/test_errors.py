"""One boundary around what others wrote: every exception becomes one printable line."""

from __future__ import annotations

import pytest

from bot.errors import BotError, UpstreamError, reason_of, untrusted_input


class PanicException(BaseException):
    """As pyo3 raises it."""


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (KeyError("su"), "KeyError: 'su'"),
        (
            ValueError("Validation error for field 'x':\n  must be > 0"),
            "Validation error for field 'x': must be > 0",
        ),
        (ValueError(), "ValueError"),
        (ZeroDivisionError("division by zero"), "division by zero"),
        (RecursionError("maximum depth"), "RecursionError: maximum depth"),
        (PanicException("no entry found"), "no entry found"),
    ],
)
def test_a_reason_is_one_line_that_says_what_happened(error: BaseException, reason: str) -> None:
    assert reason_of(error) == reason
    with (
        pytest.raises(UpstreamError) as caught,
        untrusted_input(lambda said: UpstreamError(f"config.json: {said}")),
    ):
        raise error
    assert caught.value.message == f"config.json: {reason}"


def test_what_is_not_about_the_input_passes() -> None:
    with pytest.raises(KeyboardInterrupt), untrusted_input(UpstreamError):
        raise KeyboardInterrupt
    original = UpstreamError("known", hint="already said")
    with pytest.raises(UpstreamError) as caught, untrusted_input(UpstreamError):
        raise original
    assert caught.value is original


def test_an_error_carries_no_control_characters_line_breaks_or_bidirectional_overrides() -> None:
    error = BotError("licence \x1b[31mred\x1b[0m\n::error::x \N{RIGHT-TO-LEFT OVERRIDE}", hint="a\r\nb\x07")
    assert (error.message, error.hint) == ("licence [31mred[0m ::error::x", "a b")
    assert str(error) == error.message
