"""What Python says about itself: the topics of its `help()`, and the docstrings of its standard library."""

from __future__ import annotations

import ast
import re
import textwrap
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Final

from bot.calibration import stdlib
from bot.calibration.conversations import Row

_PASSAGE_CHARACTERS: Final = 1500  # about as long as the texts that were written for this package
_SHORTEST: Final = 120  # characters of a docstring that answers a question
_MOST_LINES: Final = 40  # of the function in an answer, with its docstring
_Documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
# Which one is asked depends on the name that it is about.
_QUESTIONS: Final = (
    "What does `{name}` do, and how is it implemented?",
    "Show me the source code of `{name}` in Python's standard library, and explain what it is for.",
    "I found `{name}` in some Python code. What is it for?",
    "Explain `{name}` to me, please. I would like to see the code too.",
)


def topics(shares: range) -> Iterator[str]:
    """The topics with these shares of their names, in passages; each paragraph belongs to one topic."""
    try:
        from pydoc_data.topics import topics as texts  # noqa: PLC0415 - a distribution may leave it out
    except ImportError:
        return
    seen: set[str] = set()
    for name in sorted(texts):
        # Topics contain others: `assignment` is in `SEQUENCEMETHODS` too.
        new = _not_in(seen, _paragraphs(texts[name]))
        if stdlib.share_of(name) in shares:
            yield from _passages(new)


def docstrings(shares: range) -> Iterator[str]:
    """The docstrings of the modules with these shares, in passages; each paragraph once."""
    seen: set[str] = set()
    for path in stdlib.modules(shares):
        found = (text for _, node in _documented(path) for text in _paragraphs(_docstring(node)))
        yield from _passages(_not_in(seen, found))


def questions(shares: range) -> Iterator[tuple[Row, ...]]:
    """A question about each documented function of the modules with these shares, answered with its docstring."""
    for path in stdlib.modules(shares):
        lines = stdlib.read(path).splitlines()
        for name, node in _documented(path):
            if isinstance(node, ast.FunctionDef) and _is_worth_asking(node):
                yield _asked(name, _docstring(node), _code_of(node, lines))


def _is_worth_asking(node: ast.FunctionDef) -> bool:
    has_code = len(node.body) > 1 and node.end_lineno is not None and node.end_lineno - node.lineno < _MOST_LINES
    return has_code and not node.name.startswith("_") and len(_docstring(node)) >= _SHORTEST


def _asked(name: str, about: str, code: str) -> tuple[Row, ...]:
    question = _QUESTIONS[stdlib.share_of(name) % len(_QUESTIONS)].format(name=name)
    return (
        {"role": "user", "content": question},
        {"role": "assistant", "content": f"{about}\n\n```python\n{code}\n```"},
    )


@cache
def _documented(path: Path) -> tuple[tuple[str, _Documented], ...]:
    """A module's documented parts, by their full names."""
    module = ast.parse(stdlib.read(path))
    return tuple(_below(module, _module_name(path)))


def _below(node: _Documented, name: str) -> Iterator[tuple[str, _Documented]]:
    if _docstring(node):
        yield name, node
    for child in node.body:
        if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield from _below(child, f"{name}.{child.name}")


def _module_name(path: Path) -> str:
    parts = path.relative_to(stdlib.root()).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


def _docstring(node: _Documented) -> str:
    return ast.get_docstring(node) or ""


def _code_of(node: ast.FunctionDef, lines: list[str]) -> str:
    """Without its docstring, at the left margin."""
    docstring = node.body[0]
    kept = lines[node.lineno - 1 : docstring.lineno - 1] + lines[docstring.end_lineno : node.end_lineno]
    return textwrap.dedent("\n".join(kept))


def _paragraphs(text: str) -> list[str]:
    return [part for part in re.split(r"\n(?:[ \t]*\n)+", text.strip("\n")) if part.strip()]


def _not_in(seen: set[str], paragraphs: Iterable[str]) -> list[str]:
    """The paragraphs that are new, each once; they are in `seen` then."""
    new = [paragraph for paragraph in dict.fromkeys(paragraphs) if paragraph not in seen]
    seen.update(new)
    return new


def _passages(paragraphs: Iterable[str]) -> Iterator[str]:
    """Whole paragraphs, of about _PASSAGE_CHARACTERS together."""
    passage = ""
    for paragraph in paragraphs:
        if passage and len(passage) + len(paragraph) > _PASSAGE_CHARACTERS:
            yield passage
            passage = ""
        passage += ("\n\n" if passage else "") + paragraph
    if passage:
        yield passage
