"""Documents -> token blocks [samples, seq_len], drawn by a random seed, and a record of what was used."""

from __future__ import annotations

import datetime
import hashlib
from itertools import islice
from math import floor
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from bot.calibration.documents import read, read_file
from bot.calibration.draw import Drawn, LeftOut, check_left_out, draw, usable_ids
from bot.calibration.encoding import UNKNOWN_DATE, Encoder, load_encoder
from bot.checkpoint.config_values import most_tokens
from bot.checkpoint.constants import (
    EVALUATION_BLOCKS,
    EVALUATION_SEQ_LEN,
    MAX_SAMPLES,
    MIN_SAMPLES,
    MIN_SEQ_LEN,
)
from bot.checkpoint.repo_files import CONFIG
from bot.errors import QuantizationError, UnsupportedModelError
from bot.records import Calibration, CalibrationSet, Progress, SourceCount, TextSource, byte_counter, no_progress

# Ordinary text lies above 0.1; a tenth of that is the same few sentences over and over.
MIN_DISTINCT_TOKEN_SHARE: Final = 0.01
MIN_EVALUATION_BLOCKS: Final = 8


def build_calibration_set(
    calibration: Calibration,
    *,
    tokenizer_folder: Path,
    folder: Path,
    trust_remote_code: bool,
    date: datetime.date = UNKNOWN_DATE,
    progress: Progress = no_progress,
) -> tuple[Tensor, CalibrationSet]:
    """int64 [samples, seq_len], and the record of what it was made of.

    folder: where the sources are, see sources.local_path(). Documents are drawn in an order that depends only on
    the seed and their number. Near-duplicates are left out. Each source's token stream is cut into blocks of
    exactly seq_len tokens; of a very long conversation only the beginning is used. date: what chat templates take
    for today. Raises QuantizationError when the text cannot be used, is too short or too uniform, and what
    load_encoder raises.
    """
    _check(calibration)
    encoder = load_encoder(tokenizer_folder, trust_remote_code=trust_remote_code, date=date)
    streams: list[Tensor] = []
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
        streams.append(torch.tensor(drawn.ids[:needed], dtype=torch.int64))
        counts.append(_count(source, drawn, needed, calibration))
    tokens = torch.cat(streams).reshape(calibration.samples, calibration.seq_len)
    encoder.check_ids(_distinct(tokens))
    share = distinct_token_share(tokens, len(encoder.tokenizer))
    _check_diversity(tokens, share)
    return tokens, CalibrationSet(
        samples=calibration.samples,
        seq_len=calibration.seq_len,
        seed=calibration.seed,
        sha256=tokens_sha256(tokens),
        sources=tuple(counts),
        distinct_token_share=share,
    )


def evaluation_tokens(
    *,
    tokenizer_folder: Path,
    trust_remote_code: bool,
    text: Path | None = None,
    date: datetime.date = UNKNOWN_DATE,
    progress: Progress = no_progress,
    blocks: int = EVALUATION_BLOCKS,
    seq_len: int = EVALUATION_SEQ_LEN,
) -> tuple[Tensor, str]:
    """int64 [blocks, seq_len] of text that calibration does not use, and its label.

    text: a file instead of the standard library's `test` split. The text is one stream in its own order, and the
    blocks are spread evenly over it. Each starts with the model's beginning-of-text token, if it has one. A
    shorter text gives fewer blocks, but at least MIN_EVALUATION_BLOCKS; a model that reads fewer tokens at once
    gets shorter blocks. Raises what build_calibration_set raises.
    """
    encoder = load_encoder(tokenizer_folder, trust_remote_code=trust_remote_code, date=date)
    ids, label = _evaluation_ids(encoder, text, progress)
    bos_ids = encoder.bos_ids
    length = _evaluated_at_once(encoder, seq_len) - len(bos_ids)
    whole = len(ids) // length
    if whole < min(blocks, MIN_EVALUATION_BLOCKS):
        needed = min(blocks, MIN_EVALUATION_BLOCKS) * length
        raise QuantizationError(
            f"{label}: {len(ids):,} tokens are too few to measure on; at least {needed:,} are needed",
            hint="Give a longer text.",
        )
    count = min(blocks, whole)
    starts = [index * whole // count * length for index in range(count)]
    tokens = torch.tensor([bos_ids + ids[start : start + length] for start in starts], dtype=torch.int64)
    encoder.check_ids(_distinct(tokens))
    return tokens, label


def _evaluation_ids(encoder: Encoder, text: Path | None, progress: Progress) -> tuple[list[int], str]:
    """All token ids of the text, and its label."""
    if text is None:
        builtin = TextSource(builtin="stdlib")
        label, documents = f"{builtin.label} (test split)", read(builtin, Path(), split="test")
    elif not text.is_file():
        raise QuantizationError(f"evaluation text {text} does not exist", hint="Check the path given as --text.")
    else:
        on_bytes = byte_counter(progress, f"reading {text.name}", text.stat().st_size)
        label, documents = text.name, read_file(text, label=text.name, on_bytes=on_bytes)
    ids: list[int] = []
    left_out: list[LeftOut] = []
    total = 0
    for document in documents:
        total += 1
        found, problem = usable_ids(document, encoder, special=False)
        ids += found
        left_out += [problem] if problem else []
    check_left_out(label, left_out, total, pinned=False)
    return ids, label


def _evaluated_at_once(encoder: Encoder, seq_len: int) -> int:
    """Tokens in a block of the evaluation."""
    most = most_tokens(encoder.config)
    if most is not None and most < MIN_SEQ_LEN:
        raise UnsupportedModelError(
            f"{encoder.folder / CONFIG}: the model reads {most} tokens at once; at least {MIN_SEQ_LEN} are needed",
            hint="Is max_position_embeddings right?",
        )
    return seq_len if most is None else min(seq_len, most)


def tokens_sha256(tokens: Tensor) -> str:
    """SHA-256 of the token ids as int64 little-endian, row after row."""
    return hashlib.sha256(tokens.cpu().numpy().astype("<i8").tobytes()).hexdigest()


def distinct_token_share(tokens: Tensor, vocabulary: int) -> float:
    """Distinct token ids over as many as there could be: the number of tokens, or the vocabulary if smaller."""
    return len(_distinct(tokens)) / min(tokens.numel(), vocabulary)


def _distinct(tokens: Tensor) -> set[int]:
    return set(tokens.flatten().tolist())


def _quotas(calibration: Calibration) -> list[int]:
    """Blocks per source by weight, largest remainder first, so that they add up to exactly `samples`."""
    weights = [source.weight for source in calibration.sources]
    exact = [calibration.samples * weight / sum(weights) for weight in weights]
    quotas = [floor(value) for value in exact]
    by_remainder = sorted(range(len(exact)), key=lambda index: (quotas[index] - exact[index], index))
    for index in islice(by_remainder, calibration.samples - sum(quotas)):
        quotas[index] += 1
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
            hint="`builtin: stdlib` is always available.",
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
