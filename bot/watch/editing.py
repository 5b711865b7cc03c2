"""A new watchlist, and a model added to one that a person wrote: every other character stays as it was."""

from __future__ import annotations

from pathlib import Path

import yaml

from bot.text import render
from bot.watch.rules import EXAMPLE_NAMESPACE
from bot.watch.schema import SCHEMA_FILE, Reference


def new_watchlist(folder: Path, publish_to: str = EXAMPLE_NAMESPACE) -> str:
    """A commented watchlist without models, for a file in `folder`."""
    inside = SCHEMA_FILE.is_relative_to(folder)
    schema = SCHEMA_FILE.relative_to(folder) if inside else SCHEMA_FILE
    return render("watchlist.yaml.jinja", schema=schema.as_posix(), publish_to=publish_to)


def with_model(text: str, model: Reference) -> str:
    """The watchlist with the model after those that it has. text: a watchlist without mistakes.

    A YAML library that reads and writes the document would keep comments, but not where they stand, nor how long
    lines are broken. So the document is only read, and one line is inserted.
    """
    root = yaml.compose(text, Loader=yaml.SafeLoader)
    assert isinstance(root, yaml.MappingNode)
    models = next(value for key, value in root.value if key.value == "models")
    if root.flow_style or (models.flow_style and models.value):
        return _in_brackets(text, models, model)
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
    return f"{before}{' ' * indent}- {item_of(model)}{newline}{after}"


def _in_brackets(text: str, models: yaml.SequenceNode, model: Reference) -> str:
    if not models.value:
        opened = models.start_mark.index + 1
        return f"{text[:opened]}{item_of(model)}{text[opened:]}"
    end = _end(models.value[-1])
    return f"{text[:end]}, {item_of(model)}{text[end:]}"


def _end(node: yaml.Node) -> int:
    """Where the last value in it ends; a block's own mark is after the comments that follow it."""
    if isinstance(node, yaml.CollectionNode) and not node.flow_style and node.value:
        last = node.value[-1]
        return _end(last[1] if isinstance(last, tuple) else last)
    # A block of text ends at the beginning of the line after it.
    return node.end_mark.index - (node.end_mark.column == 0)


def item_of(model: Reference) -> str:
    """The model as one item of `models`."""
    if model.revision is None:
        return model.repo_id
    plain = isinstance(yaml.safe_load(model.revision), str)  # 1.10 would be read as a number
    return f"{{repo_id: {model.repo_id}, revision: {model.revision if plain else repr(model.revision)}}}"
