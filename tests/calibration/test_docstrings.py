"""Prose and questions from what Python says about itself."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from bot.calibration import docstrings, stdlib

MODULE = '''\
"""Send parcels.

A parcel is sent once, and its number is kept until somebody has signed for it at the door of the house where
it was to be delivered, or for thirty days.
"""

def send(parcel, *, express=False):
    """Send a parcel by the next van that leaves, and return the number under which it can be found until it
    has arrived, and for a month after that.

    >>> send("a book")
    17
    """
    number = _next()
    return number

def _next():
    """The next number, which is one more than that of the parcel that was sent before it, or one for the very
    first parcel of a year."""
    return 1

class Van:
    def drive(self):
        """Drive to each house in the order in which the parcels were loaded, and back to the depot when there
        are no more of them."""
'''


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    (tmp_path / "post").mkdir()
    (tmp_path / "post" / "__init__.py").write_text(MODULE)
    monkeypatch.setattr(stdlib, "root", lambda: tmp_path)
    stdlib.modules.cache_clear()
    yield tmp_path
    stdlib.modules.cache_clear()


@pytest.mark.usefixtures("library")
def test_docstrings_are_in_passages_of_whole_paragraphs() -> None:
    (passage,) = docstrings.docstrings(range(100))
    starts = [paragraph.split(",")[0] for paragraph in passage.split("\n\n")]
    assert starts == [
        "Send parcels.",
        "A parcel is sent once",
        "Send a parcel by the next van that leaves",
        '>>> send("a book")\n17',
        "The next number",
        "Drive to each house in the order in which the parcels were loaded",
    ]


def test_passages_are_as_long_as_articles() -> None:
    lengths = [len(passage) for passage in docstrings.topics(range(100))]
    assert 1000 < sum(lengths) / len(lengths) < 1500


@pytest.mark.usefixtures("library")
def test_a_question_about_a_public_function_is_answered_with_docstring_and_code() -> None:
    (conversation,) = docstrings.questions(range(100))  # `drive` has no code to show, and `_next` is private
    question, answer = (message["content"] for message in conversation)
    assert "`post.send`" in question
    assert answer.startswith("Send a parcel by the next van")
    assert answer.endswith(
        "\n\n```python\ndef send(parcel, *, express=False):\n    number = _next()\n    return number\n```"
    )


def test_every_answer_shows_code_that_python_can_read() -> None:
    found = list(docstrings.questions(range(84, 88)))
    for _, answer in found:
        code = answer["content"].rpartition("```python\n")[2].removesuffix("```")
        assert ast.get_docstring(ast.parse(code).body[0]) is None
    assert len(found) > 20


def test_topics_of_help_share_no_paragraph() -> None:
    parts = [
        {part for text in docstrings.topics(range(low, low + 25)) for part in text.split("\n\n")}
        for low in range(0, 100, 25)
    ]
    assert sum(map(len, parts)) == len(set.union(*parts)) > 500


def test_python_without_the_topics_of_help_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pydoc_data.topics", None)
    assert list(docstrings.topics(range(100))) == []
