"""A model's small files are tried before its weights are pulled."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from bot.calibration.trial import try_small_files
from bot.errors import BotError

ASSETS = Path(__file__).parent.parent / "assets"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model without weights that a test may change."""
    ignored = shutil.ignore_patterns("model.safetensors")
    return shutil.copytree(ASSETS / "qwen3-tiny", tmp_path / "model", ignore=ignored)


@pytest.mark.parametrize("name", ["qwen3-tiny", "llama-tiny"])
def test_small_files_that_work_pass(name: str) -> None:
    try_small_files(ASSETS / name, trust_remote_code=False)


@pytest.mark.parametrize(
    ("path", "content", "message"),
    [
        ("chat_template.jinja", "{% broken", "chat_template.jinja: the chat template has a syntax error: line 1"),
        (
            "chat_template.jinja",
            "{{ raise_exception('no') }}",
            "chat_template.jinja: the chat template fails on a simple question: no",
        ),
        ("generation_config.json", "{", "generation_config.json: not valid JSON"),
        ("generation_config.json", "[]", "generation_config.json: not a JSON object"),
        ("generation_config.json", '{"max_new_tokens": -5}', "generation_config.json: "),
        ("special_tokens_map.json", "\ufeff{}", "special_tokens_map.json: not valid JSON: Unexpected UTF-8 BOM"),
        (
            "tokenizer_config.json",
            '{"a": 1, "a": 2}',
            "tokenizer_config.json: not valid JSON: key 'a' occurs twice",
        ),
        ("tokenizer.json", "{}", "the tokenizer in"),
    ],
)
def test_the_file_that_does_not_work_is_named(folder: Path, path: str, content: str, message: str) -> None:
    (folder / path).write_text(content)
    with pytest.raises(BotError) as caught:
        try_small_files(folder, trust_remote_code=False)
    assert message in caught.value.message


@pytest.mark.parametrize(
    ("vocabulary", "unknown", "message"),
    [
        ({"?": 7}, "?", ""),  # with gaps, as an edit by hand leaves them
        ({"?": 5000}, "?", "the tokenizer gives the id 5000, but config.json has a vocab_size of 2048"),
        ({"?": 0}, None, "the tokenizer encodes a sentence to no tokens"),
    ],
)
def test_ids_have_to_be_in_the_models_vocabulary(
    folder: Path, vocabulary: dict[str, int], unknown: str | None, message: str
) -> None:
    model = models.WordLevel(vocabulary, unk_token=unknown) if unknown else models.BPE(vocabulary, [])
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    (folder / "chat_template.jinja").unlink()
    assert json.loads((folder / "config.json").read_text())["vocab_size"] == 2048
    if not message:
        try_small_files(folder, trust_remote_code=False)
        return
    with pytest.raises(BotError) as caught:
        try_small_files(folder, trust_remote_code=False)
    assert message in caught.value.message
