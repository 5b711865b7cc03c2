"""What is wrong with a watchlist, and on which line: YAML that remembers lines, pydantic's errors explained."""

from __future__ import annotations

import difflib
import re
import types
import typing
from collections.abc import Sequence
from typing import Any

import yaml
from pydantic import BaseModel
from pydantic_core import ErrorDetails

from bot.watch.schema import FILE_SUFFIXES, RecipeSpec, WatchlistSpec

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
            raise YamlMistake(line, f"the YAML tag {_shortened(node.tag)} is not read", "Remove it.")
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
                raise YamlMistake(
                    line, f"key {_shortened(key)} is there twice, first on line {first}", "Keep one."
                )
            result[key] = self.value(value_node, (*loc, key))
            # A mapping's own mark is its first key; the line that a person looks for holds the name.
            self.lines.put((*loc, key), line)
        return result

    def _scalar(self, node: yaml.Node, line: int) -> Any:
        try:
            return self._loader.construct_object(node)
        except (yaml.YAMLError, ValueError, OverflowError):
            # Such as the date 2026-02-30.
            raise YamlMistake(line, f"cannot read {_shortened(node.value)}", "Put it in quotes.") from None


def _shortened(text: str) -> str:
    return repr(text if len(text) <= 60 else f"{text[:57]}...")


_LICENSE_HINT = "Write licence ids as the Hub does, in lower case: apache-2.0, mit, llama3.1."
_PATTERN_HINTS = {
    "repo_id": "A repo id is `owner/name`, as in the model's URL.",
    "target": "A repo id is `owner/name`.",
    "dataset": "A repo id is `owner/name`, as in the data set's URL.",
    "publish_to": "A namespace is a user or organisation name, without a slash.",
    "revision": "Use a branch, a tag or a commit; a data set needs the full 40-character sha.",
    "modules_to_not_convert": "Write full paths such as model.layers.0.self_attn.q_proj.",
    "file": f"Calibration reads files that end in {', '.join(f'.{suffix}' for suffix in FILE_SUFFIXES)}.",
    "allow": _LICENSE_HINT,
    "deny": _LICENSE_HINT,
}
_LITERAL_HINTS = {
    "bits": "AWQ checkpoints hold 4-bit weights.",
    "group_size": "Servers read groups of these sizes.",
    "zero_point": "Servers read AWQ with zero points.",
    "version": "Every server reads the GEMM layout.",
}
_MISSING_HINTS = {
    "models": "Add `models:` and under it one `- owner/name` a line.",
    "repo_id": "A model is `- owner/name`, or keys with `repo_id: owner/name` among them.",
}
_SOURCE_HINT = (
    "Write `- builtin: stdlib`, `- file: texts.jsonl`, or `- {dataset: owner/name, revision: <full sha>}`."
)
_TYPE_HINTS = {
    "bool_type": "Write true or false.",
    "finite_number": "A threshold that nothing reaches can be any large number.",
    "tuple_type": "A list is written `[one, two]`, or one `- item` a line.",
}
_HUB_URL = re.compile(r"https?://[^/]+/(?:datasets/|models/)?([^/?#]+/[^/?#]+)")


