"""Failures in the middle of a job, from which the next run goes on.

Each ends with its exit code, one error line, a hint, and nothing half-published.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.sandbox import Sandbox, SandboxBefore, recorded_files
from tests.support.small_disk import mounted
from tests.support.small_sandbox import (
    SOURCE,
    TARGET,
    Result,
    assert_failed,
    assert_nothing_published,
    assert_published,
    edit_watchlist,
    quantized_again,
    write_watchlist,
)


def finish(sandbox: Sandbox) -> None:
    """The next run publishes what is there, without quantizing or measuring it again."""
    report = sandbox.jobs[0] / "report.json"
    measured = report.stat().st_mtime_ns
    result = sandbox.call("run")
    assert_published(sandbox, result)
    assert not quantized_again(result)
    assert report.stat().st_mtime_ns == measured


def test_a_disk_that_is_too_small_is_reported_before_pulling(
    sandbox_before: SandboxBefore, tmp_path: Path
) -> None:
    sandbox = sandbox_before()
    with mounted(tmp_path / "disk", options="size=1m") as disk:
        result = sandbox.call("run", "--work", str(disk))
        assert_failed(result, 8, str(disk), "GB free, the job needs")
        assert not list(disk.rglob("*.safetensors"))
    assert "--work" in result.stderr
    finish(sandbox)


def test_a_disk_that_fills_up_while_pulling_keeps_complete_files(sandbox_before: SandboxBefore) -> None:
    sandbox = sandbox_before("pull")
    assert_failed(with_small_files_only(sandbox, "run"), 8, "/source: cannot be written")
    assert_nothing_published(sandbox)
    finish(sandbox)


@pytest.mark.slow
def test_a_disk_that_fills_up_while_quantizing_leaves_no_partial_file(
    sandbox_before: SandboxBefore, small_sandbox: Sandbox
) -> None:
    sandbox = sandbox_before("quantize")
    assert_failed(with_small_files_only(sandbox, "run"), 8, "layers/hidden-00000.bin: cannot be written")
    job = sandbox.jobs[0]
    assert not list((job / "layers").iterdir())
    assert not (job / "quantized").exists()
    assert_nothing_published(sandbox)
    result = sandbox.call("quantize", "--job", str(job))
    assert result.returncode == 0, result.stderr
    assert recorded_files(job) == recorded_files(small_sandbox.jobs[0])
    # What a child process has quantized is measured again, as it could have written the report that was there.
    published = sandbox.call("run")
    assert_published(sandbox, published)
    assert not quantized_again(published)


def test_a_disk_that_is_full_when_the_card_is_written_is_reported(sandbox_before: SandboxBefore) -> None:
    sandbox = sandbox_before("card")
    job = sandbox.jobs[0]
    done = with_small_files_only(sandbox, "card", "--job", str(job), limit_kib=1)
    assert_failed(done, 8, str(job), "cannot be written")
    finish(sandbox)


def with_small_files_only(sandbox: Sandbox, *words: str, limit_kib: int = 64) -> Result:
    """The command under a limit on file size, which a write meets as it meets a full disk."""
    limited = ["bash", "-c", f'ulimit -f {limit_kib}; exec "$@"', "bash", sys.executable, "-m", "bot", *words]
    environment = sandbox.environment()
    return subprocess.run(
        limited, env=environment, cwd=sandbox.root, capture_output=True, text=True, check=False, timeout=120
    )


def test_a_read_only_token_publishes_nothing(sandbox_before: SandboxBefore) -> None:
    sandbox = sandbox_before()
    result = sandbox.call("run", token=sandbox.hub.token("bot", role="read"))
    assert_failed(result, 7, TARGET, "the token can only read")
    assert "HF_WRITE_TOKEN" in result.stderr
    assert_nothing_published(sandbox)
    finish(sandbox)


def test_good_weights_that_miss_the_gate_are_published_once_it_is_loosened(sandbox_before: SandboxBefore) -> None:
    sandbox = sandbox_before()
    was = edit_watchlist(sandbox, "max_kl: 100", "max_kl: 0.0000001")
    result = sandbox.call("run")
    assert_failed(result, 6, SOURCE, "mean KL divergence", "is above max_kl 1e-07")
    assert "gate" in result.stderr
    assert not sandbox.hub.store.exists(TARGET)
    write_watchlist(sandbox, was)
    finish(sandbox)


def test_a_calibration_file_that_is_gone_is_named_by_the_watchlist_and_by_the_pull(
    sandbox_before: SandboxBefore,
) -> None:
    sandbox = sandbox_before("pull")
    notes = (sandbox.root / "notes.txt").read_bytes()
    (sandbox.root / "notes.txt").unlink()
    result = sandbox.call("run")
    message, hint, count = result.stderr.splitlines()
    assert (result.returncode, count) == (2, "1 mistake")
    assert message.startswith("watchlist.yaml:8:")
    assert "notes.txt" in message
    assert hint.startswith("  help: ")
    assert_failed(sandbox.call("pull", "--job", str(sandbox.jobs[0])), 2, "notes.txt: cannot be read")
    (sandbox.root / "notes.txt").write_bytes(notes)
    finish(sandbox)


def test_pulled_files_that_were_deleted_are_pulled_again(sandbox_before: SandboxBefore) -> None:
    sandbox = sandbox_before("quantize")
    shutil.rmtree(sandbox.jobs[0] / "calibration")
    (sandbox.jobs[0] / "source" / "tokenizer.json").unlink()
    result = sandbox.call("pull", "--job", str(sandbox.jobs[0]))
    assert result.returncode == 0, result.stderr
    assert (sandbox.jobs[0] / "source" / "tokenizer.json").is_file()
    assert len(list((sandbox.jobs[0] / "calibration").iterdir())) == 3


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
