"""A row's conversation as every chat template reads it: {role, content}, with the content as one string."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

Row = dict[str, Any]

# Why a conversation is left out; recorded with their numbers.
Reason = Literal["without messages", "without a role", "without text", "refused by the chat template"]

# https://github.com/lm-sys/FastChat/blob/main/docs/commands/data_cleaning.md and the data sets that follow it.
_SHAREGPT: Final = {"role": "from", "content": "value"}
_SHAREGPT_ROLES: Final = {"human": "user", "gpt": "assistant", "chatgpt": "assistant", "bing": "assistant"}
_TEXT_PARTS: Final = (None, "text", "input_text", "output_text")
_SURROGATE: Final = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversation:
    """messages: none if the row cannot be used, for this reason. parts_left_out: of other kinds than text."""

    messages: tuple[Row, ...] = ()
    reason: Reason | None = None
    parts_left_out: int = 0


def conversation_of(value: list[Any]) -> Conversation:
    """{role, content} messages, or those of ShareGPT, {from, value}.

    The text parts of a content, [{"type": "text", "text": …}, …], are joined by line breaks; pictures and sounds
    are left out. A message that calls tools needs no text.
    """
    if not value:
        return Conversation(reason="without messages")
    messages: list[Row] = []
    parts_left_out = 0
    for item in value:
        message = _with_usual_keys(item) if isinstance(item, Mapping) else {}
        role = message.get("role")
        if not isinstance(role, str) or not role.strip():
            return Conversation(reason="without a role")
        text, others = _flattened(message.get("content"))
        if text is None and message.get("tool_calls"):
            text = ""
        if text is None:
            return Conversation(reason="without text")
        messages.append(message | {"content": text})
        parts_left_out += others
    return Conversation(messages=tuple(messages), parts_left_out=parts_left_out)


def text_of(messages: tuple[Row, ...]) -> str:
    """The text alone: without roles, and without the system prompt that conversations may share."""
    return "\n".join(message["content"] for message in messages if message["role"] != "system")


def without_surrogates(text: str) -> tuple[str, int]:
    """The text with U+FFFD for each half of a broken surrogate pair, and their number.

    JSON can hold them ("\\ud83d"); UTF-8, and so every tokenizer, cannot.
    """
    return _SURROGATE.subn("\N{REPLACEMENT CHARACTER}", text)


def messages_without_surrogates(messages: tuple[Row, ...]) -> tuple[tuple[Row, ...], int]:
    mended = [_mended(message) for message in messages]
    return tuple(message for message, _ in mended), sum(count for _, count in mended)


def _with_usual_keys(item: Mapping[str, Any]) -> Row:
    # Columns of a parquet struct that a message does not use are None there.
    message = {key: value for key, value in item.items() if value is not None}
    for usual, other in _SHAREGPT.items():
        if usual not in message and other in message:
            message[usual] = message.pop(other)
    if "from" in item and isinstance(message.get("role"), str):
        message["role"] = _SHAREGPT_ROLES.get(message["role"], message["role"])
    return message


def _flattened(content: object) -> tuple[str | None, int]:
    """The text of a content, None without any; and the number of its other parts."""
    if isinstance(content, str):
        return content, 0
    parts = content if isinstance(content, list) else []
    texts = [text for part in parts if (text := _text_of_part(part)) is not None]
    return "\n".join(texts) if texts else None, len(parts) - len(texts)


def _text_of_part(part: object) -> str | None:
    if isinstance(part, str):
        return part
    text = part.get("text") if isinstance(part, Mapping) and part.get("type") in _TEXT_PARTS else None
    return text if isinstance(text, str) else None


def _mended(value: Any) -> tuple[Any, int]:
    if isinstance(value, str):
        return without_surrogates(value)
    if isinstance(value, list):
        items = [_mended(item) for item in value]
        return [item for item, _ in items], sum(count for _, count in items)
    if isinstance(value, dict):
        keys, values = _mended(list(value)), _mended(list(value.values()))
        return dict(zip(keys[0], values[0], strict=True)), keys[1] + values[1]
    return value, 0
