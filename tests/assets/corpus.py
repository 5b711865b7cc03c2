"""One byte-level BPE for all models, and the token streams they are trained and measured on."""

import json
from pathlib import Path
from typing import Any, Final

import torch
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from torch import Tensor
from transformers import AutoTokenizer

from bot.calibration import stdlib

# 256 bytes and 1,784 merges; what is left up to vocab_size 2,048 is for special tokens.
BASE_VOCABULARY: Final = 2040
BLOCKS, BLOCK_LEN = 64, 512
# In hundredths of the built-in text's hash range. Calibration uses 70 to 83.
SPLITS: Final = {"train": range(70), "dev": range(84, 92), "test": range(92, 100)}
# Qwen2's splitting rule: contractions, words, single digits, punctuation, line ends, runs of spaces.
_SPLIT: Final = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def write_tokenizer(repo: Path) -> None:
    """tokenizer.json of a repo, with the special tokens its tokenizer_config.json names."""
    tokenizer = _trained_bpe()
    settings = json.loads((repo / "tokenizer_config.json").read_text())
    special = [entry["content"] for _, entry in sorted(settings["added_tokens_decoder"].items())]
    tokenizer.add_special_tokens(special)
    byte_level = processors.ByteLevel(trim_offsets=False)
    if bos := settings["bos_token"]:
        template = processors.TemplateProcessing(
            single=f"{bos} $A",
            pair=f"{bos} $A {bos}:1 $B:1",
            special_tokens=[(bos, tokenizer.token_to_id(bos))],
        )
        tokenizer.post_processor = processors.Sequence([byte_level, template])
    else:
        tokenizer.post_processor = byte_level
    tokenizer.save(str(repo / "tokenizer.json"))


def write_vocabulary(repo: Path) -> None:
    """vocab.json and merges.txt, which repos of Qwen carry beside tokenizer.json."""
    bpe = json.loads((repo / "tokenizer.json").read_text())["model"]
    (repo / "vocab.json").write_text(json.dumps(bpe["vocab"], ensure_ascii=False) + "\n", encoding="utf-8")
    lines = ["#version: 0.2", *(" ".join(pair) for pair in bpe["merges"])]
    (repo / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")


def training_stream(repo: Path) -> Tensor:
    """The `train` split as one stream, int64 [n]; every fourth document is an answer in the repo's chat format."""
    tokenizer = AutoTokenizer.from_pretrained(repo)
    ids: list[int] = []
    for index, path in enumerate(stdlib.modules(SPLITS["train"])):
        document = stdlib.read(path)
        ids += _chat(tokenizer, path.stem, document) if index % 4 == 3 else _document(tokenizer, document)
    return torch.tensor(ids)


def documents(split: str) -> list[str]:
    return [stdlib.read(path) for path in stdlib.modules(SPLITS[split])]


def blocks(repo: Path, split: str) -> Tensor:
    """Blocks of BLOCK_LEN tokens spread evenly over a split, uint16 [BLOCKS, BLOCK_LEN]."""
    tokenizer = AutoTokenizer.from_pretrained(repo)
    ids = [token for document in documents(split) for token in _document(tokenizer, document)]
    whole = torch.tensor(ids[: len(ids) // BLOCK_LEN * BLOCK_LEN]).view(-1, BLOCK_LEN)
    return whole[torch.linspace(0, len(whole) - 1, BLOCKS).long()].to(torch.uint16)


def _document(tokenizer: Any, document: str) -> list[int]:
    # The first added token after the vocabulary separates documents; Llama's starts them, by its post-processor.
    separator = [] if tokenizer.bos_token else [tokenizer.pad_token_id]
    ids: list[int] = tokenizer(document).input_ids
    return ids + separator


def _chat(tokenizer: Any, name: str, document: str) -> list[int]:
    messages = [
        {"role": "user", "content": f"Show me the module {name}."},
        {"role": "assistant", "content": document},
    ]
    rendered = tokenizer.apply_chat_template(messages, tokenize=False)
    ids: list[int] = tokenizer(rendered, add_special_tokens=False).input_ids
    return ids


def _trained_bpe() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    split = pre_tokenizers.Split(Regex(_SPLIT), behavior="isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=BASE_VOCABULARY, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(documents("train"), trainer)
    return tokenizer
