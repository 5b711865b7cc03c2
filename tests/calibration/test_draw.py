"""Which rows of a source are left out, and how many may be."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bot.calibration.draw import Drawn, draw
from bot.calibration.encoding import load_encoder
from bot.calibration.evaluation import evaluation_tokens
from bot.errors import QuantizationError
from bot.records import Evaluation, TextSource, no_progress
from tests.support.sandbox import ASSETS

# As Gemma's has it: https://huggingface.co/google/gemma-2-9b-it/blob/main/tokenizer_config.json
NO_SYSTEM = """\
{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}
{% for message in messages %}<{{ message.role }}>{{ message.content }}{% endfor %}"""

FILE = TextSource(file="a.jsonl")
DrawAll = Callable[..., Drawn]


def chat(number: int) -> list[dict[str, Any]]:
    words = " ".join(f"word{number * 37 % 101}{letter}" for letter in "abcdefghij")
    return [
        {"role": "user", "content": f"What is {number}? {words}"},
        {"role": "assistant", "content": "A number."},
    ]


UNDER_A_SYSTEM_PROMPT = [{"role": "system", "content": "Be kind."}, *chat(97)]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    ignored = shutil.ignore_patterns("model.safetensors")
    folder = shutil.copytree(ASSETS / "qwen3-tiny", tmp_path / "model", ignore=ignored)
    (folder / "chat_template.jinja").write_text(NO_SYSTEM)
    return folder


@pytest.fixture
def draw_all(model: Path, tmp_path: Path) -> DrawAll:
    """Draw from a file or data set of these conversations, until there are no more."""

    def draw_all(rows: list[Any], source: TextSource = FILE) -> Drawn:
        path = tmp_path / ("owner--set@abc" if source.dataset else "") / "a.jsonl"
        path.parent.mkdir(exist_ok=True)
        write(path, rows)
        encoder = load_encoder(model, trust_remote_code=False)
        return draw(
            source,
            tmp_path,
            encoder,
            needed=10**6,
            seq_len=64,
            seed=0,
            seen=frozenset(),
            progress=no_progress,
        )

    return draw_all


def write(path: Path, rows: list[Any]) -> None:
    path.write_text("".join(json.dumps({"messages": row}) + "\n" for row in rows))


def test_rows_that_cannot_be_used_are_left_out_and_counted_by_reason(draw_all: DrawAll) -> None:
    parts = [{"type": "text", "text": "What is that? \ud83d"}, {"type": "image_url", "image_url": {"url": "x"}}]
    bad = [[], [{"role": "user", "content": None}], UNDER_A_SYSTEM_PROMPT]
    good = [[{"role": "user", "content": parts}], *(chat(number) for number in range(76))]
    drawn = draw_all([*bad, *good])
    assert drawn.documents == 77
    assert drawn.rows_left_out == {"without messages": 1, "without text": 1, "refused by the chat template": 1}
    assert (drawn.parts_left_out, drawn.replaced_characters, drawn.duplicates) == (1, 1, 0)


def test_the_text_of_parts_is_that_of_a_string(draw_all: DrawAll) -> None:
    """A template that prints a content would print Python's repr of a list."""
    strings, lists = (
        [[{**message, "content": wrap(message["content"])} for message in chat(number)] for number in range(9)]
        for wrap in (str, lambda text: [{"type": "text", "text": text}])
    )
    assert draw_all(strings).ids == draw_all(lists).ids


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (UNDER_A_SYSTEM_PROMPT, "5 refused by the chat template), such as {}:{}: System role not supported"),
        ([{"role": "user", "content": None}], "5 without text), such as {}:{}"),
    ],
)
@pytest.mark.parametrize(
    ("source", "where", "hint"),
    [
        (FILE, "a.jsonl", "Correct these rows, or choose another `column` or file."),
        (
            TextSource(dataset="owner/set", revision="abc"),
            "owner/set@abc/a.jsonl",
            "Choose another `column`, `split` or data set.",
        ),
    ],
)
def test_more_than_one_in_twenty_is_an_error_that_says_which_and_why(
    draw_all: DrawAll, bad: list[Any], words: str, source: TextSource, where: str, hint: str
) -> None:
    rows = [*(chat(number) for number in range(80)), *[bad] * 5]
    with pytest.raises(QuantizationError) as caught:
        draw_all(rows, source)
    said = caught.value.message
    assert said.startswith(f"{source.label}: 5 of 85 rows drawn cannot be used (")
    assert any(words.format(where, number) in said for number in range(81, 86))
    assert caught.value.hint == hint
    one_in_twenty = [*rows, *(chat(number) for number in range(80, 95))]
    assert sum(draw_all(one_in_twenty, source).rows_left_out.values()) == 5


def test_a_source_of_such_rows_alone_is_not_read_to_its_end(
    draw_all: DrawAll, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bot.calibration.draw._FIRST_DRAW", 3)
    with pytest.raises(QuantizationError, match="3 of 3 rows drawn cannot be used"):
        draw_all([[]] * 90)


def test_an_own_evaluation_text_is_held_to_the_same(model: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    rows = [*(chat(number) for number in range(80)), *[UNDER_A_SYSTEM_PROMPT] * 4]
    write(path, rows)
    asked = Evaluation(sources=(TextSource(file=str(path)),))
    tokens, _ = evaluation_tokens(asked, tokenizer_folder=model, trust_remote_code=False, seq_len=64)
    write(path, [*rows, []])
    with pytest.raises(QuantizationError, match=r"a\.jsonl: 5 of 85 rows .*System role not supported"):
        evaluation_tokens(asked, tokenizer_folder=model, trust_remote_code=False, seq_len=64)
    assert tokens.shape[1] == 64
