"""Built-in prose, code and dialogue: two splits that share nothing, the package's own texts before others."""

from __future__ import annotations

import re
import shutil
import tomllib
from pathlib import Path
from typing import get_args

import pytest
from transformers import AutoTokenizer

from bot.calibration import builtin, stdlib
from bot.calibration.conversations import text_of
from bot.calibration.documents import Document, read
from bot.calibration.draw import Drawn, draw
from bot.calibration.encoding import load_encoder
from bot.records import BUILTIN_TEXTS, DEFAULT_BUILTIN, Builtin, TextSource, no_progress
from tests.support.sandbox import ASSETS

SPLITS: tuple[stdlib.Split, ...] = ("calibrate", "test")
DIALOGUE = TextSource(builtin="dialogue")


def documents(name: str, split: stdlib.Split) -> list[Document]:
    return list(read(TextSource(builtin=name), Path(), split=split))


def paragraphs(name: str, split: stdlib.Split) -> set[str]:
    found = (
        part.strip() for document in documents(name, split) for part in re.split(r"\n\s*\n", document.content)
    )
    return {part for part in found if len(part) >= 200}


@pytest.mark.parametrize("name", get_args(Builtin))
@pytest.mark.parametrize("split", SPLITS)
def test_every_split_is_the_same_each_time_and_long_enough(name: str, split: stdlib.Split) -> None:
    """For a third of 128 blocks of 512 calibration tokens, or of 32,768 to measure on, at 5 characters each."""
    found = documents(name, split)
    assert found == documents(name, split)
    assert sum(len(document.content) for document in found) > {"calibrate": 110_000, "test": 45_000}[split]
    assert all(document.content.strip() and document.origin.startswith(f"builtin:{name}") for document in found)


@pytest.mark.parametrize("name", DEFAULT_BUILTIN)
def test_no_paragraph_is_in_both_splits(name: str) -> None:
    test = paragraphs(name, "test")
    for other in ("prose", "dialogue"):  # modules of the code share a few comments, as they did before
        assert not paragraphs(other, "calibrate") & test


@pytest.mark.parametrize("name", ["code", "stdlib"])
@pytest.mark.parametrize("split", SPLITS)
def test_code_is_the_standard_library_under_both_names(name: str, split: stdlib.Split) -> None:
    assert "".join(document.text for document in documents(name, split)) == "".join(stdlib.documents(split))


@pytest.mark.parametrize("name", ["prose", "dialogue"])
def test_the_package_carries_its_own_texts_and_each_is_in_one_split(name: str) -> None:
    pyproject = tomllib.loads((ASSETS.parents[1] / "pyproject.toml").read_text())
    assert pyproject["tool"]["setuptools"]["package-data"]["bot.calibration"] == ["texts/*.txt"]
    file = Path(builtin.__file__).parent / "texts" / f"{name}.txt"
    assert file.stat().st_size < 150_000
    written = file.read_text().strip().split("\n---\n")
    titles = [text.split("\n", 1)[0] for text in written]
    assert len(set(titles)) == len(titles)
    own = [list(builtin.written(name, split)) for split in SPLITS]
    assert sorted(own[0] + own[1]) == sorted(written)
    assert all(len(part) > len(written) / 5 for part in own)


@pytest.mark.parametrize("split", SPLITS)
def test_dialogues_are_turns_of_user_and_assistant(split: stdlib.Split) -> None:
    for item in builtin.texts("dialogue", split):
        roles = [message["role"] for message in item.messages]
        assert roles == ["user", "assistant"] * (len(roles) // 2)
        assert roles
        assert all(message["content"] == message["content"].strip() != "" for message in item.messages)


# --- drawn for calibration ----------------------------------------------------------------------------------


def drawn(source: TextSource, model: Path, *, needed: int) -> Drawn:
    return draw(
        source,
        Path(),
        load_encoder(model, trust_remote_code=False),
        needed=needed,
        seq_len=64,
        seed=0,
        seen=frozenset(),
        progress=no_progress,
    )


@pytest.fixture
def model(tmp_path: Path) -> Path:
    ignored = shutil.ignore_patterns("model.safetensors")
    return shutil.copytree(ASSETS / "qwen3-tiny", tmp_path / "model", ignore=ignored)


def test_what_is_in_reserve_is_drawn_when_the_rest_is_used_up(model: Path) -> None:
    own = len(list(builtin.written("dialogue", "calibrate")))
    few, many = (drawn(DIALOGUE, model, needed=needed).taken for needed in (2000, 60_000))
    assert not any(document.reserve for document in few)
    assert few == many[: len(few)]
    assert [document.reserve for document in many] == [False] * own + [True] * (len(many) - own)
    assert len(many) > own


def test_dialogues_are_in_the_models_chat_template(model: Path) -> None:
    found = drawn(DIALOGUE, model, needed=300)
    text = AutoTokenizer.from_pretrained(model).decode(found.ids)
    first = found.taken[0].messages
    assert text.startswith(f"<|im_start|>user\n{first[0]['content']}<|im_end|>\n<|im_start|>assistant\n")


def test_dialogues_are_plain_text_without_a_template(model: Path) -> None:
    (model / "chat_template.jinja").unlink()
    found = drawn(DIALOGUE, model, needed=300)
    assert AutoTokenizer.from_pretrained(model).decode(found.ids).startswith(text_of(found.taken[0].messages))


def test_dialogues_are_plain_text_where_the_template_refuses_them(model: Path) -> None:
    """Such as that of a model that only translates: no one can correct built-in text."""
    refusal = "{% if messages|length > 1 %}{{ raise_exception('one text at a time') }}{% endif %}"
    (model / "chat_template.jinja").write_text(refusal + "<text>{{ messages[0].content }}")
    found = drawn(DIALOGUE, model, needed=300)
    assert found.rows_left_out == {}
    assert AutoTokenizer.from_pretrained(model).decode(found.ids).startswith(text_of(found.taken[0].messages))


def test_the_default_texts_are_one_of_each_kind() -> None:
    assert [source.label for source in BUILTIN_TEXTS] == ["builtin:prose", "builtin:code", "builtin:dialogue"]
