"""A model's chat template. It is code that upstream wrote: it is tried first, and renders within limits."""

from __future__ import annotations

import datetime
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from transformers.utils import chat_template_utils

from bot.calibration.conversations import Row
from bot.calibration.limits import LimitError, limited, reproducible
from bot.checkpoint.repo_files import CHAT_TEMPLATE, TOKENIZER_CONFIG
from bot.errors import QuantizationError, untrusted_input

# What every template must be able to render.
QUESTION: Final = ({"role": "user", "content": "What is 2 + 2?"},)

_CPU_S: Final = 3.0  # for one conversation; a template needs about a millisecond
_CPU_S_ON_AVERAGE: Final = 0.1
_MEMORY_BYTES: Final = 512 << 20
# Beside a conversation: templates add instructions, some with the tools that the model was trained on.
_MOST_CHARACTERS: Final = 1_000_000
_MOST_COPIES: Final = 20
_NAMED_TEMPLATES: Final = "additional_chat_templates"


class RefusedError(QuantizationError):
    """A template that works does not take this conversation. reason: in the template's own words."""

    def __init__(self, origin: str, reason: str) -> None:
        super().__init__(
            f"{origin}: the model's chat template refuses the conversation: {reason}",
            hint="Leave the conversation out, or calibrate on plain text.",
        )
        self.reason = reason


class ChatTemplate:
    """Renders conversations; the clock and random numbers are fixed.

    folder: for messages. Raises QuantizationError when the template cannot render a simple question: then it is
    broken, and no conversation is at fault.
    """

    def __init__(self, tokenizer: Any, folder: Path, *, date: datetime.date) -> None:
        self._tokenizer = tokenizer
        self._where = folder / _file_of(folder)
        self._date = date
        self._rendered = 0
        self._spent_s = 0.0
        self._as_parts = self._reads_parts()

    def render(self, messages: Sequence[Row], origin: str, *, for_answer: bool = False) -> str:
        """for_answer: up to where the model's answer begins.

        Raises RefusedError when the template refuses the messages, QuantizationError for a broken limit.
        """
        return self._render(messages, origin, as_parts=self._as_parts, for_answer=for_answer)

    def _reads_parts(self) -> bool:
        """Whether a content is a list of parts to it, and no string.

        Those of some vision-language models drop a string without an error.
        """
        problems: list[str] = []
        for as_parts in (False, True):
            try:
                text = self._render(QUESTION, "a simple question", as_parts=as_parts)
            except RefusedError as error:
                problems.append(error.reason)
            else:
                if QUESTION[0]["content"] in text:
                    return as_parts
                problems.append("leaves out what the user says")
        raise self._broken("a simple question", problems[0])

    def _render(self, messages: Sequence[Row], origin: str, *, as_parts: bool, for_answer: bool = False) -> str:
        started = time.process_time()
        shown = [_with_parts(message) for message in messages] if as_parts else list(messages)
        try:
            # A template may refuse by any error, such as one for a key that a message does not have.
            with (
                untrusted_input(lambda reason: RefusedError(origin, reason)),
                limited(cpu_s=_CPU_S, memory_bytes=_MEMORY_BYTES),
                reproducible(),
            ):
                self._fix_clock()
                # transformers renders it in jinja2's ImmutableSandboxedEnvironment.
                text = str(
                    self._tokenizer.apply_chat_template(shown, tokenize=False, add_generation_prompt=for_answer)
                )
            _check_length(text, messages)
        except LimitError as error:
            raise self._broken(origin, error.message) from None
        self._count(time.process_time() - started, origin)
        return text

    def _fix_clock(self) -> None:
        """Templates may write today's date. transformers takes no other clock, but it compiles each text once."""

        def strftime_now(form: str) -> str:
            return datetime.datetime.combine(self._date, datetime.time()).strftime(form)

        compiled = chat_template_utils._compile_jinja_template(self._tokenizer.get_chat_template())
        compiled.globals["strftime_now"] = strftime_now

    def _count(self, spent_s: float, origin: str) -> None:
        self._rendered += 1
        self._spent_s += spent_s
        if self._spent_s > 2 * _CPU_S + _CPU_S_ON_AVERAGE * self._rendered:
            raise self._broken(origin, f"{self._rendered} conversations took {self._spent_s:.0f} s")

    def _broken(self, origin: str, reason: str) -> QuantizationError:
        return QuantizationError(
            f"{self._where}: the chat template fails on {origin}: {reason}",
            hint="The template itself is broken: report it to the model's authors.",
        )


def _check_length(text: str, messages: Sequence[Row]) -> None:
    said = sum(len(message["content"]) for message in messages)
    if len(text) > _MOST_CHARACTERS + _MOST_COPIES * said:
        raise LimitError(f"makes {len(text):,} characters of {said:,}")


def _with_parts(message: Row) -> Row:
    return message | {"content": [{"type": "text", "text": message["content"]}]}


def _file_of(folder: Path) -> str:
    """The file or folder that the template comes from: transformers takes the first that is there."""
    names = (CHAT_TEMPLATE, _NAMED_TEMPLATES)
    return next((name for name in names if (folder / name).exists()), TOKENIZER_CONFIG)
