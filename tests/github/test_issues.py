"""The hidden line of an issue is read back as it was written, and nothing else is taken for it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from bot.errors import ERRORS_BY_EXIT_CODE
from bot.github.issues import body_of, label_of, mark, read_mark
from bot.github.summaries import title_of
from bot.records import Attempts

TRIED = Attempts(
    target="quantized/Tiny-awq", content="ab" * 32, count=2, next_try="2026-11-22T04:17:05Z", run="12.1"
)


def test_a_mark_is_read_back_and_the_last_one_counts() -> None:
    for tried in (TRIED, Attempts(target="watchlist", content="cd" * 32, count=4, waits_for_person=True)):
        body = f"{mark(replace(TRIED, count=9))}\r\n\r\n{mark(tried)}\r\n"
        assert read_mark(body, issue=7) == replace(tried, issue=7)


def test_a_mark_of_an_earlier_version_is_read() -> None:
    body = "Words.\n\n<!-- awq-bot target=a/b content=c attempts=3 next=2026-11-22T04:17:05Z run=12.1 -->\n"
    written = Attempts(target="a/b", content="c", count=3, next_try="2026-11-22T04:17:05Z", issue=7, run="12.1")
    assert read_mark(body, issue=7) == written


@pytest.mark.parametrize(
    "body",
    [
        "",
        "<!-- awq-bot plan -->",
        "<!-- awq-bot target=a/b content=c attempts=many next=- -->",
        "<!-- awq-bot target=a/b content=c attempts=1 next=tomorrow -->",
        "<!-- awq-bot target=a b content=c attempts=1 next=- -->",
        "text <!-- awq-bot target=a/b content=c attempts=1 next=- -->",
        "\\<!-- awq-bot target=a/b content=c attempts=1 next=- -->",
    ],
)
def test_text_that_is_not_a_mark_is_not_read(body: str) -> None:
    assert read_mark(body, issue=1) is None


def test_every_exit_code_has_its_label() -> None:
    labels = {label_of(code) for code in ERRORS_BY_EXIT_CODE}
    assert len(labels) == len(ERRORS_BY_EXIT_CODE)
    assert {"awq-bot: quality gate", "awq-bot: upstream"} < labels
    assert label_of(1) == "awq-bot: unexpected"


def test_a_title_is_one_short_line() -> None:
    assert title_of("a/b", "boom\n\tat\x00 once") == "awq-bot: a/b: boom at once"
    assert len(title_of("a/b", "long " * 100)) == 120


def test_a_text_is_cut_and_its_mark_is_not() -> None:
    body = body_of("long " * 20_000, mark(TRIED))
    assert len(body) < 65_536
    assert read_mark(body, issue=1) == replace(TRIED, issue=1)
