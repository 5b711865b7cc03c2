"""What the real model is measured on, and calibrated on. Nothing of it is fetched.

    python -m tests.benchmarks.texts        makes chat.jsonl again: the model's answers, in ten minutes of CPU time

prose: the descriptions of the packages in prose_packages.txt, as they are installed, paragraph by paragraph. The
    list is fixed, so that a new dependency does not change the text.
code: the standard library's `test` split.
chat: questions of our own, each with an answer that the model itself sampled, in its chat template. On tokens that
    are sampled from the source, the mean KL divergence is that of its whole distribution.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from email import message_from_string
from importlib import metadata
from pathlib import Path

import torch
from torch import Tensor

from bot.calibration.blocks import tokens_sha256
from bot.calibration.evaluation import evaluation_tokens
from bot.checkpoint.constants import EVALUATION_SEQ_LEN
from bot.files import cache_folder, write_atomic
from bot.records import Evaluation, TextSource
from tests.support.real_model import answers, load, real_model

QUESTIONS = Path(__file__).with_name("questions.txt")
CHAT = Path(__file__).with_name("chat.jsonl")
PACKAGES = Path(__file__).with_name("prose_packages.txt")
BLOCKS = 16
SHORTEST_PARAGRAPH = 160  # characters; shorter ones are mostly headings, lists of links and badges
LEAST_LETTERS = 0.85  # of a paragraph's characters, with its spaces: tables and examples have fewer
ANSWER_TOKENS = 320
_AT_ONCE = 16  # questions in one batch
_FENCE = re.compile(r"^ *```.*?^ *```", re.MULTILINE | re.DOTALL)
_MARKUP = re.compile(r"[#|>$<!\[]|\.\. |[-=~]{3}| {4}|\t")  # at the start of what is no paragraph


@dataclass(frozen=True, slots=True, kw_only=True)
class Text:
    """tokens: int64 [blocks, seq_len]; label: where they come from."""

    name: str
    label: str
    tokens: Tensor

    @property
    def sha256(self) -> str:
        return tokens_sha256(self.tokens)


def measured_texts(model: Path, *, blocks: int = BLOCKS) -> tuple[Text, ...]:
    """Prose, code and chat for a model folder, in as many blocks as there are."""
    sources = {
        "prose": (f"descriptions of the packages in {PACKAGES.name}", TextSource(file=str(_prose_file()))),
        "code": ("the standard library, test split", TextSource(builtin="stdlib")),
        "chat": (f"{QUESTIONS.name}, answered by the model", TextSource(file=str(CHAT))),
    }
    return tuple(
        Text(name=name, label=label, tokens=tokens_of(source, model, blocks=blocks))
        for name, (label, source) in sources.items()
    )


def calibration_sources() -> dict[str, tuple[TextSource, ...]]:
    """By the name of the text; no measured text is made of them."""
    builtin = tuple(TextSource(builtin=name) for name in ("prose", "code", "dialogue"))
    return {"stdlib": (TextSource(builtin="stdlib"),), "builtin": builtin}


def tokens_of(source: TextSource, model: Path, *, blocks: int) -> Tensor:
    """int64 [blocks, EVALUATION_SEQ_LEN]; fewer blocks of a shorter text."""
    asked = Evaluation(sources=(source,), tokens=blocks * EVALUATION_SEQ_LEN)
    return evaluation_tokens(asked, tokenizer_folder=model, trust_remote_code=False)[0]


def _prose_file() -> Path:
    return _written("prose.txt", descriptions())


def _written(name: str, texts: list[str]) -> Path:
    path = cache_folder("bench") / name
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, "\n\n".join(texts).encode())
    return path


def descriptions() -> list[str]:
    """The prose of the description of each package in prose_packages.txt that is installed, in that order."""
    installed = {dist.name.lower(): dist for dist in metadata.distributions()}
    found = []
    for name in PACKAGES.read_text().splitlines():
        if dist := installed.get(name.lower()):
            found.append(prose_of(str(message_from_string(dist.read_text("METADATA") or "").get_payload())))
    return [text for text in found if text]


def prose_of(markdown: str) -> str:
    """The paragraphs of a README, without code, tables, headings and lists of links."""
    paragraphs = re.split(r"\n\s*\n", _FENCE.sub("", markdown.replace("\r\n", "\n")))
    return "\n\n".join(paragraph.strip() for paragraph in paragraphs if _is_prose(paragraph))


def _is_prose(paragraph: str) -> bool:
    if len(paragraph) < SHORTEST_PARAGRAPH or _MARKUP.match(paragraph.strip("\n")):
        return False
    letters = sum(character.isalpha() or character.isspace() for character in paragraph)
    return letters >= LEAST_LETTERS * len(paragraph)


def write_chat() -> None:
    asked = QUESTIONS.read_text().splitlines()
    pairs = zip(asked, _answered(real_model(), asked), strict=True)
    write_atomic(CHAT, b"".join(_row(question, answer) for question, answer in pairs))


def _answered(model: Path, questions: list[str]) -> list[str]:
    torch.manual_seed(0)
    loaded = load(model)
    batches = (questions[start : start + _AT_ONCE] for start in range(0, len(questions), _AT_ONCE))
    return [
        answer for batch in batches for answer in answers(*loaded, batch, max_tokens=ANSWER_TOKENS, sample=True)
    ]


def _row(question: str, answer: str) -> bytes:
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return json.dumps({"messages": messages}, ensure_ascii=False).encode() + b"\n"


if __name__ == "__main__":
    write_chat()
