"""Near-duplicates, found by a sketch of each document: its smallest hashes, as in MinHash."""

from __future__ import annotations

from collections.abc import Set
from typing import Final

import numpy as np

SHINGLE_CHARACTERS: Final = 24
SKETCH_SIZE: Final = 64
DUPLICATE_SHARE: Final = 0.8

Sketch = frozenset[int]
Hashes = np.ndarray[tuple[int], np.dtype[np.uint64]]


def is_duplicate(sketch: Sketch, seen: Set[int]) -> bool:
    """Whether at least DUPLICATE_SHARE of the sketch was seen before; an empty sketch says nothing new."""
    return len(sketch & seen) >= DUPLICATE_SHARE * len(sketch)


def sketch_of(text: str) -> Sketch:
    """The SKETCH_SIZE smallest 64-bit hashes of the text's character runs; empty for blank text."""
    normalised = " ".join(text.casefold().split())
    if not normalised:
        return frozenset()
    characters = np.frombuffer(normalised.encode("utf-32-le", errors="replace"), dtype="<u4").astype(np.uint64)
    hashes = np.unique(run_hashes(characters, min(SHINGLE_CHARACTERS, len(characters))))
    return frozenset(int(value) for value in hashes[:SKETCH_SIZE])


def run_hashes(values: Hashes, length: int) -> Hashes:
    """A hash of each run of so many values: a polynomial modulo 2^64, by Horner's rule over all runs at once."""
    runs = len(values) - length + 1
    hashes = np.zeros(runs, dtype=np.uint64)
    for offset in range(length):
        hashes = hashes * np.uint64(0x100000001B3) + values[offset : offset + runs]
    return _mixed(hashes)


def _mixed(hashes: Hashes) -> Hashes:
    """splitmix64's finaliser: without it the smallest hashes would favour certain characters."""
    hashes = (hashes ^ (hashes >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    hashes = (hashes ^ (hashes >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return hashes ^ (hashes >> np.uint64(31))
