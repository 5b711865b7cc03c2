"""Documents -> token blocks [samples, seq_len], drawn by a random seed, and a record of what was used.

Near-duplicates are left out: a sketch of each document (its smallest hashes, as in MinHash) is compared with those
of the documents kept so far.
"""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice
from math import floor
from pathlib import Path
from typing import Final

import numpy as np
import torch
from torch import Tensor

from bot.calibration.documents import PASSAGE_CHARACTERS, Document, read, read_file
from bot.calibration.encoding import Encoder, load_encoder
from bot.checkpoint.constants import EVALUATION_BLOCKS, EVALUATION_SEQ_LEN
from bot.errors import QuantizationError
from bot.records import Calibration, CalibrationSet, Progress, SourceCount, TextSource, byte_counter, no_progress

SAMPLES_RANGE: Final = (16, 4096)
MIN_SEQ_LEN: Final = 16
# Ordinary text lies above 0.1; a tenth of that is the same few sentences over and over.
MIN_DISTINCT_TOKEN_SHARE: Final = 0.01
MIN_EVALUATION_BLOCKS: Final = 8
SHINGLE_CHARACTERS: Final = 24
SKETCH_SIZE: Final = 64
DUPLICATE_SHARE: Final = 0.8
_FIRST_DRAW: Final = 2048


Sketch = frozenset[int]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Drawn:
    """What was taken from one source. seen: the sketches of all documents so far."""

    ids: list[int]
    documents: int
    duplicates: int
    languages: tuple[str, ...]
    seen: frozenset[int]


