"""Documents drawn from a source by a random seed, without near-duplicates and what cannot be used."""

from __future__ import annotations

import hashlib
import heapq
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

from bot.calibration.chat_template import RefusedError
from bot.calibration.conversations import Reason
from bot.calibration.documents import OTHER_DATA, PASSAGE_CHARACTERS, Document, read
from bot.calibration.duplicates import is_duplicate, sketch_of
from bot.calibration.encoding import Encoder
from bot.errors import QuantizationError
from bot.records import Progress, TextSource

MOST_LEFT_OUT: Final = 0.05
_FIRST_DRAW: Final = 2048


@dataclass(frozen=True, slots=True, kw_only=True)
class LeftOut:
    """A conversation that cannot be used. origin: its file and row. said: by the template, if that refuses it."""

    reason: Reason
    origin: str
    said: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawn:
    """What was taken from one source. seen: the sketches of all documents so far.

    used: how many documents were left out as they are used elsewhere.
    """

    ids: list[int]
    taken: tuple[Document, ...]
    duplicates: int
    used: int
    left_out: tuple[LeftOut, ...]
    seen: frozenset[int]

    @property
    def documents(self) -> int:
        return len(self.taken)

    @property
    def languages(self) -> tuple[str, ...]:
        return tuple(sorted({document.language for document in self.taken if document.language}))

    @property
    def parts_left_out(self) -> int:
        return sum(document.parts_left_out for document in self.taken)

    @property
    def replaced_characters(self) -> int:
        return sum(document.replaced_characters for document in self.taken)

    @property
    def rows_left_out(self) -> dict[str, int]:
        return dict(Counter(item.reason for item in self.left_out))


def draw(
    source: TextSource,
    folder: Path,
    encoder: Encoder,
    *,
    needed: int,
    seq_len: int,
    seed: int,
    seen: frozenset[int],
    progress: Progress,
    special: bool = True,
    is_used: Callable[[Document, list[int]], bool] | None = None,
) -> Drawn:
    """Documents in an order that depends only on the seed and their number, until they give `needed` tokens.

    Those in reserve come last.

    Reads the source once if the first documents drawn are enough, else again for a longer list of them. A data set
    of any size is held a few thousand documents at a time. A longer list begins with the shorter one, so the
    result does not depend on how often the source was read. special: see Encoder.encode. is_used: whether a
    document with these ids is used elsewhere, and left out. Raises QuantizationError as check_left_out does.
    """
    limit = _FIRST_DRAW
    while True:
        numbered = enumerate(read(source, folder, progress=progress))
        listed = heapq.nsmallest(limit, numbered, key=lambda item: (item[1].reserve, _sort_key(seed, item[0])))
        # One very long conversation could fill a whole calibration.
        max_tokens = max(seq_len, PASSAGE_CHARACTERS)
        documents = (document for _, document in listed)
        count = partial(progress, f"tokenizing {source.label}")
        encode = partial(usable_ids, encoder=encoder, special=special)
        drawn = _take(documents, encode, is_used, needed=needed, max_tokens=max_tokens, seen=seen, count=count)
        total = drawn.documents + drawn.duplicates + drawn.used + len(drawn.left_out)
        check_left_out(source.label, drawn.left_out, total, pinned=source.dataset is not None)
        if len(drawn.ids) >= needed or len(listed) < limit:
            return drawn
        limit *= 8


def usable_ids(document: Document, encoder: Encoder, *, special: bool = True) -> tuple[list[int], LeftOut | None]:
    """Token ids, or why the conversation is left out."""
    if document.reason is not None:
        return [], LeftOut(reason=document.reason, origin=document.origin)
    try:
        return encoder.encode(document, special=special), None
    except RefusedError as error:
        if document.is_builtin:
            # Such as the template of a model that only translates, and wants to be given the languages.
            return encoder.text_ids(document), None
        return [], LeftOut(reason="refused by the chat template", origin=document.origin, said=error.reason)


def check_left_out(label: str, left_out: Sequence[LeftOut], total: int, *, pinned: bool) -> None:
    """Raises QuantizationError when more than MOST_LEFT_OUT of the documents looked at are left out.

    total: those that were drawn before there were enough tokens, with near-duplicates. So it is the share of a
    random sample, and not of the whole source. pinned: a data set, which its user cannot edit.
    """
    if len(left_out) <= MOST_LEFT_OUT * total:
        return
    counts = Counter(item.reason for item in left_out)
    reasons = ", ".join(f"{count:,} {reason}" for reason, count in counts.most_common())
    first = next(item for item in left_out if item.reason == counts.most_common(1)[0][0])
    said = f": {first.said}" if first.said else ""
    raise QuantizationError(
        f"{label}: {len(left_out):,} of {total:,} rows drawn cannot be used ({reasons}), "
        f"such as {first.origin}{said}",
        hint=OTHER_DATA if pinned else "Correct these rows, or choose another `column` or file.",
    )


def _sort_key(seed: int, number: int) -> bytes:
    """A document's position in the draw: a hash, because random.shuffle may change between versions of Python."""
    return hashlib.sha256(f"{seed}/{number}".encode()).digest()


def _take(
    documents: Iterable[Document],
    encode: Callable[[Document], tuple[list[int], LeftOut | None]],
    is_used: Callable[[Document, list[int]], bool] | None,
    *,
    needed: int,
    max_tokens: int,
    seen: frozenset[int],
    count: Callable[[int, int, str], None],
) -> Drawn:
    """max_tokens: of one document."""
    ids: list[int] = []
    known = set(seen)
    taken: list[Document] = []
    left_out: list[LeftOut] = []
    duplicates = used = 0
    for document in documents:
        if len(ids) >= needed:
            break
        sketch = sketch_of(document.content)
        if document.reason is None and is_duplicate(sketch, known):
            duplicates += 1
            continue
        found, problem = encode(document)
        if problem is not None:
            left_out.append(problem)
            continue
        if is_used is not None and is_used(document, found):
            used += 1
            continue
        known |= sketch
        ids += found[:max_tokens]
        count(min(len(ids), needed), needed, "tokens")
        taken.append(document)
    return Drawn(
        ids=ids,
        taken=tuple(taken),
        duplicates=duplicates,
        used=used,
        left_out=tuple(left_out),
        seen=frozenset(known),
    )
