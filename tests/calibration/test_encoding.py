"""Tokens by the model's own tokenizer and chat template."""

import json
import shutil
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from bot.calibration.documents import Document
from bot.calibration.encoding import load_encoder
from bot.errors import QuantizationError

ASSETS = Path(__file__).parent.parent / "assets"
CHAT = Document(
    messages=({"role": "user", "content": "Why?"}, {"role": "assistant", "content": "Because."}),
    origin="a.jsonl:1",
)


def raw_ids(name: str, text: str) -> list[int]:
    tokenizer = Tokenizer.from_file(str(ASSETS / name / "tokenizer.json"))
    ids: list[int] = tokenizer.encode(text, add_special_tokens=False).ids
    return ids


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A tokenizer that a test may change."""
    ignored = shutil.ignore_patterns("model.safetensors", "config.json")
    return shutil.copytree(ASSETS / "qwen3-tiny", tmp_path / "model", ignore=ignored)


@pytest.mark.parametrize(("name", "special"), [("qwen3-tiny", 0), ("llama-tiny", 1)])
def test_text_gets_the_special_tokens_of_its_tokenizer(name: str, special: int) -> None:
    ids = load_encoder(ASSETS / name, trust_remote_code=False).encode(Document(text="import os\n"))
    assert ids[special:] == raw_ids(name, "import os\n")


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
    assert ids == raw_ids(name, rendered)


def test_to_a_model_without_a_template_a_chat_is_a_text_as_any_other(folder: Path) -> None:
    (folder / "chat_template.jinja").unlink()
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
def test_a_template_that_refuses_or_reaches_out_of_its_sandbox_is_an_error(folder: Path, template: str) -> None:
    (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    with pytest.raises(QuantizationError, match="chat template fails"):
        load_encoder(folder, trust_remote_code=False).encode(CHAT)


def test_a_tokenizer_that_does_not_load_is_an_error(folder: Path) -> None:
    (folder / "tokenizer.json").write_text("{", encoding="utf-8")
    with pytest.raises(QuantizationError, match="does not load") as caught:
        load_encoder(folder, trust_remote_code=False)
    assert "\n" not in caught.value.message


def test_custom_tokenizer_code_is_not_run_unless_that_is_allowed(folder: Path, tmp_path: Path) -> None:
    witness = tmp_path / "was-run"
    (folder / "own.py").write_text(f"open({str(witness)!r}, 'w')\n", encoding="utf-8")
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings |= {"tokenizer_class": "OwnTokenizer", "auto_map": {"AutoTokenizer": ["own.OwnTokenizer", None]}}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    with pytest.raises(QuantizationError, match="custom code") as caught:
        load_encoder(folder, trust_remote_code=False)
    assert "trust_remote_code" in caught.value.hint
    assert not witness.exists()
