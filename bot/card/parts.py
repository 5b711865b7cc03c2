"""A card, which anybody may have written, as its parts: metadata values, lines of text, blocks of code."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

import yaml

MAX_CARD_BYTES = 200_000  # the longest cards of awq-bot have a tenth
_MAX_LINES = 5000
_MAX_VALUES = 2000
_MAX_DEPTH = 30
_FENCE = re.compile(r" {0,3}(```+|~~~+)")


class UnreadableCardError(Exception):
    """Why a file is no card, on one line."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Value:
    """A scalar of the metadata. path: such as `model-index[0].name`; tag: its YAML type."""

    path: str
    text: str
    tag: str
    line: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Element:
    """A line of text, or a block of code with its fences. line: its first, from 1. section: the heading above."""

    line: int
    text: str
    is_code: bool
    section: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    values: tuple[Value, ...]
    elements: tuple[Element, ...]


def read_card(content: bytes) -> Parts:
    """Raises UnreadableCardError."""
    if len(content) > MAX_CARD_BYTES:
        raise UnreadableCardError(f"it has {len(content):,} bytes, more than any card of awq-bot")
    try:
        text = content.decode()
    except UnicodeDecodeError:
        raise UnreadableCardError("it is not UTF-8 text") from None
    if "\0" in text:
        raise UnreadableCardError("it is not text")
    lines = text.removeprefix("\ufeff").replace("\r\n", "\n").split("\n")
    if len(lines) > _MAX_LINES:
        raise UnreadableCardError(f"it has {len(lines):,} lines, more than any card of awq-bot")
    if lines[0].rstrip() != "---":
        raise UnreadableCardError("it has no metadata: its first line is not ---")
    end = next((number for number, line in enumerate(lines[1:], 1) if line.rstrip() == "---"), None)
    if end is None:
        raise UnreadableCardError("its metadata has no end: no second line is ---")
    values = tuple(_values("\n".join(lines[1:end]) + "\n"))
    return Parts(values=values, elements=tuple(_elements(lines[end + 1 :], end + 2)))


def _values(text: str) -> Iterator[Value]:
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f" in line {mark.line + 2}" if mark is not None else ""
        raise UnreadableCardError(f"its metadata is not YAML{where}") from None
    if not isinstance(node, yaml.MappingNode):
        raise UnreadableCardError("its metadata is no mapping of keys to values")
    for count, value in enumerate(_scalars(node, "", 0)):
        if count >= _MAX_VALUES:
            raise UnreadableCardError(f"its metadata has more than {_MAX_VALUES:,} values")
        yield value


def _scalars(node: yaml.Node, path: str, depth: int) -> Iterator[Value]:
    """Aliases are walked like what they stand for; the count of values bounds that."""
    if depth > _MAX_DEPTH:
        raise UnreadableCardError("its metadata is nested too deeply")
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            name = str(key.value) if isinstance(key, yaml.ScalarNode) else "?"
            yield from _scalars(value, f"{path}.{name}" if path else name, depth + 1)
        is_empty = not node.value
    elif isinstance(node, yaml.SequenceNode):
        for number, item in enumerate(node.value):
            yield from _scalars(item, f"{path}[{number}]", depth + 1)
        is_empty = not node.value
    else:
        is_empty = True
    if is_empty:  # nothing is below it
        text = node.value if isinstance(node, yaml.ScalarNode) else ""
        yield Value(path=path, text=text, tag=node.tag, line=node.start_mark.line + 2)


def _elements(lines: list[str], first: int) -> Iterator[Element]:
    """Without blank lines. A block of code that has no end ends with the card."""
    section, number = "", 0
    while number < len(lines):
        line = lines[number].rstrip()
        if fence := _FENCE.match(line):
            closing = re.compile(rf" {{0,3}}{fence[1][0]}{{{len(fence[1])},}}\s*")
            end = next(
                (other for other in range(number + 1, len(lines)) if closing.fullmatch(lines[other])),
                len(lines) - 1,
            )
            block = "\n".join(text.rstrip() for text in lines[number : end + 1])
            yield Element(line=first + number, text=block, is_code=True, section=section)
            number = end
        elif line:
            section = line.lstrip("# ") if line.startswith("## ") else section
            yield Element(line=first + number, text=line, is_code=False, section=section)
        number += 1
