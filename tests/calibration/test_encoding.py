"""Tokens by the model's own tokenizer and chat template."""

import base64
import importlib.util
import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from bot.calibration import stdlib, tokenizer_files
from bot.calibration.documents import Document
from bot.calibration.encoding import _TEXT, load_encoder
from bot.errors import BotError, EnvironmentProblem, QuantizationError, UpstreamError

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


def write_words(folder: Path, vocabulary: dict[str, int], unknown: str | None = "?") -> None:
    """A tokenizer of whole words; without an unknown word, of nothing."""
    model = models.WordLevel(vocabulary, unk_token=unknown) if unknown else models.BPE(vocabulary, [])
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')


def test_holes_in_the_ids_are_fine_where_the_model_has_embeddings_for_them(tmp_path: Path) -> None:
    write_words(tmp_path, {"?": 7})
    (tmp_path / "config.json").write_text('{"model_type": "llama", "vocab_size": 8}')
    assert load_encoder(tmp_path, trust_remote_code=False).encode(Document(text="fox")) == [7]
    (tmp_path / "config.json").write_text('{"model_type": "llama", "vocab_size": 7}')
    with pytest.raises(
        UpstreamError, match=r"the tokenizer gives the id 7, but config\.json has a vocab_size of 7"
    ):
        load_encoder(tmp_path, trust_remote_code=False)


@pytest.mark.parametrize(
    ("files", "there"),
    [
        ({}, "there is none"),
        ({"vocab.txt": "hello\nworld\n"}, "there is vocab.txt"),
        ({"qwen.tiktoken": "IQ== 0\n", "vocab.txt": "!\n"}, "there are qwen.tiktoken, vocab.txt"),
        (None, "there is tokenizer.json"),
    ],
)
def test_a_tokenizer_that_encodes_text_to_nothing_is_to_blame(
    tmp_path: Path, files: dict[str, str] | None, there: str
) -> None:
    """transformers makes an empty tokenizer of what it cannot read."""
    shutil.copy(ASSETS / "qwen3-tiny" / "config.json", tmp_path)
    if files is None:
        write_words(tmp_path, {"?": 0}, unknown=None)
    for name, content in (files or {}).items():
        (tmp_path / name).write_text(content)
    with pytest.raises(UpstreamError) as caught:
        load_encoder(tmp_path, trust_remote_code=False)
    assert caught.value.message.endswith(
        f"the tokenizer encodes a sentence to no tokens; of vocabulary files {there}"
    )
    assert "tokenizer.json" in caught.value.hint


def test_a_length_that_is_no_number_is_not_looked_at(folder: Path) -> None:
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | {"model_max_length": "4096"}))
    encoder = load_encoder(folder, trust_remote_code=False)
    assert encoder.encode(Document(text="import os\n" * 5000)) == raw_ids("qwen3-tiny", "import os\n" * 5000)


def changed(folder: Path, **parts: object) -> None:
    """tokenizer.json with other parts."""
    whole = json.loads((folder / "tokenizer.json").read_text())
    (folder / "tokenizer.json").write_text(json.dumps(whole | parts))


