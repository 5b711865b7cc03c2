"""Mistakes in the watchlist and in the files that it names, and requests that cannot be met.

Each ends with its exit code, one line of what happened where, what to do next, and nothing half-published; and
once a person has corrected it, the next run continues.
"""

from __future__ import annotations

import json
import shutil

import pytest

from tests.support import factories
from tests.support.sandbox import ASSETS, Sandbox
from tests.support.small_sandbox import (
    SOURCE,
    TARGET,
    SandboxBefore,
    assert_failed,
    assert_nothing_published,
    assert_planned,
    assert_published,
    assert_refused,
    edit_watchlist,
    quantized_again,
    small_model,
    write_watchlist,
)


@pytest.mark.parametrize(
    ("content", "line", "word"),
    [
        (b"publish_to: quantized\nmodels:\n  - lab/sm\xe4ll\n", 3, "not UTF-8"),
        (b"- lab/small\n- lab/other\n", 1, "found a list"),
        (b"", 1, "found nothing"),
        (b"publish_to: quantized\nmodels:\n\t- lab/small\n", 3, "a tab in the indentation"),
    ],
    ids=["not UTF-8", "a list", "empty", "tabs"],
)
def test_a_watchlist_that_cannot_be_read_is_reported_by_line(
    sandbox: Sandbox, content: bytes, line: int, word: str
) -> None:
    write_watchlist(sandbox, content)
    _mistake(sandbox, f"watchlist.yaml:{line}:", word)
    assert not sandbox.hub.requests
    write_watchlist(sandbox, "publish_to: quantized\nmodels:\n  - lab/small\n")
    assert sandbox.call("check").returncode == 0


def _mistake(sandbox: Sandbox, place: str, word: str) -> None:
    """A run ends with the one mistake of the watchlist, and what to type instead."""
    result = sandbox.call("run")
    message, hint, count = result.stderr.splitlines()
    assert (result.returncode, message.startswith(place), count) == (2, True, "1 mistake"), result.stderr
    assert word in message
    assert hint.startswith("  help: ")


def test_a_mix_of_sources_is_counted_by_source(small_sandbox: Sandbox) -> None:
    record = json.loads((small_sandbox.jobs[0] / "quantized.json").read_text())["record"]["calibration"]
    counts = {source["label"].partition("@")[0]: source for source in record["sources"]}
    assert {label: source["tokens"] for label, source in counts.items()} == {
        "builtin:stdlib": 2 * 64,
        "notes.txt": 4 * 64,
        "lab/chats": 4 * 64,
        "lab/texts": 6 * 64,
    }
    assert all(source["documents"] > 0 for source in counts.values())
    assert counts["lab/texts"]["languages"] == ["en"]
    assert sum(source["share"] for source in counts.values()) == pytest.approx(1)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("split: en/train", "split: de/train", ("lab/texts", "no parquet or jsonl file of split 'de/train'")),
        ("{chats}", factories.SHA, (f"lab/chats@{factories.SHA[:8]}: missing: no commit",)),
        ("dataset: lab/texts", "dataset: lab/nowhere", ("lab/nowhere", "builtin: stdlib")),
    ],
    ids=["no such split", "no such commit", "no such data set"],
)
def test_a_data_set_that_is_not_there_is_refused_by_the_plan(
    sandbox_before: SandboxBefore, old: str, new: str, words: tuple[str, ...]
) -> None:
    sandbox = sandbox_before("publish")
    chats = sandbox.hub.refs("lab/chats", repo_type="dataset")["refs/heads/main"]
    was = edit_watchlist(sandbox, old.format(chats=chats), new)
    assert_refused(sandbox, 3, *words)
    write_watchlist(sandbox, was)
    assert_published(sandbox, sandbox.call("run"))


def test_a_calibration_file_that_is_gone_is_named_and_missed_by_the_pull_too(
    sandbox_before: SandboxBefore,
) -> None:
    sandbox = sandbox_before("pull")
    notes = (sandbox.root / "notes.txt").read_bytes()
    (sandbox.root / "notes.txt").unlink()
    _mistake(sandbox, "watchlist.yaml:8:", "notes.txt")
    assert_failed(sandbox.call("pull", "--job", str(sandbox.jobs[0])), 2, "notes.txt: cannot be read")
    assert_nothing_published(sandbox)
    (sandbox.root / "notes.txt").write_bytes(notes)
    result = sandbox.call("run")
    assert_published(sandbox, result)
    assert not quantized_again(result)


def test_pulled_files_that_were_deleted_are_pulled_again(sandbox_before: SandboxBefore) -> None:
    sandbox = sandbox_before("quantize")
    shutil.rmtree(sandbox.jobs[0] / "calibration")
    (sandbox.jobs[0] / "source" / "tokenizer.json").unlink()
    result = sandbox.call("pull", "--job", str(sandbox.jobs[0]))
    assert result.returncode == 0, result.stderr
    assert (sandbox.jobs[0] / "source" / "tokenizer.json").is_file()
    assert len(list((sandbox.jobs[0] / "calibration").iterdir())) == 3


def test_a_tokenizer_that_does_not_load_ends_the_job_with_one_error(sandbox: Sandbox) -> None:
    sandbox.hub.seed(SOURCE, small_model(tokenizer__json='{"version": "1.0", "model": {"type": "None"}}'))
    result = sandbox.call("run")
    assert_failed(result, 5, "the tokenizer in", "does not load")
    assert "tokenizer.json" in result.stderr
    assert_nothing_published(sandbox)
    sandbox.hub.seed(SOURCE, {"tokenizer.json": ASSETS / "qwen3-tiny" / "tokenizer.json"})
    assert_planned(sandbox)


def test_good_weights_that_miss_the_gate_are_published_once_it_is_loosened(sandbox_before: SandboxBefore) -> None:
    sandbox = sandbox_before("publish")
    was = edit_watchlist(sandbox, "max_kl: 100", "max_kl: 0.0000001")
    result = sandbox.call("run")
    assert_failed(result, 6, SOURCE, "mean KL divergence", "is above max_kl 1e-07")
    assert "gate" in result.stderr
    assert not sandbox.hub.store.exists(TARGET)
    write_watchlist(sandbox, was)
    result = sandbox.call("run")
    assert_published(sandbox, result)
    assert not quantized_again(result)
