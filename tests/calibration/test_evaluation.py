"""Which tokens are measured on: blocks of each source by weight, spread over a text or drawn from it."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, AutoTokenizer

from bot.calibration import stdlib
from bot.calibration.evaluation import evaluation_tokens
from bot.errors import QuantizationError, UnsupportedModelError
from bot.quantize.architectures import check_blocks
from bot.records import Evaluation, EvaluationText, TextSource
from tests.calibration.test_blocks import QWEN, ids_of, prose, write_jsonl
from tests.support.tiny_configs import tiny_settings

LLAMA = QWEN.parent / "llama-tiny"
BUILTIN = TextSource(builtin="stdlib")


def blocks_of(
    *sources: TextSource, blocks: int = 64, seq_len: int = 64, model: Path = QWEN, **settings: Any
) -> tuple[Tensor, tuple[EvaluationText, ...]]:
    asked = Evaluation(tokens=blocks * seq_len, sources=sources)
    return evaluation_tokens(asked, tokenizer_folder=model, trust_remote_code=False, seq_len=seq_len, **settings)


def own_text(folder: Path, words: int) -> TextSource:
    (folder / "own.txt").write_text(prose(words, 3), encoding="utf-8")
    return TextSource(file=str(folder / "own.txt"))


def pinned(source: TextSource, folder: Path) -> TextSource:
    """As a watchlist's file is once it is pulled."""
    content = (folder / str(source.file)).read_bytes()
    digest = sha256(content).hexdigest()
    (folder / digest).with_suffix(Path(str(source.file)).suffix).write_bytes(content)
    return replace(source, sha256=digest)


def refused(*sources: TextSource, **settings: Any) -> str:
    with pytest.raises(QuantizationError) as caught:
        blocks_of(*sources, **settings)
    assert caught.value.hint
    return caught.value.message


# --- one text -----------------------------------------------------------------------------------------------