def build_calibration_set(
    calibration: Calibration,
    *,
    tokenizer_folder: Path,
    folder: Path,
    trust_remote_code: bool,
    progress: Progress = no_progress,
) -> tuple[Tensor, CalibrationSet]:
    """int64 [samples, seq_len], and the record of what it was made of.

    folder: where the sources are, see sources.local_path(). Documents are drawn in an order that depends only on
    the seed and their number. Near-duplicates are left out. Each source's token stream is cut into blocks of
    exactly seq_len tokens; of a very long conversation only the beginning is used. Raises QuantizationError when
    the text cannot be used, is too short or too uniform.
    """
    _check(calibration)
    encoder = load_encoder(tokenizer_folder, trust_remote_code=trust_remote_code)
    streams: list[Tensor] = []
    counts: list[SourceCount] = []
    seen: frozenset[int] = frozenset()
    for source, samples in zip(calibration.sources, _quotas(calibration), strict=True):
        needed = samples * calibration.seq_len
        drawn = _draw(
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
    share = distinct_token_share(tokens, encoder.vocabulary)
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
    progress: Progress = no_progress,
    blocks: int = EVALUATION_BLOCKS,
    seq_len: int = EVALUATION_SEQ_LEN,
) -> tuple[Tensor, str]:
    """int64 [blocks, seq_len] of text that calibration does not use, and its label.

    text: a file instead of the standard library's `test` split. The text is one stream in its own order, and the
    blocks are spread evenly over it. Each starts with the model's beginning-of-text token, if it has one. A
    shorter text gives fewer blocks, but at least MIN_EVALUATION_BLOCKS.
    """
    encoder = load_encoder(tokenizer_folder, trust_remote_code=trust_remote_code)
    if text is None:
        builtin = TextSource(builtin="stdlib")
        label, documents = f"{builtin.label} (test split)", read(builtin, Path(), split="test")
    elif not text.is_file():
        raise QuantizationError(f"evaluation text {text} does not exist", hint="Check the path given as --text.")
    else:
        on_bytes = byte_counter(progress, f"reading {text.name}", text.stat().st_size)
        label, documents = text.name, read_file(text, label=text.name, on_bytes=on_bytes)
    ids = [token for document in documents for token in encoder.encode(document, special=False)]
    bos_ids = encoder.bos_ids
    length = seq_len - len(bos_ids)
    whole = len(ids) // length
    if whole < min(blocks, MIN_EVALUATION_BLOCKS):
        needed = min(blocks, MIN_EVALUATION_BLOCKS) * length
        raise QuantizationError(
            f"{label}: {len(ids):,} tokens are too few to measure on; at least {needed:,} are needed",
            hint="Give a longer text.",
        )
    count = min(blocks, whole)
    starts = [index * whole // count * length for index in range(count)]
    return torch.tensor([bos_ids + ids[start : start + length] for start in starts], dtype=torch.int64), label


def tokens_sha256(tokens: Tensor) -> str:
    """SHA-256 of the token ids as int64 little-endian, row after row."""
    return hashlib.sha256(tokens.cpu().numpy().astype("<i8").tobytes()).hexdigest()


def distinct_token_share(tokens: Tensor, vocabulary: int) -> float:
    """Distinct token ids over as many as there could be: the number of tokens, or the vocabulary if smaller."""
    return len(_distinct(tokens)) / min(tokens.numel(), vocabulary)


def _distinct(tokens: Tensor) -> set[int]:
    return set(tokens.flatten().tolist())


def _draw(
    source: TextSource,
    folder: Path,
    encoder: Encoder,
    *,
    needed: int,
    seq_len: int,
    seed: int,
    seen: frozenset[int],
    progress: Progress,
) -> _Drawn:
    """Reads the source once if the first documents drawn are enough, else again for a longer list of them.

    A data set of any size is held a few thousand documents at a time. A longer list begins with the shorter one,
    so the result does not depend on how often the source was read.
    """
    limit = _FIRST_DRAW
    while True:
        numbered = enumerate(read(source, folder, progress=progress))
        listed = heapq.nsmallest(limit, numbered, key=lambda item: _sort_key(seed, item[0]))
        max_tokens = max(seq_len, PASSAGE_CHARACTERS)
        count = partial(progress, f"tokenizing {source.label}")
        documents = (document for _, document in listed)
        drawn = _take(documents, encoder, needed=needed, max_tokens=max_tokens, seen=seen, count=count)
        if len(drawn.ids) >= needed or len(listed) < limit:
            return drawn
        limit *= 8


def _sort_key(seed: int, number: int) -> bytes:
    """A document's position in the draw: a hash, because random.shuffle may change between versions of Python."""
    return hashlib.sha256(f"{seed}/{number}".encode()).digest()


def _take(
    documents: Iterator[Document],
    encoder: Encoder,
    *,
    needed: int,
    max_tokens: int,
    seen: frozenset[int],
    count: Callable[[int, int, str], None],
) -> _Drawn:
    """max_tokens: tokens of one document, because one very long conversation could fill a whole calibration."""
    ids: list[int] = []
    known = set(seen)
    languages: set[str] = set()
    taken = duplicates = 0
    for document in documents:
        if len(ids) >= needed:
            break
        sketch = sketch_of(document.content)
        if is_duplicate(sketch, known):
            duplicates += 1
            continue
        known |= sketch
        ids += encoder.encode(document)[:max_tokens]
        count(min(len(ids), needed), needed, "tokens")
        taken += 1
        if document.language:
            languages.add(document.language)
    return _Drawn(
        ids=ids,
        documents=taken,
        duplicates=duplicates,
        languages=tuple(sorted(languages)),
        seen=frozenset(known),
    )


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


def _count(source: TextSource, drawn: _Drawn, tokens: int, calibration: Calibration) -> SourceCount:
    return SourceCount(
        label=source.label,
        documents=drawn.documents,
        tokens=tokens,
        share=tokens / (calibration.samples * calibration.seq_len),
        duplicates_removed=drawn.duplicates,
        languages=drawn.languages,
    )


def _check(calibration: Calibration) -> None:
    low, high = SAMPLES_RANGE
    if not low <= calibration.samples <= high:
        raise QuantizationError(
            f"{calibration.samples} calibration samples; must be between {low} and {high}",
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


def _check_enough(source: TextSource, drawn: _Drawn, samples: int, seq_len: int) -> None:
    needed = samples * seq_len
    if drawn.documents == 0:
        raise QuantizationError(f"{source.label}: no text in it", hint="Is it empty, or the wrong column?")
    if len(drawn.ids) < needed:
        removed = f" after {drawn.duplicates:,} near-duplicates were left out" if drawn.duplicates else ""
        raise QuantizationError(
            f"{source.label}: {len(drawn.ids):,} tokens{removed}; "
            f"{needed:,} are needed ({samples} samples of {seq_len})",
            hint="Add text, or ask for fewer samples or a shorter seq_len.",
        )


def _check_diversity(tokens: Tensor, share: float) -> None:
    if share < MIN_DISTINCT_TOKEN_SHARE:
        raise QuantizationError(
            f"calibration text is too uniform: {len(_distinct(tokens)):,} distinct tokens "
            f"among {tokens.numel():,}",
            hint="Use text as varied as what the model will read.",
        )


def is_duplicate(sketch: Sketch, seen: set[int]) -> bool:
    """Whether at least DUPLICATE_SHARE of the sketch was seen before; an empty sketch says nothing new."""
    return len(sketch & seen) >= DUPLICATE_SHARE * len(sketch)


def sketch_of(text: str) -> Sketch:
    """The SKETCH_SIZE smallest 64-bit hashes of the text's character runs; empty for blank text."""
    normalised = " ".join(text.casefold().split())
    if not normalised:
        return frozenset()
    characters = np.frombuffer(normalised.encode("utf-32-le", errors="replace"), dtype="<u4").astype(np.uint64)
    hashes = np.unique(_mixed(_run_hashes(characters)))
    return frozenset(int(value) for value in hashes[:SKETCH_SIZE])


def _run_hashes(
    characters: np.ndarray[tuple[int], np.dtype[np.uint64]],
) -> np.ndarray[tuple[int], np.dtype[np.uint64]]:
    """A polynomial hash modulo 2^64 of each run, by Horner's rule over all runs at once."""
    runs = max(1, len(characters) - SHINGLE_CHARACTERS + 1)
    hashes = np.zeros(runs, dtype=np.uint64)
    for offset in range(min(SHINGLE_CHARACTERS, len(characters))):
        hashes = hashes * np.uint64(0x100000001B3) + characters[offset : offset + runs]
    return hashes


def _mixed(hashes: np.ndarray[tuple[int], np.dtype[np.uint64]]) -> np.ndarray[tuple[int], np.dtype[np.uint64]]:
    """splitmix64's finaliser: without it the smallest hashes would favour certain characters."""
    hashes = (hashes ^ (hashes >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    hashes = (hashes ^ (hashes >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return hashes ^ (hashes >> np.uint64(31))
