"""What calibration used, in a form that evaluation can leave it out by: sketches of documents, and runs of tokens.

Quantizing writes it to a small file, 8 bytes a token. Evaluating runs in another process, where drawing the
calibration again would cost another reading of its data sets.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np

from bot.calibration.duplicates import Hashes, Sketch, is_duplicate, run_hashes, sketch_of
from bot.errors import QuantizationError, untrusted_input
from bot.files import write_atomic

RUN_TOKENS: Final = 32  # that two texts may not share: phrases and licence lines are shorter


@dataclass(frozen=True, slots=True, kw_only=True)
class UsedText:
    """sketches: of the documents; runs: hashes of every RUN_TOKENS tokens in a row, sorted."""

    sketches: Sketch = frozenset()
    runs: Hashes = field(default_factory=lambda: np.empty(0, dtype=np.uint64))

    def shares(self, text: str, ids: Sequence[int]) -> bool:
        """Whether a document is a near-duplicate of one that was used, or has a run of tokens in common with them.

        ids: of its text, without what a chat template adds.
        """
        if not self.sketches:
            return False
        sketch = sketch_of(text)
        if sketch and is_duplicate(sketch, self.sketches):
            return True
        found = runs_of(ids)
        # np.isin would sort all runs again for each document.
        places = np.searchsorted(self.runs, found)
        inside = places < len(self.runs)
        return bool((self.runs[places[inside]] == found[inside]).any())


def used_text(sketches: Sketch, documents: Iterable[Sequence[int]]) -> UsedText:
    """documents: the token ids of each."""
    runs = [np.empty(0, dtype=np.uint64), *(runs_of(ids) for ids in documents)]
    return UsedText(sketches=sketches, runs=np.unique(np.concatenate(runs)))


def runs_of(ids: Sequence[int]) -> Hashes:
    """The hash of every run of RUN_TOKENS ids; none for a shorter text."""
    if len(ids) < RUN_TOKENS:
        return np.empty(0, dtype=np.uint64)
    return run_hashes(np.array(ids, dtype=np.uint64), RUN_TOKENS)


def save(used: UsedText, path: Path) -> None:
    stream = io.BytesIO()
    np.savez(stream, sketches=np.array(sorted(used.sketches), dtype=np.uint64), runs=used.runs)
    write_atomic(path, stream.getvalue())


def load(path: Path) -> UsedText:
    """Raises QuantizationError when the file is damaged."""

    def damaged(reason: str) -> QuantizationError:
        return QuantizationError(f"{path}: cannot be read: {reason}", hint="Delete it: it is made again.")

    # np.load leaves a file open that it cannot read, if it opened it itself.
    with untrusted_input(damaged), path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
        return UsedText(sketches=frozenset(stored["sketches"].tolist()), runs=stored["runs"])
