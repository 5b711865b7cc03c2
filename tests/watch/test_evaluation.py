"""Which text a model is measured on, by default and as asked, and what is wrong with it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from bot.errors import WatchlistError
from bot.records import Evaluation, Job, JobKind, TextSource, from_json, to_json
from bot.watch.digests import recipe_digest
from tests.support.factories import details, entry, job
from tests.support.watch import SHA, TOP, decided, loaded, mistakes, skip
from tests.support.watch import job as release

BUILTIN = TextSource(builtin="stdlib")
SET = f"dataset: lab/chats, revision: {SHA}"
LONG = "Long enough.\n" * 5000
TEST_SPLITS = ["wikitext-2-raw-v1/test", "test_sft"]


def entry_lines(*lines: str) -> str:
    """A watchlist with one model, whose first line is line 3."""
    return TOP + "".join(f"    {line}\n" for line in ("- repo_id: lab/A", *(f"  {line}" for line in lines)))


@pytest.mark.parametrize(
    ("calibration", "read"),
    [
        ("priority: 0", TEST_SPLITS),
        ("calibration: {samples: 64}", TEST_SPLITS),
        (f"calibration: {{sources: [{{{SET}, split: train}}, {{builtin: stdlib}}]}}", TEST_SPLITS),
        ("calibration: {sources: [{builtin: stdlib}]}", ["stdlib"]),
        ("calibration: {sources: [{builtin: dialogue, weight: 2}, {file: own.txt}]}", ["dialogue"]),
        ("calibration: {sources: [{file: own.txt}]}", ["prose", "code", "dialogue"]),
    ],
)
def test_by_default_data_sets_are_read_only_where_calibration_reads_some(
    tmp_path: Path, calibration: str, read: list[str]
) -> None:
    """And of built-in text what calibration reads, in its other split."""
    (tmp_path / "own.txt").touch()
    (found,) = loaded(tmp_path, entry_lines(calibration))
    assert found.evaluation.tokens == 64 * 512
    assert [source.split or source.builtin for source in found.evaluation.sources] == read
    assert all(source.revision or source.builtin for source in found.evaluation.sources)
    assert {source.weight for source in found.evaluation.sources} == {1}


def test_what_is_asked_for_reaches_the_entry_over_the_defaults(tmp_path: Path) -> None:
    (tmp_path / "own.txt").write_text(LONG)
    text = f"defaults: {{evaluation: {{tokens: 8192, sources: [{{{SET}, split: test, weight: 2}}]}}}}\n"
    text += entry_lines("evaluation: {sources: [{file: own.txt}]}") + "    - lab/B\n"
    first, second = (found.evaluation for found in loaded(tmp_path, text))
    assert (first.tokens, first.label) == (8192, "own.txt")
    assert first.sources[0].sha256
    assert (second.tokens, second.label) == (8192, f"lab/chats@{SHA[:8]} (test)")
    assert second.sources[0].weight == 2


# --- what is wrong ------------------------------------------------------------------------------------------

SAME = "evaluation and calibration read the same "


@pytest.mark.parametrize(
    ("lines", "line", "message"),
    [
        (
            [
                f"calibration: {{sources: [{{{SET}, split: train}}]}}",
                f"evaluation: {{sources: [{{{SET}, split: train}}]}}",
            ],
            5,
            SAME + "split, train of lab/chats",
        ),
        (
            [
                f"calibration: {{sources: [{{{SET}, split: en/train}}]}}",
                "evaluation:",
                "  sources:",
                "    - builtin: stdlib",
                f"    - {{dataset: Lab/Chats, revision: {'a' * 40}, split: train, column: other}}",
            ],
            8,
            SAME + "split, train of Lab/Chats",
        ),
        (
            [f"calibration: {{sources: [{{{SET}}}]}}", f"evaluation: {{sources: [{{{SET}, split: test}}]}}"],
            5,
            SAME + "split, test of lab/chats",
        ),
        (
            ["calibration: {sources: [{file: one.txt}]}", "evaluation: {sources: [{file: one.txt}]}"],
            5,
            SAME + "file, one.txt",
        ),
        (
            ["calibration: {sources: [{file: one.txt}]}", "evaluation: {sources: [{file: copy.txt}]}"],
            5,
            SAME + "text, copy.txt and one.txt",
        ),
        (
            [
                "calibration:",
                "  sources:",
                "  - builtin: stdlib",
                f"  - {{dataset: HuggingFaceH4/ultrachat_200k, revision: {SHA}, split: test_sft}}",
            ],
            7,
            SAME + "split, test_sft of HuggingFaceH4/ultrachat_200k",
        ),
        (["evaluation: {tokens: 4095}"], 4, "tokens: should be greater than or equal to 4096, not 4095"),
        (["evaluation: {tokens: 262145}"], 4, "tokens: should be less than or equal to 262144"),
        (
            ["evaluation: {tokens: 7680}"],
            4,
            "evaluation: 7,680 tokens give 7 blocks of 512 to a source; at least 8",
        ),
        (
            ["evaluation:", "  sources: [{builtin: stdlib, weight: 9}, {builtin: stdlib}]"],
            5,
            "evaluation: 32,768 tokens give 6 blocks of 512 to a source; at least 8 are needed",
        ),
        (["evaluation: {sources: []}"], 4, "`sources` is empty"),
        (
            ["evaluation: {sources: [{file: gone.txt}]}"],
            4,
            "evaluation file 'gone.txt' cannot be read: No such file",
        ),
        (["evaluation: {sources: [{dataset: lab/chats}]}"], 4, "a data set needs `revision`"),
        (
            ["evaluation:", "  tokens: 16384", "  sources: [{builtin: stdlib}, {file: short.md}]"],
            6,
            "evaluation file 'short.md' has 8,000 bytes, too few for 8,176 tokens",
        ),
        (["evaluation: {seed: 1}"], 4, "unknown key 'seed'"),
        (["gate: {short.md: {max_kl: 0.2}}"], 4, "unknown key 'short.md'"),
        (["evaluation: {sources: [{builtin: stdlib, gate: {max_kl: 0.2}}]}"], 4, "unknown key 'gate'"),
        (["tokens: 9999"], 4, "unknown key 'tokens'"),
    ],
)
def test_a_mistake_is_one_line_with_its_place(tmp_path: Path, lines: list[str], line: int, message: str) -> None:
    for name, text in {"one.txt": LONG, "copy.txt": LONG, "short.md": "too few\n" * 1000}.items():
        (tmp_path / name).write_text(text)
    (found,) = mistakes(tmp_path, entry_lines(*lines))
    assert (found.line, found.message[: len(message)]) == (line, message)
    assert found.hint or message.startswith(("tokens:", "unknown key"))


def test_an_overlap_in_the_defaults_is_reported_once_where_it_was_typed(tmp_path: Path) -> None:
    text = f"""\
