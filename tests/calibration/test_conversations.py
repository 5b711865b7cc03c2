"""Rows of every shape that data sets have, as the messages that a template is shown, or the reason why not."""

from typing import Any

import pytest

from bot.calibration.conversations import (
    Conversation,
    Reason,
    conversation_of,
    messages_without_surrogates,
    text_of,
    without_surrogates,
)

USER = {"role": "user", "content": "Why?"}


def text(words: str) -> dict[str, str]:
    return {"type": "text", "text": words}


@pytest.mark.parametrize(
    ("row", "content", "parts_left_out"),
    [
        ({"role": "user", "content": "Why?"}, "Why?", 0),
        ({"role": "user", "content": ""}, "", 0),
        ({"role": "user", "content": [text("Why?")]}, "Why?", 0),
        ({"role": "user", "content": [text("Why?"), text("How?")]}, "Why?\nHow?", 0),
        ({"role": "user", "content": ["Why?", {"text": "How?"}]}, "Why?\nHow?", 0),
        ({"role": "user", "content": [{"type": "input_text", "text": "Why?"}]}, "Why?", 0),
        # As parquet has them: every key in every part.
        ({"role": "user", "content": [{"type": "image", "text": None}, text("Why?")]}, "Why?", 1),
        ({"role": "user", "content": [{"type": "audio", "text": "a transcript"}, text("Why?"), 7]}, "Why?", 2),
        ({"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "sum"}}]}, "", 0),
    ],
)
def test_a_content_becomes_one_string(row: dict[str, Any], content: str, parts_left_out: int) -> None:
    found = conversation_of([row])
    assert found.messages == (row | {"content": content},)
    assert (found.reason, found.parts_left_out) == (None, parts_left_out)


def test_sharegpt_rows_are_messages() -> None:
    row = [
        {"from": "system", "value": "Be kind."},
        {"from": "human", "value": "Why?"},
        {"from": "gpt", "value": "So."},
    ]
    found = conversation_of(row)
    assert [(message["role"], message["content"]) for message in found.messages] == [
        ("system", "Be kind."),
        ("user", "Why?"),
        ("assistant", "So."),
    ]
    assert all(message.keys() == {"role", "content"} for message in found.messages)
    assert text_of(found.messages) == "Why?\nSo."


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ([], "without messages"),
        ([USER, {"role": "assistant", "content": None}], "without text"),
        ([{"role": "user"}], "without text"),
        ([{"role": "user", "content": []}], "without text"),
        ([{"role": "user", "content": [{"type": "image", "url": "a.png"}]}], "without text"),
        ([{"role": "user", "content": 4}], "without text"),
        ([{"role": "assistant", "content": None, "tool_calls": []}], "without text"),
        ([{"content": "Why?"}], "without a role"),
        ([{"role": None, "content": "Why?"}], "without a role"),
        ([{"role": 7, "content": "Why?"}], "without a role"),
        ([{"role": " ", "content": "Why?"}], "without a role"),
        (["Why?"], "without a role"),
        ([[USER]], "without a role"),
    ],
)
def test_a_row_that_cannot_be_used_says_why(row: list[Any], reason: Reason) -> None:
    assert conversation_of(row) == Conversation(reason=reason)


def test_keys_that_a_message_does_not_use_are_not_shown_to_a_template() -> None:
    (message,) = conversation_of([USER | {"name": None, "weight": 1}]).messages
    assert message == USER | {"weight": 1}


def test_halves_of_surrogate_pairs_are_replaced_and_counted() -> None:
    assert without_surrogates("a\ud83d \ude00 \N{GRINNING FACE}\0") == ("a\ufffd \ufffd \N{GRINNING FACE}\0", 2)
    call = {"function": {"name": "x\udfff", "arguments": {"\ud800": [1, None, "\ud800"]}}}
    messages, replaced = messages_without_surrogates((USER | {"content": "\ud83d", "tool_calls": [call]},))
    assert replaced == 4
    assert messages[0]["content"] == "\ufffd"
    assert messages[0]["tool_calls"] == [
        {"function": {"name": "x\ufffd", "arguments": {"\ufffd": [1, None, "\ufffd"]}}}
    ]
