"""JSON objects read strictly, and changed as text: one key at a time, every other byte as it was."""

from __future__ import annotations

import json
from typing import Any

from bot.errors import UpstreamError

_SPACE = " \t\n\r"
_BROKEN = "The file is damaged or was never right; look at it upstream."


def parse_object(content: bytes, *, where: str) -> dict[str, Any]:
    """The JSON object in content.

    Raises UpstreamError for duplicate keys, for NaN, and for anything else than an object.
    """
    try:
        value = json.loads(content.decode(), object_pairs_hook=_no_duplicates, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise UpstreamError(f"{where}: not valid JSON: {error}", hint=_BROKEN) from None
    if not isinstance(value, dict):
        raise UpstreamError(f"{where}: not a JSON object", hint=_BROKEN)
    return value


def set_key(content: bytes, key: str, value: object, *, where: str) -> bytes:
    """The same text with the value of one top-level key replaced, or the key added as the last one.

    A new key is indented like the others. Raises UpstreamError as parse_object does.
    """
    parse_object(content, where=where)
    text = content.decode()
    members, inner_end = _top_level_members(text)
    indent = _indent_of(text, members[0][1]) if members else None
    rendered = _render(value, indent)
    for name, _, value_start, value_end in members:
        if name == key:
            return (text[:value_start] + rendered + text[value_end:]).encode()
    entry = f"{json.dumps(key, ensure_ascii=False)}: {rendered}"
    if not members:
        return (text[:inner_end] + entry + text[inner_end:]).encode()
    last_end = members[-1][3]
    separator = ", " if indent is None else ",\n" + indent
    return (text[:last_end] + separator + entry + text[last_end:]).encode()


def _top_level_members(text: str) -> tuple[list[tuple[str, int, int, int]], int]:
    """(key, key start, value start, value end) of each member, and where the closing brace stands."""
    decoder = json.JSONDecoder()
    position = _skip(text, text.index("{") + 1)
    members = []
    while text[position] != "}":
        key, key_end = decoder.raw_decode(text, position)
        value_start = _skip(text, _skip(text, key_end) + 1)
        _, value_end = decoder.raw_decode(text, value_start)
        members.append((key, position, value_start, value_end))
        position = _skip(text, value_end)
        if text[position] == ",":
            position = _skip(text, position + 1)
    return members, position


def _skip(text: str, position: int) -> int:
    while text[position] in _SPACE:
        position += 1
    return position


def _indent_of(text: str, key_start: int) -> str | None:
    """What stands between the line's start and the first key; None where it shares a line with the brace."""
    before = text[:key_start].rpartition("\n")
    return before[2] if before[1] and not before[2].strip() else None


def _render(value: object, indent: str | None) -> str:
    if indent is None:
        return json.dumps(value, ensure_ascii=False)
    return json.dumps(value, ensure_ascii=False, indent=indent).replace("\n", "\n" + indent)


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members: dict[str, Any] = {}
    for key, value in pairs:
        if key in members:
            raise ValueError(f"key {key!r} stands there twice")
        members[key] = value
    return members


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")