publish_to: me
defaults:
  calibration: {{sources: [{{{SET}, split: train}}]}}
  evaluation: {{sources: [{{{SET}, split: train}}]}}
models: [lab/A, lab/B]
"""
    assert [found.line for found in mistakes(tmp_path, text)] == [4]
    own = f"{{repo_id: lab/B, calibration: {{sources: [{{{SET}, split: test}}]}}}}"
    text = text.replace("train}]}\nmodels: [lab/A, lab/B]", f"test}}]}}\nmodels: [lab/A, {own}]")
    assert [found.line for found in mistakes(tmp_path, text)] == [4]


def test_other_splits_and_built_in_text_are_no_overlap(tmp_path: Path) -> None:
    both = "[{builtin: stdlib}, {" + SET + ", split: %s}]"
    lines = [
        f"{use}: {{sources: {both % split}}}" for use, split in (("calibration", "a/x"), ("evaluation", "b/x"))
    ]
    assert loaded(tmp_path, entry_lines(*lines))


def test_a_file_of_rows_may_be_shorter_than_its_tokens(tmp_path: Path) -> None:
    """It may be compressed, and a chat template adds tokens."""
    (tmp_path / "chats.jsonl").write_text("{}\n")
    assert loaded(tmp_path, entry_lines("evaluation: {sources: [{file: chats.jsonl}]}"))


# --- chats and a model without a chat template --------------------------------------------------------------

CHATS = TextSource(dataset="lab/chats", revision=SHA, split="test", column="messages")
INLINE = b'{"chat_template": "{{ messages }}"}'
TEMPLATES = ({"chat_template.jinja": b"{{ messages }}"}, {"tokenizer_config.json": INLINE})


@pytest.mark.parametrize("files", [*TEMPLATES, {"chat_template.json": INLINE}])
def test_chats_are_measured_in_the_template_of_the_model(files: dict[str, bytes]) -> None:
    asked = entry(evaluation=Evaluation(sources=(CHATS,)))
    assert release(decided(asked, found=details(small_files=files))).entry == asked


@pytest.mark.parametrize("files", [{}, {"tokenizer_config.json": b'{"chat_template": null}'}])
def test_chats_that_were_asked_for_are_refused_for_a_model_without_a_template(files: dict[str, bytes]) -> None:
    asked = entry(evaluation=Evaluation(sources=(BUILTIN, CHATS)))
    found = skip(decided(asked, found=details(small_files=files)))
    said = f"evaluation: lab/chats@{SHA[:8]} (test) holds chats, and the model has no chat template"
    assert (found.reason, found.exit_code, found.blocked) == (said, WatchlistError.exit_code, True)
    assert found.hint


def test_by_default_such_a_model_is_measured_on_the_general_text_alone(tmp_path: Path) -> None:
    (asked,) = loaded(tmp_path, entry_lines("target: quantized/Tiny-awq").replace("lab/A", "lab/Tiny"))
    with_template = release(decided(asked, found=details(small_files=TEMPLATES[0])))
    without = release(decided(asked, found=details()))
    assert [source.split for source in with_template.entry.evaluation.sources] == TEST_SPLITS
    assert [source.split for source in without.entry.evaluation.sources] == TEST_SPLITS[:1]
    assert without.digests == with_template.digests


# --- what it changes ----------------------------------------------------------------------------------------

OTHER = Evaluation(tokens=8192)


def test_it_is_in_no_digest_of_what_is_published() -> None:
    assert recipe_digest(entry(evaluation=OTHER)) == recipe_digest(entry())


def test_failed_attempts_are_counted_for_the_text_that_was_measured_on() -> None:
    one = job()
    assert replace(one, entry=entry(evaluation=OTHER)).attempt_digest != one.attempt_digest


def test_records_of_version_0_1_say_nothing_of_it_and_mean_built_in_text() -> None:
    one = job()
    assert "evaluation" not in to_json(one)
    assert from_json(Job, to_json(one)).entry.evaluation == Evaluation() == Evaluation(sources=(BUILTIN,))


def test_only_a_release_reads_text() -> None:
    asked = entry(evaluation=Evaluation(sources=(BUILTIN, TextSource(file="a.txt"))))
    assert job(asked).texts == (BUILTIN, TextSource(file="a.txt"))
    assert job(asked, kind=JobKind.REFRESH).texts == ()
