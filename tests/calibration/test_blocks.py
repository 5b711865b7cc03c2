"""Blocks of exactly the given size, reproducible by seed, with correct counts."""

import datetime
import json
import random
import shutil
from hashlib import sha256
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from bot.calibration import blocks, draw, stdlib
from bot.calibration.blocks import build_calibration_set, distinct_token_share
from bot.errors import QuantizationError
from bot.records import Calibration, CalibrationSet, TextSource

QWEN = Path(__file__).parent.parent / "assets" / "qwen3-tiny"
WORDS = sorted({word for document in stdlib.documents("calibrate")[:6] for word in document.split()})


def prose(count: int, seed: int) -> str:
    """Words in random order: no two of these are alike."""
    return " ".join(random.Random(seed).choices(WORDS, k=count))


def ids_of(text: str) -> list[int]:
    ids: list[int] = AutoTokenizer.from_pretrained(QWEN)(text)["input_ids"]
    return ids


def write_jsonl(path: Path, texts: list[str], *, chat: bool = False) -> TextSource:
    """A file of documents, or of conversations in which the user says them after one system prompt."""
    system = {"role": "system", "content": prose(60, 0)}
    rows = [
        {"messages": [system, {"role": "user", "content": text}], "lang": "en"} if chat else {"text": text}
        for text in texts
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return TextSource(file=path.name)


def built(folder: Path, *sources: TextSource, **changes: int) -> tuple[torch.Tensor, CalibrationSet]:
    calibration = Calibration(sources=sources, **{"samples": 16, "seq_len": 64, **changes})
    return build_calibration_set(calibration, tokenizer_folder=QWEN, folder=folder, trust_remote_code=False)


def refused(folder: Path, *sources: TextSource, **changes: int) -> QuantizationError:
    with pytest.raises(QuantizationError) as caught:
        built(folder, *sources, **changes)
    assert "\n" not in caught.value.message
    assert caught.value.hint
    return caught.value


def test_blocks_have_the_asked_shape_and_the_record_says_what_they_are(tmp_path: Path) -> None:
    tokens, record = built(tmp_path, TextSource(builtin="stdlib"), samples=32, seq_len=128)
    assert tokens.shape == (32, 128)
    assert tokens.dtype == torch.int64
    numbers = b"".join(int(token).to_bytes(8, "little") for row in tokens for token in row)
    assert record.sha256 == sha256(numbers).hexdigest()
    assert (record.samples, record.seq_len, record.seed) == (32, 128, 0)
    (source,) = record.sources
    assert (source.label, source.tokens, source.share) == ("builtin:stdlib", 4096, 1.0)
    assert record.distinct_token_share == len(set(tokens.flatten().tolist())) / 2043


def test_the_same_seed_gives_the_same_blocks_and_another_seed_others(tmp_path: Path) -> None:
    source = TextSource(builtin="stdlib")
    first, second, other = (built(tmp_path, source, seed=seed)[1].sha256 for seed in (7, 7, 8))
    assert first == second != other


def test_a_text_file_is_cut_without_losing_a_token(tmp_path: Path) -> None:
    text = prose(2000, 1)[:4000]
    (tmp_path / "notes.txt").write_text(text, encoding="utf-8")
    tokens, record = built(tmp_path, TextSource(file="notes.txt"))
    assert tokens.flatten().tolist() == ids_of(text)[:1024]
    assert record.sources[0].documents == 1


def test_documents_are_drawn_by_the_hash_of_seed_and_place(tmp_path: Path) -> None:
    texts = [f"document number {number} {prose(40, number)}" for number in range(60)]
    source = write_jsonl(tmp_path / "many.jsonl", texts)
    tokens, record = built(tmp_path, source, seed=5)
    order = sorted(range(60), key=lambda number: sha256(f"5/{number}".encode()).digest())
    stream = [token for number in order for token in ids_of(texts[number])]
    assert tokens.flatten().tolist() == stream[:1024]
    assert 0 < record.sources[0].documents < 60


def test_reading_again_for_more_documents_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write_jsonl(tmp_path / "many.jsonl", [prose(20, number) for number in range(80)])
    once = built(tmp_path, source)
    monkeypatch.setattr(draw, "_FIRST_DRAW", 3)
    again = built(tmp_path, source)
    assert again[1] == once[1]
    assert torch.equal(again[0], once[0])


def test_near_duplicates_are_left_out_and_counted(tmp_path: Path) -> None:
    rows, copies = ([f"Copy {n}. {prose(120, n % 6)}" for n in range(count)] for count in (6, 60))
    clean = built(tmp_path, write_jsonl(tmp_path / "clean.jsonl", rows), seq_len=48)[1]
    error = refused(tmp_path, write_jsonl(tmp_path / "copied.jsonl", copies), samples=128)
    assert clean.sources[0].duplicates_removed == 0
    assert "after 54 near-duplicates were left out" in error.message


def test_a_source_that_repeats_another_one_counts_as_duplicates(tmp_path: Path) -> None:
    rows = [prose(100, number) for number in range(8)]
    first, second = (write_jsonl(tmp_path / name, rows) for name in ("a.jsonl", "b.jsonl"))
    error = refused(tmp_path, first, second, samples=32, seq_len=160)
    assert error.message.startswith("b.jsonl")
    assert "near-duplicates were left out" in error.message


def test_conversations_under_one_long_system_prompt_are_not_duplicates(tmp_path: Path) -> None:
    chats = write_jsonl(tmp_path / "chats.jsonl", [prose(8, number) for number in range(1, 9)], chat=True)
    _, record = built(tmp_path, chats, seq_len=32)
    assert record.sources[0].duplicates_removed == 0
    assert record.sources[0].languages == ("en",)


def test_of_a_very_long_conversation_the_beginning_is_taken(tmp_path: Path) -> None:
    chats = write_jsonl(tmp_path / "chats.jsonl", [prose(9000, number) for number in range(3)], chat=True)
    _, record = built(tmp_path, chats, samples=160)
    assert record.sources[0].documents == 3


def test_a_mix_shares_the_blocks_by_weight(tmp_path: Path) -> None:
    notes = write_jsonl(tmp_path / "a.jsonl", [prose(100, number) for number in range(12)])
    sources = (TextSource(builtin="stdlib", weight=3), notes)
    tokens, record = built(tmp_path, *sources, samples=20)
    assert [(source.tokens, source.share) for source in record.sources] == [(15 * 64, 0.75), (5 * 64, 0.25)]
    alone, _ = built(tmp_path, TextSource(builtin="stdlib"), samples=20)
    assert torch.equal(tokens[:15], alone[:15])


@given(weights=st.lists(st.floats(min_value=0.2, max_value=9), min_size=1, max_size=6))
def test_shares_add_up_and_none_is_off_by_a_block(weights: list[float]) -> None:
    sources = tuple(TextSource(builtin="stdlib", weight=weight) for weight in weights)
    quotas = blocks._quotas(Calibration(samples=400, sources=sources))
    assert sum(quotas) == 400
    assert all(abs(quota - 400 * w / sum(weights)) < 1 for quota, w in zip(quotas, weights, strict=True))


def test_too_little_text_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(" \n\n", encoding="utf-8")
    assert refused(tmp_path, TextSource(file="a.txt")).message == "a.txt: no text in it"
    (tmp_path / "a.txt").write_text("import os\n", encoding="utf-8")
    count, message = len(ids_of("import os\n")), refused(tmp_path, TextSource(file="a.txt")).message
    assert message == f"a.txt: {count} tokens; 1,024 are needed (16 samples of 64)"


def test_the_same_few_tokens_over_and_over_are_an_error(tmp_path: Path) -> None:
    # Each line differs enough not to be a duplicate of the others.
    lines = [" ".join(random.Random(number).choices(["0", "1"], k=200)) for number in range(200)]
    (tmp_path / "a.txt").write_text("\n".join(lines), encoding="utf-8")
    message = refused(tmp_path, TextSource(file="a.txt"), samples=64, seq_len=128).message
    assert message.startswith("calibration text is too uniform")


@pytest.mark.parametrize(
    ("changes", "weights", "problem"),
    [
        ({"samples": 15}, [1], "between 16 and 4096"),
        ({"samples": 4097}, [1], "between 16 and 4096"),
        ({"seq_len": 4}, [1], "seq_len 4"),
        ({}, [0.0], "weight above 0"),
        ({}, [-1.0], "weight above 0"),
        ({}, [float("nan")], "weight above 0"),
        ({}, [1, 0.001], "is too small for one of the 16 samples"),
    ],
)
def test_settings_out_of_range_are_an_error(
    changes: dict[str, int], weights: list[float], problem: str, tmp_path: Path
) -> None:
    sources = [TextSource(builtin="stdlib", weight=weight) for weight in weights]
    assert problem in refused(tmp_path, *sources, **changes).message


def test_distinct_share_is_of_what_there_could_be() -> None:
    assert distinct_token_share(torch.tensor([[1, 2], [2, 3]]), 1000) == 0.75
    assert distinct_token_share(torch.tensor([[1, 2], [2, 3]]), 3) == 1.0


def test_the_clock_of_a_template_is_the_date_of_the_source(tmp_path: Path) -> None:
    """With that of the machine, a job that goes on after midnight would begin again."""
    model = shutil.copytree(QWEN, tmp_path / "model", ignore=shutil.ignore_patterns("model.safetensors"))
    (model / "chat_template.jinja").write_text(
        "{{ strftime_now('%d %B %Y') }}{% for message in messages %}{{ message.content }}{% endfor %}"
    )
    chats = write_jsonl(tmp_path / "chats.jsonl", [prose(60, number) for number in range(1, 20)], chat=True)
    calibration = Calibration(samples=16, seq_len=64, sources=(chats,))
    days = [datetime.date(2024, 12, 31), datetime.date(2024, 12, 31), datetime.date(2025, 1, 1)]
    first, second, other = (
        build_calibration_set(
            calibration, tokenizer_folder=model, folder=tmp_path, trust_remote_code=False, date=day
        )[1].sha256
        for day in days
    )
    assert first == second != other
