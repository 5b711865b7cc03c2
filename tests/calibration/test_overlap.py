"""No text of the calibration is measured on."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from torch import Tensor

from bot.calibration import overlap
from bot.calibration.blocks import build_calibration_set
from bot.calibration.documents import Document
from bot.calibration.duplicates import sketch_of
from bot.calibration.encoding import load_encoder
from bot.calibration.overlap import RUN_TOKENS, UsedText, used_text
from bot.errors import QuantizationError
from bot.records import Calibration, EvaluationText, TextSource
from tests.calibration.test_blocks import QWEN, prose, write_jsonl
from tests.calibration.test_evaluation import BUILTIN, blocks_of, pinned


def calibrated(folder: Path, *sources: TextSource, samples: int, seq_len: int) -> tuple[Tensor, UsedText]:
    blocks, _ = build_calibration_set(
        Calibration(samples=samples, seq_len=seq_len, sources=sources),
        tokenizer_folder=QWEN,
        folder=folder,
        trust_remote_code=False,
        used_text=folder / "used.npz",
    )
    return blocks, overlap.load(folder / "used.npz")


def runs(ids: list[int]) -> set[tuple[int, ...]]:
    return {tuple(ids[start : start + RUN_TOKENS]) for start in range(len(ids) - RUN_TOKENS + 1)}


def shared_runs(measured: Tensor, blocks: Tensor) -> set[tuple[int, ...]]:
    """By brute force over the tokens themselves."""
    used = runs(blocks.flatten().tolist())
    return set().union(*(runs(row) & used for row in measured.tolist()))


def test_no_32_tokens_of_the_built_in_text_are_in_the_default_calibration(tmp_path: Path) -> None:
    """The standard library copies code from one module to another."""
    blocks, used = calibrated(tmp_path, BUILTIN, samples=128, seq_len=512)
    before, _ = blocks_of(BUILTIN, seq_len=512)
    after, [text] = blocks_of(BUILTIN, seq_len=512, used=used)
    assert shared_runs(before, blocks)
    assert not shared_runs(after, blocks)
    assert 0 < text.documents_left_out < 20
    assert after.shape == before.shape


def test_rows_that_calibration_used_are_left_out_and_counted(tmp_path: Path) -> None:
    ours, others = ([prose(90, number) for number in range(first, first + 12)] for first in (1, 100))
    partly = [f"{row} {prose(60, 7000 + number)}" for number, row in enumerate(ours)]
    calibration = write_jsonl(tmp_path / "ours.jsonl", ours, chat=True)
    blocks, used = calibrated(tmp_path, calibration, samples=158, seq_len=64)
    both = pinned(write_jsonl(tmp_path / "both.jsonl", [*ours, *partly, *others], chat=True), tmp_path)
    tokens, texts = blocks_of(both, blocks=158, folder=tmp_path, used=used)
    assert texts == (EvaluationText(label="both.jsonl", blocks=158, documents_left_out=24),)
    # The system prompt, which all of them share, is no reason.
    assert shared_runs(tokens, blocks)
    encoder = load_encoder(QWEN, trust_remote_code=False)
    said = set().union(*(runs(encoder.text_ids(Document(text=text))) for text in ours))
    assert said
    assert not any(runs(row) & said for row in tokens.tolist())


def test_text_that_calibration_used_up_is_an_error_that_says_so(tmp_path: Path) -> None:
    source = pinned(write_jsonl(tmp_path / "a.jsonl", [prose(36, number) for number in range(12)]), tmp_path)
    _, used = calibrated(tmp_path, source, samples=16, seq_len=128)
    with pytest.raises(QuantizationError) as caught:
        blocks_of(source, blocks=40, folder=tmp_path, used=used)
    pattern = r"a\.jsonl: [\d,]+ tokens are too few to measure on, without (\d+) documents that share text with "
    found = re.match(pattern, caught.value.message)
    assert found
    assert int(found[1]) > 5


@pytest.mark.parametrize(
    ("text", "ids", "shared"),
    [
        ("another", [*range(500, 520), *range(10, 10 + RUN_TOKENS), 900], True),
        ("another", [*range(500, 520), *range(10, 10 + RUN_TOKENS - 1), 900], False),
        (prose(200, 1) + " and more", [], True),
        (prose(200, 2), [], False),
        (" ", [], False),
    ],
    ids=["a run of tokens", "a shorter run", "a near-duplicate", "another text", "blank"],
)
def test_a_run_of_tokens_or_a_near_duplicate_is_shared(
    tmp_path: Path, text: str, ids: list[int], shared: bool
) -> None:
    used = used_text(sketch_of(prose(200, 1)), [list(range(300)), [1, 2, 3]])
    overlap.save(used, tmp_path / "used.npz")
    for one in (used, overlap.load(tmp_path / "used.npz")):
        assert one.shares(text, ids) == shared
    assert not UsedText().shares(text, ids)


def test_a_damaged_file_is_an_error_that_names_it(tmp_path: Path) -> None:
    for content in (b"", b"PK\x03\x04", b"\x80\x04N."):
        (tmp_path / "used.npz").write_bytes(content)
        with pytest.raises(QuantizationError, match=r"used\.npz: cannot be read: "):
            overlap.load(tmp_path / "used.npz")
