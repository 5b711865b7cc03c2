"""Evaluation text -> token blocks [blocks, seq_len], shared among the sources by weight."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from bot.calibration.documents import Document, read
from bot.calibration.draw import LeftOut, check_left_out, draw, usable_ids
from bot.calibration.encoding import UNKNOWN_DATE, Encoder, load_encoder
from bot.calibration.overlap import RUN_TOKENS, UsedText
from bot.checkpoint.config_values import most_tokens
from bot.checkpoint.constants import EVALUATION_SEQ_LEN, MIN_EVALUATION_BLOCKS, MIN_SEQ_LEN
from bot.checkpoint.repo_files import CONFIG
from bot.errors import QuantizationError, UnsupportedModelError
from bot.records import Evaluation, EvaluationText, Progress, TextSource, blocks_by_weight, no_progress

_SEED: Final = 0  # of the documents that are drawn


def evaluation_tokens(
    evaluation: Evaluation = Evaluation(),  # noqa: B008 - frozen
    *,
    tokenizer_folder: Path,
    trust_remote_code: bool,
    folder: Path = Path(),
    used: UsedText = UsedText(),  # noqa: B008 - frozen
    date: datetime.date = UNKNOWN_DATE,
    progress: Progress = no_progress,
    seq_len: int = EVALUATION_SEQ_LEN,
) -> tuple[Tensor, tuple[EvaluationText, ...]]:
    """int64 [blocks, seq_len], one source after the other, and what was used of each.

    folder: where the sources are, see sources.local_path(). used: by calibration; documents that share text with
    it are left out. Each block starts with the model's beginning-of-text token, if it has one; a model that reads
    fewer tokens at once gets more and shorter blocks.

    Of built-in text and of a local file the blocks are spread evenly over the whole, and a shorter text gives
    fewer of them. Of what is pinned, documents are drawn as for calibration, until there are enough. Each source
    gives at least MIN_EVALUATION_BLOCKS. Raises what build_calibration_set raises.
    """
    encoder = load_encoder(tokenizer_folder, trust_remote_code=trust_remote_code, date=date)
    reader = _Reader(encoder, folder, used, block=_evaluated_at_once(encoder, seq_len), progress=progress)
    parts = [reader.blocks_of(source, blocks) for source, blocks in _quotas(evaluation, reader.block)]
    tokens = torch.cat([blocks for blocks, _ in parts])
    encoder.check_ids(set(tokens.flatten().tolist()))
    return tokens, tuple(text for _, text in parts)


def _quotas(evaluation: Evaluation, block: int) -> list[tuple[TextSource, int]]:
    """Each source with its blocks. block: tokens in one."""
    blocks = evaluation.tokens // block
    weights = [source.weight for source in evaluation.sources]
    quotas = list(zip(evaluation.sources, blocks_by_weight(weights, blocks), strict=True))
    for source, quota in quotas:
        if quota < MIN_EVALUATION_BLOCKS:
            raise QuantizationError(
                f"{source.evaluation_label}: {quota} of {blocks} blocks of {block} tokens to measure on; "
                f"at least {MIN_EVALUATION_BLOCKS} are needed",
                hint="Give fewer texts, or raise `evaluation.tokens` or the weight of this one.",
            )
    return quotas


def _evaluated_at_once(encoder: Encoder, seq_len: int) -> int:
    """Tokens in a block."""
    most = most_tokens(encoder.config)
    if most is not None and most < MIN_SEQ_LEN:
        raise UnsupportedModelError(
            f"{encoder.folder / CONFIG}: the model reads {most} tokens at once; at least {MIN_SEQ_LEN} are needed",
            hint="Is max_position_embeddings right?",
        )
    return seq_len if most is None else min(seq_len, most)


class _Reader:
    """Makes blocks of sources. block: tokens in one."""

    def __init__(self, encoder: Encoder, folder: Path, used: UsedText, *, block: int, progress: Progress) -> None:
        self.block = block
        self._encoder = encoder
        self._folder = folder
        self._used = used
        self._length = block - len(encoder.bos_ids)
        self._progress = progress
        self._seen: frozenset[int] = frozenset()

    def blocks_of(self, source: TextSource, blocks: int) -> tuple[Tensor, EvaluationText]:
        """int64 [blocks, block]"""
        pinned = source.dataset is not None or source.sha256 is not None
        if source.file is not None and not pinned and not (self._folder / source.file).is_file():
            raise QuantizationError(
                f"evaluation text {source.file} does not exist", hint="Check the path given as --text."
            )
        self._check_chats(source)
        ids, left_out = self._drawn(source, blocks) if pinned else self._whole(source)
        there, least = len(ids) // self._length, blocks if pinned else MIN_EVALUATION_BLOCKS
        if there < least:
            raise QuantizationError(
                f"{source.evaluation_label}: {len(ids):,} tokens are too few to measure on"
                f"{f', without {left_out:,} documents that share text with calibration' if left_out else ''}; "
                f"{'' if pinned else 'at least '}{least * self._length:,} are needed "
                f"({least} blocks of {self._length})",
                hint="Measure on fewer tokens, or on another text." if pinned else "Give a longer text.",
            )
        count = min(blocks, there)
        starts = [index * there // count * self._length for index in range(count)]
        bos_ids = self._encoder.bos_ids
        rows = [bos_ids + ids[start : start + self._length] for start in starts]
        text = EvaluationText(label=source.evaluation_label, blocks=count, documents_left_out=left_out)
        return torch.tensor(rows, dtype=torch.int64), text

    def _check_chats(self, source: TextSource) -> None:
        """Chats are measured in the model's own template. Of built-in text the words alone may be used."""
        if self._encoder.tokenizer.chat_template is not None or source.builtin:
            return
        first = next(read(source, self._folder), None)
        if first is not None and first.messages:
            raise QuantizationError(
                f"{source.evaluation_label} holds chats, and the model has no chat template",
                hint="Measure it on text.",
            )

    def _drawn(self, source: TextSource, blocks: int) -> tuple[list[int], int]:
        """As many ids as there are in these blocks, or all; and how many documents were left out."""
        needed = blocks * self._length
        drawn = draw(
            source,
            self._folder,
            self._encoder,
            needed=needed,
            seq_len=self.block,
            seed=_SEED,
            seen=self._seen,
            progress=self._progress,
            special=False,
            is_used=self._is_used,
        )
        self._seen = drawn.seen
        return drawn.ids[:needed], drawn.used

    def _whole(self, source: TextSource) -> tuple[list[int], int]:
        """The ids of all the text, in its order, and how many documents were left out."""
        ids: list[int] = []
        left_out: list[LeftOut] = []
        before: list[int] = []  # the end of the passage before, as a run may go on in the next
        total = used = 0
        for document in read(source, self._folder, split="test", progress=self._progress):
            total += 1
            found, problem = usable_ids(document, self._encoder, special=False)
            if problem is not None:
                left_out.append(problem)
            elif self._is_used(document, before + found):
                used += 1
            else:
                ids += found
                before = ids[-RUN_TOKENS + 1 :]
        check_left_out(source.evaluation_label, left_out, total, pinned=False)
        return ids, used

    def _is_used(self, document: Document, ids: list[int]) -> bool:
        own = self._encoder.text_ids(document) if document.messages else ids
        return self._used.shares(document.content, own)
