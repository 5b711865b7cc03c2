"""The sketch of a text, by an independent computation, and what counts as a copy."""

import pytest

from bot.calibration import stdlib
from bot.calibration.duplicates import SHINGLE_CHARACTERS, SKETCH_SIZE, is_duplicate, sketch_of

TEXT = stdlib.documents("calibrate")[3][:4000]
MASK = (1 << 64) - 1


def slow_sketch(text: str) -> frozenset[int]:
    """The same by its definition, one run after the other, in Python's own integers."""
    normalised = " ".join(text.casefold().split())
    hashes = set()
    for start in range(max(1, len(normalised) - SHINGLE_CHARACTERS + 1)):
        value = 0
        for character in normalised[start : start + SHINGLE_CHARACTERS]:
            value = (value * 0x100000001B3 + ord(character)) & MASK
        value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & MASK
        value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & MASK
        hashes.add(value ^ (value >> 31))
    return frozenset(sorted(hashes)[:SKETCH_SIZE])


@pytest.mark.parametrize("text", [TEXT, "Short.", "Grüße aus Köln, 你好, 世界 👋", "ab" * 500])
def test_the_sketch_is_the_smallest_hashes_of_all_runs(text: str) -> None:
    assert sketch_of(text) == slow_sketch(text)


def test_a_copy_with_small_changes_is_a_duplicate() -> None:
    upper, longer = TEXT.upper().replace("\n", "  \n"), "A new heading\n\n" + TEXT
    for copy in (TEXT, upper, longer, TEXT.replace(" self", " this", 3)):
        assert is_duplicate(sketch_of(copy), set(sketch_of(TEXT)))


def test_modules_of_the_standard_library_are_not_duplicates_of_each_other() -> None:
    seen: set[int] = set()
    for sketch in map(sketch_of, stdlib.documents("calibrate")):
        assert not is_duplicate(sketch, seen)
        seen |= sketch


def test_short_texts_differ_and_blank_ones_are_duplicates() -> None:
    assert not is_duplicate(sketch_of("What is a cat?"), set(sketch_of("What is a dog?")))
    assert is_duplicate(sketch_of(" \n\t"), set())