def test_built_in_text_is_the_test_split_spread_evenly_in_order() -> None:
    tokens, texts = blocks_of(BUILTIN, blocks=12, seq_len=128)
    whole, _ = blocks_of(BUILTIN, blocks=10**6, seq_len=128)
    assert texts == (EvaluationText(label="builtin:stdlib (test split)", blocks=12),)
    assert torch.equal(tokens, whole[[number * len(whole) // 12 for number in range(12)]])
    decoded = AutoTokenizer.from_pretrained(QWEN).decode(whole[0])
    assert stdlib.documents("test")[0].startswith(decoded)


def test_by_default_there_are_64_blocks_of_512() -> None:
    tokens, _ = evaluation_tokens(tokenizer_folder=QWEN, trust_remote_code=False)
    assert tokens.shape == (64, 512)


def test_every_block_begins_with_the_models_bos_and_holds_no_other(tmp_path: Path) -> None:
    tokens, _ = blocks_of(own_text(tmp_path, 900), model=LLAMA)
    bos = AutoTokenizer.from_pretrained(LLAMA).bos_token_id
    assert tokens.shape == (64, 64)
    assert (tokens == bos).sum(dim=1).tolist() == [1] * 64
    assert (tokens[:, 0] == bos).all()


def test_an_own_text_gives_as_many_blocks_as_it_has(tmp_path: Path) -> None:
    tokens, texts = blocks_of(own_text(tmp_path, 300))
    assert [text.label for text in texts] == ["own.txt"]
    assert 8 < len(tokens) == texts[0].blocks == len(ids_of(prose(300, 3))) // 64 < 64


def test_an_own_text_that_is_too_short_or_not_there_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "own.txt"
    path.write_text("import os\n", encoding="utf-8")
    count = len(ids_of("import os\n"))
    message = f"own.txt: {count} tokens are too few to measure on; at least 512 are needed (8 blocks of 64)"
    assert refused(TextSource(file=str(path))) == message
    assert "does not exist" in refused(TextSource(file=str(tmp_path / "none.txt")))


@pytest.mark.parametrize("model_type", ["gpt2", "gptj", "opt", "roberta", "llama"])
def test_blocks_are_no_longer_than_the_model_reads_and_so_many_more(model_type: str, tmp_path: Path) -> None:
    """Learned positions, some behind an offset: one token more is an IndexError."""
    sizes: dict[str, Any] = (
        {"n_positions": 40} if model_type.startswith("gpt") else {"max_position_embeddings": 40}
    )
    sizes |= {"vocab_size": 2048, "pad_token_id": 1}
    config = CONFIG_MAPPING[model_type](**tiny_settings(model_type) | sizes)
    config.is_decoder = True
    model = AutoModelForCausalLM.from_config(config)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(QWEN / name, tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(config.to_dict()))
    tokens, _ = blocks_of(BUILTIN, model=tmp_path, blocks=1, seq_len=512)
    assert tokens.shape == ((13, 38) if model_type == "roberta" else (12, 40))
    with torch.inference_mode():
        assert model(tokens).logits.isfinite().all()
        check_blocks(tokens, model)
    longer = torch.cat([tokens, tokens[:, :1]], dim=1)
    with pytest.raises(QuantizationError, match=f"the model reads {tokens.shape[1]}"):
        check_blocks(longer, model)


def test_a_model_that_reads_hardly_anything_is_refused(tmp_path: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(QWEN / name, tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "qwen3", "max_position_embeddings": 4}')
    with pytest.raises(UnsupportedModelError, match=r"config\.json: the model reads 4 tokens at once"):
        blocks_of(BUILTIN, model=tmp_path)


# --- several texts ------------------------------------------------------------------------------------------


def test_each_source_gives_its_blocks_by_weight_one_after_the_other(tmp_path: Path) -> None:
    texts = pinned(write_jsonl(tmp_path / "a.jsonl", [prose(100, number) for number in range(30)]), tmp_path)
    tokens, used = blocks_of(replace(BUILTIN, weight=3), texts, blocks=40, folder=tmp_path)
    assert [(text.label, text.blocks) for text in used] == [("builtin:stdlib (test split)", 30), ("a.jsonl", 10)]
    assert torch.equal(tokens[:30], blocks_of(BUILTIN, blocks=30)[0])
    assert torch.equal(tokens[30:], blocks_of(texts, blocks=10, folder=tmp_path)[0])


def test_of_pinned_text_documents_are_drawn_by_the_hash_of_their_place(tmp_path: Path) -> None:
    rows = [f"document number {number} {prose(40, number)}" for number in range(60)]
    source = pinned(write_jsonl(tmp_path / "many.jsonl", rows), tmp_path)
    tokens, _ = blocks_of(source, blocks=16, folder=tmp_path)
    order = sorted(range(60), key=lambda number: sha256(f"0/{number}".encode()).digest())
    stream = [token for number in order for token in ids_of(rows[number])]
    assert tokens.flatten().tolist() == stream[:1024]


def test_conversations_are_in_the_models_template_and_refused_without_one(tmp_path: Path) -> None:
    chats = pinned(write_jsonl(tmp_path / "chats.jsonl", [prose(90, n) for n in range(9)], chat=True), tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(QWEN)
    assert tokenizer.chat_template
    assert "<|im_start|>user" in tokenizer.decode(blocks_of(chats, blocks=8, folder=tmp_path)[0].flatten())
    plain = shutil.copytree(QWEN, tmp_path / "model", ignore=shutil.ignore_patterns("*.safetensors", "*.jinja"))
    assert AutoTokenizer.from_pretrained(plain).chat_template is None
    said = "chats.jsonl holds chats, and the model has no chat template"
    assert refused(chats, blocks=8, folder=tmp_path, model=plain) == said
    local = TextSource(file=str(tmp_path / "chats.jsonl"))
    assert refused(local, blocks=8, model=plain) == said


def test_pinned_text_has_to_give_all_that_was_asked_for(tmp_path: Path) -> None:
    source = pinned(write_jsonl(tmp_path / "a.jsonl", [prose(100, number) for number in range(4)]), tmp_path)
    count = sum(len(ids_of(prose(100, number))) for number in range(4))
    assert 8 * 64 < count < 64 * 64
    message = f"a.jsonl: {count:,} tokens are too few to measure on; 4,096 are needed (64 blocks of 64)"
    assert refused(source, folder=tmp_path) == message


def test_a_source_with_hardly_any_blocks_is_an_error() -> None:
    message = "builtin:stdlib (test split): 7 of 64 blocks of 64 tokens to measure on; at least 8 are needed"
    assert refused(replace(BUILTIN, weight=57), replace(BUILTIN, weight=7)) == message


def test_a_row_that_cannot_be_used_counts_as_in_calibration(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"messages": []} if number % 2 else {"text": prose(60, number)} for number in range(40)
    ]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for source in (TextSource(file=str(tmp_path / "a.jsonl")), pinned(TextSource(file="a.jsonl"), tmp_path)):
        assert "rows drawn cannot be used (" in refused(source, folder=tmp_path)