def describe(detail: ErrorDetails, typed: str | None) -> tuple[str, str]:
    """A message and a hint for one pydantic error. typed: the value as it stands in the file, if it is plain."""
    loc, kind, value = detail["loc"], detail["type"], detail.get("input")
    key = next((str(part) for part in reversed(loc) if isinstance(part, str)), "watchlist")
    shown = _short(typed) if typed else _short(repr(value)) if isinstance(value, str) else _kind_of(value)
    if kind == "extra_forbidden":
        return f"unknown key {_short(repr(key))}", _renamed(key, value, loc[:-1]) or _meant(key, loc[:-1])
    if kind == "missing":
        return f"key {key!r} is missing", _MISSING_HINTS.get(key, "")
    if kind == "source":
        return detail["msg"], _SOURCE_HINT
    if value is None:
        return f"{key}: has no value", "Give it one, or remove the line."
    if kind == "string_pattern_mismatch":
        return f"{key}: {shown} is not valid", _from_url(value) or _PATTERN_HINTS.get(key, "")
    if kind == "string_type" and typed:
        return f"{key}: YAML reads {shown} as {_yaml_word(value)}, not as text", f"Put it in quotes: '{shown}'."
    if kind == "literal_error":
        expected = detail["ctx"]["expected"].replace("True", "true")
        return f"{key}: {shown} is not possible, only {expected}", _nearest(value, expected) or _LITERAL_HINTS.get(
            key, ""
        )
    if kind == "model_type":
        example = " or `owner/name`" if key == "models" else ""
        return f"{key}: expected keys and values{example}, found {shown}", ""
    if kind == "tuple_type":
        return f"{key}: expected a list, found {shown}", _TYPE_HINTS[kind]
    # "Input should be greater than 0" -> "max_kl: should be greater than 0, not -1"
    what = detail["msg"].removeprefix("Input ").removeprefix("String ")
    return f"{key}: {what[:1].lower()}{what[1:]}, not {shown}", _type_hint(kind, value)


def _type_hint(kind: str, value: object) -> str:
    if isinstance(value, str) and re.fullmatch(r"[-+]?[\d.]+", value) and kind in ("int_type", "float_type"):
        return "Remove the quotes."
    return _TYPE_HINTS.get(kind, "")


def _nearest(value: object, expected: str) -> str:
    near = difflib.get_close_matches(str(value)[:100], re.findall(r"'([^']+)'", expected), n=1)
    return f"Did you mean {near[0]!r}?" if near else ""


def _from_url(value: object) -> str:
    """The repo id out of an address that was pasted whole."""
    match = _HUB_URL.match(value) if isinstance(value, str) else None
    return f"Did you mean {match[1]!r}?" if match else ""


def _yaml_word(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return "a number" if isinstance(value, int | float) else "a date"


def _kind_of(value: object) -> str:
    """For what has no short text of its own."""
    return "a list" if isinstance(value, list | tuple) else "keys and values"


def _short(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:57]}..."


# --- keys that nobody knows ---------------------------------------------------------------------------------


def _renamed(key: str, value: object, loc: tuple[str | int, ...]) -> str:
    """The key and value that say today what version 0.1 called `search`."""
    if key != "search" or _model_at(loc) is not RecipeSpec:
        return ""
    return f"Did you mean `method: {'awq' if value == 'awq' else 'awq+gptq'}`?"


def _meant(key: str, loc: tuple[str | int, ...]) -> str:
    """What an unknown key was probably meant to be, here or one level away."""
    model = _model_at(loc)
    known = tuple(model.model_fields)
    below = [name for name, inner in _inner_models(model) if key in inner.model_fields]
    if below:
        return f"It belongs under `{below[0]}`."
    if key in WatchlistSpec.model_fields:
        return "It belongs at the top of the file, without indentation."
    near = difflib.get_close_matches(key[:100], known, n=1, cutoff=0.6)
    if near:
        return f"Did you mean {near[0]!r}?"
    return f"Known here: {', '.join(known)}."


def _model_at(loc: tuple[str | int, ...]) -> type[BaseModel]:
    """The model that describes a place of the document, found by walking the models' annotations."""
    model: type[BaseModel] = WatchlistSpec
    for part in loc:
        if isinstance(part, str):
            model = dict(_inner_models(model))[part]
    return model


def _inner_models(model: type[BaseModel]) -> list[tuple[str, type[BaseModel]]]:
    found = ((name, _model_of(field.annotation)) for name, field in model.model_fields.items())
    return [(name, inner) for name, inner in found if inner is not None]


def _model_of(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    is_container = typing.get_origin(annotation) in (tuple, types.UnionType, typing.Union)
    inner = (_model_of(item) for item in typing.get_args(annotation)) if is_container else ()
    return next((model for model in inner if model is not None), None)
