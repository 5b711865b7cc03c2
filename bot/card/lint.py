"""A card against the card that follows from the facts: are its numbers, names, links and commands borne out?

The expected card is rendered from facts that were read again, by the functions that render cards. Where the two
differ, the fact is wrong, or it cannot be checked: lint does not judge the words that people wrote.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from functools import lru_cache
from typing import Literal

from bot.card.commands import Surroundings, command_faults, link_faults
from bot.card.parts import Element, Parts, UnreadableCardError, Value, read_card
from bot.checkpoint.repo_files import CARD
from bot.records import Finding
from bot.text import one_line

_PLAIN = r"[-+]?\d+(?:,\d{3})*(?:\.\d+)*"
_UNIT = r"(?:%|[kMGT]i?B\b|nats\b|bits\b|times\b|tokens\b|layers\b)"
# A number with its unit, a version, a hash, code, the target of a link, a repo id.
_FACT = re.compile(
    rf"""
    `[^`]*`
    | \]\([^)\s]{{0,500}}\)
    | \b[0-9a-f]{{7,64}}\b
    | (?<![\w.-])[\w.-]+/[\w./-]*\w
    | {_PLAIN}(?:\s?{_UNIT})?
    """,
    re.VERBOSE | re.ASCII,
)
_ANY_NUMBER = re.compile(rf"(?<![\w./@-])(?P<value>{_PLAIN})(?:\s?(?P<unit>{_UNIT}))?", re.ASCII)
_HASH = re.compile(r"\b(?=[a-f]*[0-9])(?=[0-9]*[a-f])[0-9a-f]{7,64}\b", re.ASCII)
_NUMBER = re.compile(r"([-+]?\d+(?:,\d{3})*(?:\.\d+)*)\s?([^\d]*)", re.DOTALL | re.ASCII)
_SAME_IN_ALL_VERSIONS = ("base_model", "license", "quantized_by", "model-index")
_EXACT_SECTIONS = ("Licence",)
_MOST_LINES = 1500  # of the expected card: as many as any model's facts give
_MOST_PAIRS = 2000  # of lines that are compared with each other, by so many characters
_COMPARED = 1000
_ALIKE = 0.6
_OTHER_VERSION = "the card is of another version of awq-bot, which writes this in another way"
_BY_HAND = "awq-bot did not write this"


@dataclass(frozen=True, slots=True, kw_only=True)
class Expected:
    """text: the card that follows from the facts. other_version: the card was rendered by another version.

    unknown: metadata keys and sections whose facts could not be read, and why.
    """

    text: str
    around: Surroundings
    other_version: bool = False
    unknown: tuple[str, ...] = ()
    why_unknown: str = ""


def lint_card(content: bytes, expected: Expected) -> tuple[Finding, ...]:
    """content: of README.md. In the order of its lines."""
    try:
        card = read_card(content)
    except UnreadableCardError as error:
        return (_finding(0, "card", "wrong", str(error), "a card of awq-bot"),)
    try:
        wanted = read_card(expected.text.encode())
    except UnreadableCardError as error:
        return (_finding(0, "card", "wrong", f"of what the facts give: {error}", "facts of awq-bot"),)
    if len(wanted.elements) > _MOST_LINES:
        return (
            _finding(0, "card", "wrong", f"the facts give {len(wanted.elements):,} lines", "facts of awq-bot"),
        )
    found = [*_metadata(card, wanted, expected), *_body(card.elements, wanted.elements, expected)]
    return tuple(sorted(found, key=lambda item: item.line))


def _finding(
    line: int, what: str, status: Literal["ok", "wrong", "unknown"], found: str, expected: str = ""
) -> Finding:
    said, right = one_line(found), one_line(expected)
    return Finding(file=CARD, line=line, what=one_line(what, 80), status=status, found=said, expected=right)


# --- metadata -----------------------------------------------------------------------------------------------


def _metadata(card: Parts, wanted: Parts, expected: Expected) -> Iterator[Finding]:
    there, needed = ({value.path: value for value in parts.values} for parts in (card, wanted))
    for path, value in needed.items():
        yield _compared(path, there.get(path), value, expected)
    for path, value in there.items():
        if path not in needed:
            yield _added_value(value, expected)


def _compared(path: str, there: Value | None, value: Value, expected: Expected) -> Finding:
    if _key(path) in expected.unknown:
        return _finding(there.line if there else 1, path, "unknown", expected.why_unknown, "")
    if there is None:
        if expected.other_version:
            return _finding(1, path, "unknown", _OTHER_VERSION, value.text)
        return _finding(1, path, "wrong", "it is not there", value.text)
    if (there.text, there.tag) == (value.text, value.tag):
        return _finding(there.line, path, "ok", there.text)
    if expected.other_version and _key(path) not in _SAME_IN_ALL_VERSIONS:
        return _finding(there.line, path, "unknown", _OTHER_VERSION, value.text)
    return _finding(there.line, path, "wrong", there.text, value.text)


def _added_value(value: Value, expected: Expected) -> Finding:
    if _key(value.path) in expected.unknown:
        return _finding(value.line, value.path, "unknown", expected.why_unknown)
    # An evaluation that was not made here, another base model, one more licence: these are not free to add.
    is_ours = _key(value.path) in _SAME_IN_ALL_VERSIONS
    if (is_ours or _not_among(expected.text, value.text)) and not expected.other_version:
        return _finding(value.line, value.path, "wrong", value.text, "nothing: the facts do not have it")
    return _finding(value.line, value.path, "unknown", _BY_HAND)


def _key(path: str) -> str:
    return re.split(r"[.\[]", path, maxsplit=1)[0]


# --- body ---------------------------------------------------------------------------------------------------


def _body(there: Sequence[Element], wanted: Sequence[Element], expected: Expected) -> Iterator[Finding]:
    lines = SequenceMatcher(None, [each.text for each in wanted], [each.text for each in there], autojunk=False)
    for kind, start, end, first, last in lines.get_opcodes():
        if kind == "equal":
            for element in there[first:last]:
                yield from _same(element, expected)
            continue
        for one, other in _paired(there[first:last], wanted[start:end]):
            yield from _judged(one, other, expected)


def _judged(element: Element | None, other: Element | None, expected: Expected) -> Iterator[Finding]:
    """element: on the card; other: what it should be."""
    section = (element or other or Element(line=0, text="", is_code=False)).section
    if section in expected.unknown:
        yield _finding(element.line if element else 0, section, "unknown", expected.why_unknown)
    elif element is None and other is not None:
        if _facts(other):
            why = _OTHER_VERSION if expected.other_version else "the card does not have it"
            yield _finding(0, _label(other), "unknown", why, other.text)
    elif element is not None and other is None:
        yield from _added(element, expected)
    elif element is not None and other is not None:
        yield from _changed(element, other, expected)


def _same(element: Element, expected: Expected) -> Iterator[Finding]:
    """What follows from the facts: only what it leads to is left to look at."""
    faults = [*_faults(element, expected.around)]
    yield from faults
    if not faults and (element.is_code or _facts(element)):
        yield _finding(element.line, _label(element), "ok", _first_line(element))


def _faults(element: Element, around: Surroundings) -> Iterator[Finding]:
    found = command_faults(element, around) if element.is_code else link_faults(element, around)
    for fault in found:
        yield _finding(fault.line, "command" if element.is_code else "link", "wrong", fault.found, fault.expected)


def _added(element: Element, expected: Expected) -> Iterator[Finding]:
    """A line or a block that awq-bot would not write."""
    faults = [*_faults(element, expected.around)]
    yield from faults
    if element.is_code:
        if not faults:
            yield _finding(element.line, "code", "unknown", _OTHER_VERSION if expected.other_version else _BY_HAND)
        return
    odd = _not_among(expected.text, element.text)
    if odd and not expected.other_version:
        yield _finding(element.line, _label(element), "wrong", ", ".join(odd), "no such fact")
    elif not faults:
        yield _finding(
            element.line, _label(element), "unknown", _OTHER_VERSION if expected.other_version else _BY_HAND
        )


def _changed(element: Element, other: Element, expected: Expected) -> Iterator[Finding]:
    if element.is_code:
        yield from _changed_code(element, other, expected)
        return
    cells, wanted = _cells(element), _cells(other)
    what, facts, right = _label(other), _facts(element), _facts(other)
    if expected.other_version:
        # Its words may differ. A row of the same name with another number is wrong in any version.
        same = not cells or _agree(cells, wanted)
        said = _OTHER_VERSION if same else " | ".join(cells[1:])
        yield _finding(element.line, what, "unknown" if same else "wrong", said, " | ".join(wanted[1:]))
    elif cells and len(cells) == len(wanted):
        for cell, correct in zip(cells, wanted, strict=True):
            if cell != correct:
                yield _finding(element.line, what, "wrong", cell or "nothing", correct or "nothing")
    elif element.text.startswith("#") or element.section in _EXACT_SECTIONS:
        yield _finding(element.line, what, "wrong", element.text, other.text)
    elif facts != right:
        found, expects = _difference(facts, right)
        yield _finding(element.line, what, "wrong", found or "nothing", expects or "no such fact")
    else:
        yield from _faults(element, expected.around)
        yield _finding(element.line, what, "unknown", "its words were changed")


def _agree(cells: Sequence[str], wanted: Sequence[str]) -> bool:
    """Whether two rows have the same numbers, as far as the one that is rounded more shows them."""
    pairs = [
        (_NUMBER.fullmatch(one), _NUMBER.fullmatch(two)) for one, two in zip(cells[1:], wanted[1:], strict=False)
    ]
    return len(cells) == len(wanted) and all(
        one is None or two is None or _rounds(one[1], two[1]) for one, two in pairs
    )


def _rounds(one: str, two: str) -> bool:
    digits = min(len(text.partition(".")[2]) for text in (one, two))
    try:
        apart = abs(float(one.replace(",", "")) - float(two.replace(",", "")))
    except ValueError:  # a version
        return one == two
    return bool(apart <= 0.5001 * 10.0**-digits)


def _changed_code(element: Element, other: Element, expected: Expected) -> Iterator[Finding]:
    """Code that awq-bot wrote has to be as it was: people run it."""
    faults = [*_faults(element, expected.around)]
    if expected.other_version:
        yield from faults or [_finding(element.line, "code", "unknown", _OTHER_VERSION)]
        return
    said, right = (each.text.splitlines() for each in (element, other))
    for kind, start, end, first, last in SequenceMatcher(None, right, said, autojunk=False).get_opcodes():
        if kind == "equal":
            continue
        found, wanted = _joined(said[first:last]), _joined(right[start:end])
        yield _finding(min(element.line + first, element.line + len(said) - 1), "command", "wrong", found, wanted)


def _joined(lines: Sequence[str]) -> str:
    """The lines of a command on one."""
    return " ".join(line.strip().removesuffix("\\").strip() for line in lines) or "nothing"


def _paired(
    there: Sequence[Element], wanted: Sequence[Element]
) -> Iterator[tuple[Element | None, Element | None]]:
    """Lines with the line that they should be: by the first cell of a row, then by what is most alike."""
    left, open_ = dict(enumerate(there)), dict(enumerate(wanted))
    by_key = {key: number for number, each in reversed(open_.items()) if (key := _row_key(each))}
    for number, element in enumerate(there):
        key = _row_key(element)
        if key and (other := by_key.pop(key, None)) is not None:
            yield left.pop(number), open_.pop(other)
    if len(left) * len(open_) <= _MOST_PAIRS:
        for number, element in [*left.items()]:
            scored = ((_likeness(element, each), -place) for place, each in open_.items())
            best, place = max(scored, default=(0.0, 0))
            if best >= _ALIKE:
                yield left.pop(number), open_.pop(-place)
    yield from ((element, None) for element in left.values())
    yield from ((None, other) for other in open_.values())


def _likeness(one: Element, two: Element) -> float:
    if one.is_code != two.is_code:
        return 0.0
    compared = SequenceMatcher(None, one.text[:_COMPARED], two.text[:_COMPARED], autojunk=False)
    return compared.ratio() if compared.quick_ratio() >= _ALIKE else 0.0


def _row_key(element: Element) -> tuple[str, str, int] | None:
    cells = _cells(element)
    return (element.section, cells[0], len(cells)) if cells and cells[0] else None


def _cells(element: Element) -> tuple[str, ...]:
    """Of a row of a table; empty for other lines."""
    if element.is_code or not element.text.startswith("|"):
        return ()
    return tuple(cell.strip() for cell in re.split(r"(?<!\\)\|", element.text.strip().strip("|")))


# --- the facts of a line ------------------------------------------------------------------------------------


def _facts(element: Element) -> tuple[str, ...]:
    return tuple(_FACT.findall(element.text))


@lru_cache(maxsize=4)
def _numbers_of(text: str) -> frozenset[tuple[str, str]]:
    """Each number with its unit, and without; in code, too, and not those inside of names and addresses."""
    numbers = [_number(found) for found in _ANY_NUMBER.finditer(text)]
    return frozenset(each for number in numbers for each in (number, (number[0], "")))


def _not_among(facts: str, text: str) -> list[str]:
    """The numbers and hashes of a text that are none of these facts, as they are written."""
    numbers = _numbers_of(facts)
    hashes = [found for found in _HASH.findall(text) if found not in facts]
    return [found[0] for found in _ANY_NUMBER.finditer(text) if _number(found) not in numbers] + hashes


def _number(found: re.Match[str]) -> tuple[str, str]:
    return found["value"].replace(",", "").lstrip("+"), found["unit"] or ""


def _difference(there: Sequence[str], wanted: Sequence[str]) -> tuple[str, str]:
    """What only the one has, and what only the other."""
    said: list[str] = []
    right: list[str] = []
    for kind, start, end, first, last in SequenceMatcher(None, wanted, there, autojunk=False).get_opcodes():
        if kind != "equal":
            said += there[first:last]
            right += wanted[start:end]
    return ", ".join(said), ", ".join(right)


def _label(element: Element) -> str:
    """How a person would call the line."""
    cells = _cells(element)
    if cells:
        return cells[0] or element.section or "row"
    if element.is_code:
        return "command"
    return re.sub(r"[*`\\]", "", element.text).lstrip("#- ")[:60]


def _first_line(element: Element) -> str:
    lines = element.text.splitlines()
    return lines[1] if element.is_code and len(lines) > 1 else lines[0]
