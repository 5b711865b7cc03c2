"""YAML that remembers the line of every value, and refuses what a configuration file has no use for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import yaml

Loc = tuple[str | int, ...]


class YamlMistake(Exception):
    """line counts from 1."""

    def __init__(self, line: int, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.line, self.message, self.hint = line, message, hint


class Lines:
    """Where each value of a document was typed, and how."""

    def __init__(self) -> None:
        self._lines: dict[Loc, int] = {(): 1}
        self._typed: dict[Loc, str] = {}

    def put(self, loc: Loc, line: int) -> None:
        self._lines[loc] = line

    def put_typed(self, loc: Loc, text: str) -> None:
        self._typed[loc] = text

    def knows(self, loc: Sequence[str | int]) -> bool:
        return tuple(loc) in self._lines

    def of(self, loc: Sequence[str | int]) -> int:
        """The line of the value, or of the nearest thing around it."""
        known = tuple(loc)
        while known not in self._lines:
            known = known[:-1]
        return self._lines[known]

    def typed(self, loc: Sequence[str | int]) -> str | None:
        """A value without quotes as it stands in the file: `no`, where YAML reads false. None for any other.

        The key of a short form is not in the file; its text is that of the whole.
        """
        known = tuple(loc)
        return self._typed.get(known, self._typed.get(known[:-1]))


def load_with_lines(text: str) -> tuple[Any, Lines]:
    """The document and its lines. Raises YamlMistake on syntax, duplicate keys, aliases and tags."""
    try:
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        reading = _Reading(loader)
        return (None if node is None else reading.value(node, ())), reading.lines
    except yaml.MarkedYAMLError as error:
        raise _syntax_mistake(text, error) from None
    except yaml.YAMLError as error:
        raise YamlMistake(_line_of_character(text, error), f"not YAML: {str(error).splitlines()[0]}") from None
    except RecursionError:
        raise YamlMistake(1, "brackets within brackets, too deep to read", "Is it the right file?") from None


def _syntax_mistake(text: str, error: yaml.MarkedYAMLError) -> YamlMistake:
    line = error.problem_mark.line + 1 if error.problem_mark else 1
    content = text.splitlines()[line - 1] if line <= len(text.splitlines()) else ""
    if "\t" in content[: len(content) - len(content.lstrip())]:
        return YamlMistake(line, "a tab in the indentation", "YAML is indented with spaces.")
    what = error.problem or "cannot be parsed"
    if what == "but found another document":
        return YamlMistake(line, "a second document begins", "Remove the line `---`; a watchlist is one document.")
    if "alias" in what or "anchor" in what:
        return _no_aliases(line)
    return YamlMistake(line, f"not YAML: {what}", "Check indentation, colons and quotes around here.")


def _line_of_character(text: str, error: yaml.YAMLError) -> int:
    """Characters that YAML does not allow are counted from the start of the text."""
    position = getattr(error, "position", None)
    return text[:position].count("\n") + 1 if isinstance(position, int) else 1


def _no_aliases(line: int) -> YamlMistake:
    return YamlMistake(line, "YAML anchors and aliases are not read", "Put shared settings under `defaults`.")


class _Reading:
    """One walk over the nodes of a document."""

    def __init__(self, loader: yaml.SafeLoader) -> None:
        self.lines = Lines()
        self._loader = loader
        self._seen: set[int] = set()

    def value(self, node: yaml.Node, loc: Loc) -> Any:
        line = node.start_mark.line + 1
        self.lines.put(loc, line)
        # An alias is the same node again; nested ones can blow a small file up without bound.
        if id(node) in self._seen:
            raise _no_aliases(line)
        self._seen.add(id(node))
        plain = isinstance(node, yaml.ScalarNode) and node.style is None
        resolved = self._loader.resolve(type(node), node.value, (plain, not plain))  # type: ignore[no-untyped-call]
        if node.tag != resolved:
            raise YamlMistake(line, f"the YAML tag {_short(node.tag)} is not read", "Remove it.")
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, loc)
        if isinstance(node, yaml.SequenceNode):
            return [self.value(item, (*loc, number)) for number, item in enumerate(node.value)]
        if plain:
            self.lines.put_typed(loc, node.value)
        return self._scalar(node, line)

    def _mapping(self, node: yaml.MappingNode, loc: Loc) -> dict[str, Any]:
        result: dict[str, Any] = {}
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            if not isinstance(key_node, yaml.ScalarNode):
                raise YamlMistake(line, "a key must be a plain word", "Brackets and `?` have no place in a key.")
            key = key_node.value
            if key in result:
                first = self.lines.of((*loc, key))
                raise YamlMistake(line, f"key {_short(key)} is there twice, first on line {first}", "Keep one.")
            result[key] = self.value(value_node, (*loc, key))
            # A mapping's own mark is its first key; the line that a person looks for holds the name.
            self.lines.put((*loc, key), line)
        return result

    def _scalar(self, node: yaml.Node, line: int) -> Any:
        try:
            return self._loader.construct_object(node)
        except (yaml.YAMLError, ValueError, OverflowError):
            # Such as the date 2026-02-30.
            raise YamlMistake(line, f"cannot read {_short(node.value)}", "Put it in quotes.") from None


def _short(text: str) -> str:
    return repr(text if len(text) <= 60 else f"{text[:57]}...")
