"""Built-in text, which needs no network: prose, code and dialogue, each in two splits that share no document.

The files in `texts/` were written for this package, as `User:` and `Assistant:` in turns where they are dialogues.
The rest is what every Python installation has, so it differs with Python's version.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Final

from bot.calibration import docstrings, stdlib
from bot.calibration.conversations import Row
from bot.errors import QuantizationError

_FOLDER: Final = Path(__file__).with_name("texts")
_SEPARATOR: Final = "\n---\n"  # between the documents of a file
_TURN: Final = re.compile(r"^(User|Assistant): ", re.MULTILINE)

# In hundredths of the hash's range: of a document's first line, of a topic's name, and of a module's path.
# Neither split of the code reads these modules.
_WRITTEN: Final[dict[stdlib.Split, range]] = {"calibrate": range(70), "test": range(70, 100)}
_TOPICS: Final[dict[stdlib.Split, range]] = {"calibrate": range(40), "test": range(85, 100)}
_MORE_TOPICS: Final[dict[stdlib.Split, range]] = {"calibrate": range(40, 85), "test": range(0)}
_MODULES: Final[dict[stdlib.Split, range]] = {"calibrate": range(40, 70), "test": range(84, 88)}


@dataclass(frozen=True, slots=True, kw_only=True)
class BuiltinText:
    """A text, or a conversation of {role, content}. reserve: to be drawn when the others are used up."""

    text: str = ""
    messages: tuple[Row, ...] = ()
    reserve: bool = False


def texts(name: str, split: stdlib.Split) -> Iterator[BuiltinText]:
    """The documents of a built-in text, always in the same order. Raises QuantizationError for an unknown name."""
    if name not in _READERS:
        known = ", ".join(f"`builtin: {name}`" for name in _READERS)
        raise QuantizationError(f"unknown builtin text {name!r}", hint=f"There are {known}.")
    yield from _READERS[name](split)


def written(name: str, split: stdlib.Split) -> Iterator[str]:
    """Of the documents in a file of our own, those of a split."""
    documents = (_FOLDER / f"{name}.txt").read_text(encoding="utf-8").strip().split(_SEPARATOR)
    yield from (text for text in documents if stdlib.share_of(text.split("\n", 1)[0]) in _WRITTEN[split])


def _prose(split: stdlib.Split) -> Iterator[BuiltinText]:
    yield from (BuiltinText(text=text) for text in written("prose", split))
    yield from (BuiltinText(text=text) for text in docstrings.topics(_TOPICS[split]))
    more = chain(docstrings.topics(_MORE_TOPICS[split]), docstrings.docstrings(_MODULES[split]))
    yield from (BuiltinText(text=text, reserve=True) for text in more)


def _code(split: stdlib.Split) -> Iterator[BuiltinText]:
    yield from (BuiltinText(text=text) for text in stdlib.documents(split))


def _dialogue(split: stdlib.Split) -> Iterator[BuiltinText]:
    yield from (BuiltinText(messages=_conversation(text)) for text in written("dialogue", split))
    yield from (BuiltinText(messages=asked, reserve=True) for asked in docstrings.questions(_MODULES[split]))


def _conversation(text: str) -> tuple[Row, ...]:
    _, *parts = _TURN.split(text)
    return tuple(
        {"role": role.lower(), "content": content.strip()}
        for role, content in zip(parts[::2], parts[1::2], strict=True)
    )


_READERS: Final[dict[str, Callable[[stdlib.Split], Iterator[BuiltinText]]]] = {
    "prose": _prose,
    "code": _code,
    "dialogue": _dialogue,
    stdlib.BUILTIN_NAME: _code,  # as it was called before there was other text than code
}
