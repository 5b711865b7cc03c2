"""Workflow commands: escaped so that no text is a command, and only our own are executed."""

from __future__ import annotations

import pytest

from bot.github.environment import Actions, Commands, annotation
from tests.support.workflow_steps import workflow_commands


@pytest.mark.parametrize(
    ("made", "line"),
    [
        (annotation("error", "no"), "::error::no"),
        (
            annotation("warning", "50 %\r\nof it", title="a, b: c"),
            "::warning title=a%2C b%3A c::50 %25%0D%0Aof it",
        ),
        (
            annotation("error", "m::n", file="a,b:c%\n.yaml", line=3),
            "::error file=a%2Cb%3Ac%25%0A.yaml,line=3::m::n",
        ),
    ],
)
def test_an_annotation_is_one_line_whatever_it_says(made: str, line: str) -> None:
    assert made == line


def test_nothing_but_our_own_annotations_is_obeyed() -> None:
    commands = Commands(Actions(inside=True))
    hostile = ["::set-output name=a::b", "  ::add-path::/tmp", "::error::theirs", "::stop-commands::x", "::x::"]
    log = [*commands.opening(), *hostile, *commands.annotation("error", "ours"), *hostile, *commands.closing()]
    after = "::notice::later"
    told = [item for item in workflow_commands("\n".join([*log, after])) if item[0] != "add-mask"]
    assert told == [("error", "", "ours"), ("notice", "", "later")]


def test_the_word_that_ends_the_silence_is_never_the_same() -> None:
    first, second = (list(Commands(Actions(inside=True)).opening())[-1] for _ in range(2))
    assert first != second


def test_tokens_are_masked_before_anything_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_WRITE_TOKEN", "hf_a%token")
    monkeypatch.setenv("SHORT_TOKEN", "abc")
    lines = list(Commands(Actions(inside=True)).opening())
    assert "::add-mask::hf_a%25token" in lines
    assert not any("abc" in line for line in lines)
    assert lines[-1].startswith("::stop-commands::")


def test_a_long_message_is_cut_and_a_token_in_it_is_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GITHUB_TOKEN", "ghs_0123456789")
    assert len(annotation("error", "x" * 10_000)) < 4096
    assert annotation("error", "with ghs_0123456789", title="ghs_0123456789") == "::error title=***::with ***"


def test_on_a_terminal_there_are_no_commands() -> None:
    commands = Commands(Actions())
    assert [*commands.opening(), *commands.annotation("error", "x"), *commands.closing()] == []
