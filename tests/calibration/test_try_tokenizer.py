"""A refresh's small files, tried before anybody gets them."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from bot.calibration.encoding import try_tokenizer
from bot.errors import QuantizationError
from tests.support.sandbox import ASSETS, MODELS


@pytest.mark.parametrize("name", MODELS)
def test_files_that_fit_each_other_pass(name: str) -> None:
    try_tokenizer(ASSETS / name, trust_remote_code=False)


@pytest.mark.parametrize(("vocabulary", "unknown"), [({"?": 7}, "?"), ({"?": 0}, None)], ids=["too high", "none"])
def test_ids_that_the_vocabulary_does_not_hold_are_refused(
    tmp_path: Path, vocabulary: dict[str, int], unknown: str | None
) -> None:
    """With holes, as an edit by hand leaves them; and one that has neither words nor anything instead."""
    model = models.WordLevel(vocabulary, unk_token=unknown) if unknown else models.BPE(vocabulary, [])
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    with pytest.raises(QuantizationError, match="ids that are not in its vocabulary") as caught:
        try_tokenizer(tmp_path, trust_remote_code=False)
    assert "nothing was published" in caught.value.hint


def test_chat_template_that_refuses_a_plain_question_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(ASSETS / "qwen3-tiny", folder, ignore=shutil.ignore_patterns("*.safetensors"))
    (folder / "chat_template.jinja").write_text("{{ raise_exception('no questions') }}")
    with pytest.raises(QuantizationError, match="no questions"):
        try_tokenizer(folder, trust_remote_code=False)