def test_panics_of_the_rust_library_are_one_line_with_the_file(
    folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """They are no Exception."""
    changed(folder, normalizer={"type": "Precompiled", "precompiled_charsmap": "AAA="})
    with pytest.raises(QuantizationError) as caught:
        load_encoder(folder, trust_remote_code=False)
    assert "model does not load: tokenizer.json: Precompiled: Error" in caught.value.message
    write_words(folder, {"?": 0})
    changed(folder, pre_tokenizer={"type": "FixedLength", "length": 0})
    with pytest.raises(QuantizationError) as caught:
        load_encoder(folder, trust_remote_code=False)
    assert "model cannot encode a sentence: chunk size must be non-zero" in caught.value.message
    assert "panicked" in capfd.readouterr().err


def test_a_text_that_the_tokenizer_cannot_encode_is_named(tmp_path: Path) -> None:
    tokenizer = Tokenizer(models.Unigram([(char, -1.0) for char in sorted({*_TEXT})], None))
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    encoder = load_encoder(tmp_path, trust_remote_code=False)
    with pytest.raises(QuantizationError, match=r"cannot encode a\.jsonl:3: .*unknown token"):
        encoder.encode(Document(text="Ω", origin="a.jsonl:3"))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("tokenizer.json", b"{", "model does not load: tokenizer.json: "),
        ("tokenizer_config.json", b"{", "model does not load: tokenizer_config.json: "),
        ("tokenizer_config.json", b"[]", "model does not load: tokenizer_config.json: not a JSON object"),
        ("chat_template.jinja", b"\xff", "model does not load: chat_template.jinja: 'utf-8' codec"),
        ("tokenizer_config.json", b'{"tokenizer_class": 7}', "model does not load: "),
        (
            "config.json",
            b'{"model_type": "llama", "hidden_size": "128"}',
            "model/config.json: transformers cannot read",
        ),
        (
            "config.json",
            b'{"model_type": "llama", "text_config": {}}',
            "model/config.json: transformers cannot read",
        ),
        ("config.json", b"{", "model/config.json: not valid JSON"),
    ],
)
def test_the_file_that_is_wrong_is_named(folder: Path, name: str, content: bytes, message: str) -> None:
    (folder / name).write_bytes(content)
    with pytest.raises(BotError) as caught:
        load_encoder(folder, trust_remote_code=False)
    assert message in caught.value.message
    assert "\n" not in caught.value.message


def sentencepiece_model() -> bytes:
    sentencepiece: Any = importlib.import_module("sentencepiece")
    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(stdlib.documents("calibrate")[0].splitlines()),
        model_writer=written,
        model_type="bpe",
        vocab_size=400,
        byte_fallback=True,
        minloglevel=2,
    )
    return written.getvalue()


def tiktoken_file() -> bytes:
    tokens = [*(bytes([byte]) for byte in range(256)), b"he", b"ll", b"hell", b"hello"]
    return b"".join(base64.b64encode(token) + b" %d\n" % number for number, token in enumerate(tokens))


@pytest.mark.parametrize(("made", "size"), [(sentencepiece_model, 400), (tiktoken_file, 260)])
def test_a_folder_with_only_tokenizer_model_can_be_read(
    tmp_path: Path, made: Callable[[], bytes], size: int
) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", "vocab_size": size}))
    (tmp_path / "tokenizer.model").write_bytes(made())
    encoder = load_encoder(tmp_path, trust_remote_code=False)
    assert (
        encoder.tokenizer.decode(encoder.encode(Document(text="hello world"), special=False)).strip()
        == "hello world"
    )


@pytest.mark.parametrize(
    ("content", "absent", "needed"),
    [
        (b"\n\x0e\n\x05<unk>", ("sentencepiece",), "package sentencepiece"),
        (b"\n\x0e\n\x05<unk>", ("google",), "package protobuf"),
        (b"\n\x0e\n\x05<unk>", ("google", "sentencepiece"), "packages sentencepiece and protobuf"),
        (tiktoken_file(), ("tiktoken",), "package tiktoken"),
    ],
)
def test_a_package_that_is_missing_is_named(
    tmp_path: Path, content: bytes, absent: tuple[str, ...], needed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def found(name: str) -> object:
        return None if name in absent else importlib.util.find_spec("json")

    monkeypatch.setattr(tokenizer_files, "find_spec", found)
    (tmp_path / "tokenizer.model").write_bytes(content)
    with pytest.raises(EnvironmentProblem) as caught:
        raise tokenizer_files.not_loaded(tmp_path, "`tiktoken` is required", trust_remote_code=False)
    assert caught.value.message == f"{tmp_path / 'tokenizer.model'}: reading it needs the Python {needed}"
    assert caught.value.hint.startswith("pip install ")
