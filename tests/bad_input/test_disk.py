"""Disks that are too small, or become so.

Each ends with its exit code, one error line, a hint, and nothing half-published. Once the cause is fixed, the next
run goes on.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.sandbox import Sandbox
from tests.support.small_disk import mounted
from tests.support.small_sandbox import (
    Result,
    SandboxBefore,
    assert_failed,
    assert_nothing_published,
    assert_published,
    quantized_again,
)


def test_a_disk_that_is_too_small_is_reported_before_pulling(
    sandbox_before: SandboxBefore, small_disk: Path
) -> None:
    sandbox = sandbox_before("publish")
    result = sandbox.call("run", "--work", str(small_disk))
    assert_failed(result, 8, str(small_disk), "GB free, the job needs")
    assert "--work" in result.stderr
    assert not list(small_disk.rglob("*.safetensors"))
    assert_published(sandbox, sandbox.call("run"))


def test_a_disk_that_fills_up_while_pulling_keeps_complete_files(sandbox_before: SandboxBefore) -> None:
    sandbox = sandbox_before("pull")
    assert_failed(_with_small_files_only(sandbox, "run"), 8, "/source: cannot be written")
    assert_nothing_published(sandbox)
    result = sandbox.call("run")
    assert_published(sandbox, result)
    assert not quantized_again(result)


def test_a_disk_that_fills_up_while_quantizing_is_reported_with_the_file_and_leaves_no_partial_file(
    sandbox_before: SandboxBefore, small_sandbox: Sandbox
) -> None:
    sandbox = sandbox_before("quantize")
    assert_failed(_with_small_files_only(sandbox, "run"), 8, "layers/hidden-00000.bin: cannot be written")
    job = sandbox.jobs[0]
    assert not list((job / "layers").iterdir())
    assert not (job / "quantized").exists()
    assert_nothing_published(sandbox)
    result = sandbox.call("quantize", "--job", str(job))
    assert result.returncode == 0, result.stderr
    made = json.loads((job / "quantized.json").read_text())["record"]
    assert made["files"] == json.loads((small_sandbox.jobs[0] / "quantized.json").read_text())["record"]["files"]
    assert_published(sandbox, sandbox.call("run"))


def test_a_disk_that_is_full_when_the_card_is_written_is_reported(sandbox_before: SandboxBefore) -> None:
    sandbox = sandbox_before("publish")
    job = sandbox.jobs[0]
    (job / "card.json").unlink()
    done = _with_small_files_only(sandbox, "card", "--job", str(job), limit_kib=1)
    assert_failed(done, 8, str(job), "cannot be written")
    assert_published(sandbox, sandbox.call("run"))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    with mounted(tmp_path / "disk", options="size=1m") as folder:
        yield folder


def _with_small_files_only(sandbox: Sandbox, *words: str, limit_kib: int = 64) -> Result:
    """The command under a limit on file size, which a write meets as it meets a full disk."""
    limited = ["bash", "-c", f'ulimit -f {limit_kib}; exec "$@"', "bash", sys.executable, "-m", "bot", *words]
    return subprocess.run(
        limited,
        env=sandbox.environment(),
        cwd=sandbox.root,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
