"""Calibration text -> token blocks [samples, seq_len], drawn by a random seed, and a record of what was used."""

from __future__ import annotations

import datetime
import hashlib
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from bot.calibration import overlap
from bot.calibration.documents import Document
from bot.calibration.draw import Drawn, draw
from bot.calibration.encoding import UNKNOWN_DATE, load_encoder
from bot.checkpoint.constants import MAX_SAMPLES, MIN_SAMPLES, MIN_SEQ_LEN
from bot.errors import QuantizationError
from bot.records import (
    Calibration,
    CalibrationSet,
    Progress,
    SourceCount,
    TextSource,
    blocks_by_weight,
    no_progress,
)

# Ordinary text lies above 0.1; a tenth of that is the same few sentences over and over.
MIN_DISTINCT_TOKEN_SHARE: Final = 0.01


def build_calibration_set(
    calibration: Calibration,
    *,
    tokenizer_folder: Path,
    folder: Path,
    trust_remote_code: bool,
    date: datetime.date = UNKNOWN_DATE,
    used_text: Path | None = None,
    progress: Progress = no_progress,
) -> tuple[Tensor, CalibrationSet]:
    """int64 [samples, seq_len], and the record of what it was made of.

    folder: where the sources are, see sources.local_path(). Documents are drawn in an order that depends only on
    the seed and their number. Near-duplicates are left out. Each source's token stream is cut into blocks of
    exactly seq_len tokens; of a very long conversation only the beginning is used. date: what chat templates take
    for today. used_text: a file to write to what evaluation has to leave out. Raises QuantizationError when the
    text cannot be used, is too short or too uniform, and what load_encoder raises.
    """
    _check(calibration)
    encoder = load_encoder(tokenizer_folder, trust_remote_code=trust_remote_code, date=date)
    streams: list[Tensor] = []
    taken: list[Document] = []
    counts: list[SourceCount] = []
    seen: frozenset[int] = frozenset()
    for source, samples in zip(calibration.sources, _quotas(calibration), strict=True):
        needed = samples * calibration.seq_len
        drawn = draw(
            source,
            folder,
            encoder,
            needed=needed,
            seq_len=calibration.seq_len,
            seed=calibration.seed,
            seen=seen,
            progress=progress,
        )
        _check_enough(source, drawn, samples, calibration.seq_len)
        seen = drawn.seen
        taken += drawn.taken
        streams.append(torch.tensor(drawn.ids[:needed], dtype=torch.int64))
        counts.append(_count(source, drawn, needed, calibration))
    tokens = torch.cat(streams).reshape(calibration.samples, calibration.seq_len)
    encoder.check_ids(_distinct(tokens))
    share = distinct_token_share(tokens, len(encoder.tokenizer))
    _check_diversity(tokens, share)
    if used_text is not None:
        overlap.save(overlap.used_text(seen, map(encoder.text_ids, taken)), used_text)
    return tokens, CalibrationSet(
        samples=calibration.samples,
        seq_len=calibration.seq_len,
        seed=calibration.seed,
        sha256=tokens_sha256(tokens),
        sources=tuple(counts),
        distinct_token_share=share,
    )


def tokens_sha256(tokens: Tensor) -> str:
    """SHA-256 of the token ids as int64 little-endian, row after row."""
    return hashlib.sha256(tokens.cpu().numpy().astype("<i8").tobytes()).hexdigest()


def distinct_token_share(tokens: Tensor, vocabulary: int) -> float:
    """Distinct token ids over as many as there could be: the number of tokens, or the vocabulary if smaller."""
    return len(_distinct(tokens)) / min(tokens.numel(), vocabulary)


def _distinct(tokens: Tensor) -> set[int]:
    return set(tokens.flatten().tolist())


def _quotas(calibration: Calibration) -> tuple[int, ...]:
    """Blocks of each source, at least one."""
    quotas = blocks_by_weight([source.weight for source in calibration.sources], calibration.samples)
    for source, quota in zip(calibration.sources, quotas, strict=True):
        if quota == 0:
            raise QuantizationError(
                f"{source.label}: weight {source.weight:g} is too small for one of "
                f"the {calibration.samples} samples",
                hint="Raise its weight or the number of samples, or leave the source out.",
            )
    return quotas


def _count(source: TextSource, drawn: Drawn, tokens: int, calibration: Calibration) -> SourceCount:
    return SourceCount(
        label=source.label,
        documents=drawn.documents,
        tokens=tokens,
        share=tokens / (calibration.samples * calibration.seq_len),
        duplicates_removed=drawn.duplicates,
        languages=drawn.languages,
        rows_left_out=drawn.rows_left_out,
        parts_left_out=drawn.parts_left_out,
        replaced_characters=drawn.replaced_characters,
    )


def _check(calibration: Calibration) -> None:
    if not MIN_SAMPLES <= calibration.samples <= MAX_SAMPLES:
        raise QuantizationError(
            f"{calibration.samples} calibration samples; must be between {MIN_SAMPLES} and {MAX_SAMPLES}",
            hint="128 samples of 512 tokens are a good start.",
        )
    if calibration.seq_len < MIN_SEQ_LEN:
        raise QuantizationError(
            f"seq_len {calibration.seq_len} is below {MIN_SEQ_LEN} tokens", hint="512 tokens are a good start."
        )
    if not calibration.sources or any(not source.weight > 0 for source in calibration.sources):
        raise QuantizationError(
            "calibration needs at least one source, each with a weight above 0",
            hint="`builtin: prose` is always available.",
        )


def _check_enough(source: TextSource, drawn: Drawn, samples: int, seq_len: int) -> None:
    needed = samples * seq_len
    if drawn.documents == 0:
        raise QuantizationError(f"{source.label}: no text in it", hint="Is it empty, or the wrong column?")
    if len(drawn.ids) < needed:
        removed = f" after {drawn.duplicates:,} near-duplicates were left out" if drawn.duplicates else ""
        raise QuantizationError(
            f"{source.label}: {len(drawn.ids):,} tokens{removed}; "
            f"{needed:,} are needed ({samples} samples of {seq_len})",
            hint="Add a source, or ask for fewer samples or a shorter seq_len.",
        )


def _check_diversity(tokens: Tensor, share: float) -> None:
    if share < MIN_DISTINCT_TOKEN_SHARE:
        raise QuantizationError(
            f"calibration text is too uniform: {len(_distinct(tokens)):,} distinct tokens "
            f"among {tokens.numel():,}",
            hint="Use text as varied as what the model will read.",
        )
