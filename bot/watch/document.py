"""A watchlist as a YAML document: the line of every value, and edits that leave all other characters alone."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from bot.errors import reason_of
from bot.text import render
from bot.watch.names import Reference
from bot.watch.schema import EXAMPLE_NAMESPACE, SCHEMA_FILE

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


def load_with_lines(text: str) -> tuple[Any, Lines, tuple[YamlMistake, ...]]:
    """The document, its lines, and what else is wrong: duplicate keys, tags, values that cannot be read.

    Raises YamlMistake where nothing after it can be read: on syntax and aliases.
    """
    try:
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        reading = _Reading(loader)
        value = None if node is None else reading.value(node, ())
        return value, reading.lines, tuple(reading.mistakes)
    except yaml.MarkedYAMLError as error:
        raise _syntax_mistake(text, error) from None
    except yaml.YAMLError as error:
        raise YamlMistake(_line_of_character(text, error), f"not YAML: {reason_of(error)}") from None
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
    if opened := _left_open(text, error):
        return opened
    if emptied := _after_empty_list(text.splitlines()[:line]):
        return emptied
    return YamlMistake(line, f"not YAML: {what}", "Check indentation, colons and quotes around here.")


def _left_open(text: str, error: yaml.MarkedYAMLError) -> YamlMistake | None:
    """The quote or bracket that was opened on an earlier line than the one where the parser gave up.

    A quote that is not closed ends at the next one in the file, and the parser gives up on what follows that.
    """
    mark = error.problem_mark
    quote: yaml.Mark | None = None
    brackets: list[yaml.Mark] = []
    try:
        for token in yaml.scan(text, Loader=yaml.SafeLoader):
            if mark is not None and token.start_mark.index >= mark.index:
                break
            quote = None
            if isinstance(token, yaml.FlowSequenceStartToken | yaml.FlowMappingStartToken):
                brackets.append(token.start_mark)
            elif isinstance(token, yaml.FlowSequenceEndToken | yaml.FlowMappingEndToken):
                brackets = brackets[:-1]
            elif isinstance(token, yaml.ScalarToken) and token.style in ("'", '"'):
                quote = token.start_mark if token.end_mark.line > token.start_mark.line else None
    except yaml.MarkedYAMLError as scanned:
        if scanned.context == "while scanning a quoted scalar":
            quote = scanned.context_mark
    if quote is not None:
        return YamlMistake(quote.line + 1, f"the quote {text[quote.index]} is not closed on its line", "Close it.")
    if brackets and (mark is None or mark.line > brackets[-1].line):
        opened = text[brackets[-1].index]
        closing = {"[": "]", "{": "}"}[opened]
        hint = f"Close it with `{closing}`, and put a comma between its items."
        return YamlMistake(brackets[-1].line + 1, f"the bracket {opened} is not closed", hint)
    return None


def _after_empty_list(lines: list[str]) -> YamlMistake | None:
    """Items below `models: []`, as a new watchlist has it. lines: up to the first item."""
    if not lines or not lines[-1].lstrip().startswith("-"):
        return None
    for number in range(len(lines) - 1, 0, -1):
        content = lines[number - 1].partition("#")[0].strip()
        if content:
            empty = re.fullmatch(r"\w+:\s*\[\s*\]", content)
            return (
                YamlMistake(number, f"items follow the empty list `{content}`", "Remove `[]`.") if empty else None
            )
    return None


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
        self.mistakes: list[YamlMistake] = []
        self._loader = loader
        self._seen: set[int] = set()

    def value(self, node: yaml.Node, loc: Loc) -> Any:
        line = node.start_mark.line + 1
        self.lines.put(loc, line)
        # An alias is the same node again; nested ones make a small file huge:
        # https://en.wikipedia.org/wiki/Billion_laughs_attack
        if id(node) in self._seen:
            raise _no_aliases(line)
        self._seen.add(id(node))
        plain = isinstance(node, yaml.ScalarNode) and node.style is None
        resolved = self._loader.resolve(type(node), node.value, (plain, not plain))  # type: ignore[no-untyped-call]  # PyYAML
        tagged = node.tag != resolved
        if tagged:
            self._mistake(line, f"the YAML tag {_shortened(node.tag)} is not read", "Remove it.")
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, loc)
        if isinstance(node, yaml.SequenceNode):
            return [self.value(item, (*loc, number)) for number, item in enumerate(node.value)]
        if plain:
            self.lines.put_typed(loc, node.value)
        return str(node.value) if tagged else self._scalar(node, line)

    def _mistake(self, line: int, message: str, hint: str) -> None:
        self.mistakes.append(YamlMistake(line, message, hint))

    def _mapping(self, node: yaml.MappingNode, loc: Loc) -> dict[str, Any]:
        result: dict[str, Any] = {}
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            if not isinstance(key_node, yaml.ScalarNode):
                self._mistake(line, "a key must be a plain word", "Write it without brackets and `?`.")
                continue
            key = key_node.value
            if key in result:
                first = self.lines.of((*loc, key))
                self._mistake(line, f"key {_shortened(key)} is there twice, first on line {first}", "Keep one.")
                continue
            result[key] = self.value(value_node, (*loc, key))
            # A mapping's own mark is its first key; the line that a person looks for holds the name.
            self.lines.put((*loc, key), line)
        return result

    def _scalar(self, node: yaml.Node, line: int) -> Any:
        try:
            return self._loader.construct_object(node)
        except (yaml.YAMLError, ValueError, OverflowError):
            # Such as the date 2026-02-30.
            self._mistake(line, f"cannot read {_shortened(node.value)}", "Put it in quotes.")
            return str(node.value)


def _shortened(text: str) -> str:
    return repr(text if len(text) <= 60 else f"{text[:57]}...")


def new_watchlist(folder: Path, publish_to: str = EXAMPLE_NAMESPACE) -> str:
    """A commented watchlist without models, for a file in `folder`. Editors read the schema that it names."""
    inside = SCHEMA_FILE.is_relative_to(folder)
    schema = SCHEMA_FILE.relative_to(folder).as_posix() if inside else SCHEMA_FILE.name
    return render("watchlist.yaml.jinja", schema=schema, publish_to=publish_to)


def schema_copy(folder: Path) -> Path | None:
    """Where the schema has to be for a watchlist in `folder`; None where it is in that folder already.

    An installed bot may be anywhere, and elsewhere after an update.
    """
    return None if SCHEMA_FILE.is_relative_to(folder) else folder / SCHEMA_FILE.name


def with_model(text: str, model: Reference) -> str:
    """The watchlist with the model after those that it has. text: a watchlist without mistakes."""
    return with_items(text, [(item_of(model),)])


def with_items(text: str, items: Sequence[tuple[str, ...]]) -> str:
    """The watchlist with more models after those that it has. text: a watchlist without mistakes.

    items: a model each, as one line of YAML, or as one line for each of its keys.

    A YAML library that reads and writes the document would keep comments, but not where they stand, nor how long
    lines are broken. So the document is only read, and lines are inserted.
    """
    root = yaml.compose(text, Loader=yaml.SafeLoader)
    assert isinstance(root, yaml.MappingNode)
    models = next(value for key, value in root.value if key.value == "models")
    if root.flow_style or (models.flow_style and models.value):
        return _in_brackets(text, models, items)
    newline = "\r\n" if "\r\n" in text else "\n"
    if models.value:
        end, indent = _end(models), models.start_mark.column
    else:  # `models: []` becomes a list of lines
        opened, end = models.start_mark.index, models.end_mark.index
        text, end, indent = text[:opened].rstrip() + text[end:], len(text[:opened].rstrip()), 2
    # After the comment that may follow on the same line.
    line_end = text.find("\n", end)
    before, after = (text, "") if line_end < 0 else (text[: line_end + 1], text[line_end + 1 :])
    if not before.endswith("\n"):
        before += newline
    lines = [f"{'  ' if number else '- '}{line}" for item in items for number, line in enumerate(item)]
    return before + "".join(f"{' ' * indent}{line}{newline}" for line in lines) + after


def _in_brackets(text: str, models: yaml.SequenceNode, items: Sequence[tuple[str, ...]]) -> str:
    shown = ", ".join(item[0] if len(item) == 1 else f"{{{', '.join(item)}}}" for item in items)
    if not models.value:
        opened = models.start_mark.index + 1
        return f"{text[:opened]}{shown}{text[opened:]}"
    end = _end(models.value[-1])
    return f"{text[:end]}, {shown}{text[end:]}"


def _end(node: yaml.Node) -> int:
    """Where the last value in it ends; a block's own mark is after the comments that follow it."""
    if isinstance(node, yaml.CollectionNode) and not node.flow_style and node.value:
        last = node.value[-1]
        return _end(last[1] if isinstance(last, tuple) else last)
    # A block of text ends at the beginning of the line after it.
    return node.end_mark.index - (node.end_mark.column == 0)


def yaml_line(key: str, value: object) -> str:
    """A key with its value, on one line of YAML."""
    text = yaml.safe_dump({key: value}, default_flow_style=True, width=10**6, allow_unicode=True, sort_keys=False)
    return text.strip()[1:-1]


def item_of(model: Reference) -> str:
    """The model as one item of `models`."""
    if model.revision is None:
        return model.repo_id
    plain = isinstance(yaml.safe_load(model.revision), str)  # 1.10 would be read as a number
    return f"{{repo_id: {model.repo_id}, revision: {model.revision if plain else repr(model.revision)}}}"
