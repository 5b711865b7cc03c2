"""Tokens by the model's own tokenizer and chat template."""

import json
import shutil
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from bot.calibration.documents import Document
from bot.calibration.encoding import load_encoder, try_tokenizer
from bot.errors import QuantizationError

ASSETS = Path(__file__).parent.parent / "assets"
CHAT = Document(
    messages=({"role": "user", "content": "Why?"}, {"role": "assistant", "content": "Because."}),
    origin="a.jsonl:1",
)


def copied_tokenizer(name: str, folder: Path) -> Path:
    folder.mkdir()
    for path in (ASSETS / name).glob("*token*"):
        shutil.copy(path, folder)
    return folder


@pytest.mark.parametrize(("name", "special"), [("qwen3-tiny", 0), ("llama-tiny", 1)])
def test_text_gets_the_special_tokens_of_its_tokenizer(name: str, special: int) -> None:
    ids = load_encoder(ASSETS / name, trust_remote_code=False).encode(Document(text="import os\n"))
    raw = Tokenizer.from_file(str(ASSETS / name / "tokenizer.json")).encode(
        "import os\n", add_special_tokens=False
    )
    assert ids[special:] == raw.ids


@pytest.mark.parametrize(
    ("name", "rendered"),
    [
        ("qwen3-tiny", "<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\nBecause.<|im_end|>\n"),
        (
            "llama-tiny",
            "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nWhy?<|eot_id|>"
            "<|start_header_id|>assistant<|end_header_id|>\n\nBecause.<|eot_id|>",
        ),
    ],
)
def test_a_chat_is_what_the_models_own_template_makes_of_it_with_no_second_bos(name: str, rendered: str) -> None:
    ids = load_encoder(ASSETS / name, trust_remote_code=False).encode(CHAT)
    raw = Tokenizer.from_file(str(ASSETS / name / "tokenizer.json")).encode(rendered, add_special_tokens=False)
    assert ids == raw.ids


def test_to_a_model_without_a_template_a_chat_is_a_text_as_any_other(tmp_path: Path) -> None:
    folder = copied_tokenizer("llama-tiny", tmp_path / "model")
    config = json.loads((folder / "tokenizer_config.json").read_text())
    del config["chat_template"]
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    encoder = load_encoder(folder, trust_remote_code=False)
    assert encoder.encode(CHAT) == encoder.encode(Document(text="Why?\nBecause."))


@pytest.mark.parametrize(
    "template",
    [
        "{{ raise_exception('roles must alternate') }}",
        "{% for message in messages %}{{ message.content.missing.deeper }}{% endfor %}",
        "{% broken",
        "{{ messages.__class__.__base__.__subclasses__()() }}",
    ],
)
def test_a_template_that_refuses_or_reaches_out_of_its_sandbox_is_an_error(tmp_path: Path, template: str) -> None:
    folder = copied_tokenizer("qwen3-tiny", tmp_path / "model")
    (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    with pytest.raises(QuantizationError, match="chat template fails"):
        load_encoder(folder, trust_remote_code=False).encode(CHAT)


def test_a_tokenizer_that_does_not_load_is_an_error(tmp_path: Path) -> None:
    folder = copied_tokenizer("qwen3-tiny", tmp_path / "model")
    (folder / "tokenizer.json").write_text("{", encoding="utf-8")
    with pytest.raises(QuantizationError, match="does not load") as caught:
        load_encoder(folder, trust_remote_code=False)
    assert "\n" not in caught.value.message


def test_a_tokenizer_of_its_own_code_is_not_loaded_unless_that_is_allowed(tmp_path: Path) -> None:
    folder = copied_tokenizer("qwen3-tiny", tmp_path / "model")
    witness = tmp_path / "was-run"
    (folder / "own.py").write_text(f"open({str(witness)!r}, 'w')\n", encoding="utf-8")
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings |= {"tokenizer_class": "OwnTokenizer", "auto_map": {"AutoTokenizer": ["own.OwnTokenizer", None]}}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    with pytest.raises(QuantizationError, match="custom code") as caught:
        load_encoder(folder, trust_remote_code=False)
    assert "trust_remote_code" in caught.value.hint
    assert not witness.exists()


@pytest.mark.parametrize("name", ["qwen3-tiny", "llama-tiny"])
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


def test_refresh_whose_chat_template_fails_is_refused(tmp_path: Path) -> None:
    folder = copied_tokenizer("qwen3-tiny", tmp_path / "model")
    (folder / "chat_template.jinja").write_text("{{ raise_exception('no questions') }}")
    with pytest.raises(QuantizationError, match="no questions"):
        try_tokenizer(folder, trust_remote_code=False)
