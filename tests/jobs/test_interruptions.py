"""Stopped anywhere, run again: the same published tree, nothing half-published in public, nothing left behind."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from bot.localhub import Fault
from tests.support.sandbox import (
    Quantized,
    Sandbox,
    SandboxBefore,
    build_sandbox,
    recorded_files,
    wait_for,
)
from tests.support.small_sandbox import TARGET, Result, Tree, finish, is_public, left_behind

# Whoever asks first quantizes the trained model, which takes its time on a busy machine.
pytestmark = pytest.mark.timeout(900)

TRAINED = "qwen3-tiny"


@pytest.fixture
def trained(tmp_path: Path) -> Iterator[Sandbox]:
    """A sandbox of a trained model, whose layers take long enough to be stopped in the middle; its Hub is up."""
    sandbox = build_sandbox(tmp_path / "trained", models=(TRAINED,))
    with sandbox.hub:
        yield sandbox


@pytest.mark.parametrize(
    ("stages", "record"),
    [
        pytest.param(("pull", "quantize"), "weights.json", marks=pytest.mark.slow),
        (("quantize", "evaluate"), "quantized.json"),
        pytest.param(("evaluate", "card"), "report.json", marks=pytest.mark.slow),
        pytest.param(("card",), "card.json", marks=pytest.mark.slow),
    ],
)
def test_a_run_killed_after_a_stage_resumes_there(
    sandbox_before: SandboxBefore, expected: Tree, stages: tuple[str, ...], record: str
) -> None:
    sandbox = sandbox_before(*stages)
    # The next request is held back, so that there is a moment to be killed in.
    sandbox.hub.faults.add(Fault(path="/api/repos/create|/api/models/quantized", method="POST", delay_s=60))
    sandbox.stop_when((sandbox.jobs[0] / record).exists, signal.SIGKILL, "run")
    finish(sandbox, expected)


def test_a_killed_quantize_loses_at_most_a_layer_and_makes_the_same_bytes(
    trained: Sandbox, quantized: Quantized
) -> None:
    trained.stop_when(lambda: any(trained.root.glob("work/*/layers/*.safetensors")), signal.SIGKILL, "run")
    [job] = trained.jobs
    done = {path: path.stat().st_mtime_ns for path in (job / "layers").glob("*.safetensors")}
    assert not (job / "quantized.json").exists()
    result = trained.call("quantize", "--job", str(job))
    assert result.returncode == 0, result.stderr
    assert {path: path.stat().st_mtime_ns for path in done} == done
    assert recorded_files(job) == recorded_files(quantized(TRAINED))
    assert left_behind(trained) == []


@pytest.mark.parametrize("path", [r"/commit/main", "/tag/"], ids=["commit", "tag"])
def test_a_killed_publish_leaves_nothing_unfinished_in_public(
    sandbox_before: SandboxBefore, expected: Tree, path: str
) -> None:
    sandbox = sandbox_before()
    stop_at(sandbox, Fault(path=path, method="POST", delay_s=60), signal.SIGKILL)
    # Only the tag may still be missing once people can see it: everything was read back before.
    assert is_public(sandbox) <= (path == "/tag/")
    finish(sandbox, expected)


@pytest.mark.parametrize(
    ("stages", "fault"),
    [
        (["pull"], Fault(path=r"/objects/.*/model", delay_s=60)),
        ([], Fault(path="/api/models/lab/", delay_s=60)),
        ([], Fault(path="/commit/main", method="POST", delay_s=60)),
    ],
    ids=["pull", "plan", "publish"],
)
def test_ctrl_c_ends_with_130_and_one_line(sandbox_before: SandboxBefore, stages: list[str], fault: Fault) -> None:
    result = stop_at(sandbox_before(*stages), fault, signal.SIGINT)
    assert_interrupted(result)
    assert "interrupted" in result.stderr


def stop_at(sandbox: Sandbox, fault: Fault, number: signal.Signals) -> Result:
    """Stop a run while the Hub delays an answer."""
    sandbox.hub.faults.add(fault)
    return sandbox.stop_when(lambda: not sandbox.hub.faults.pending, number, "run")


def assert_interrupted(result: Result) -> None:
    assert result.returncode == 130, result.stderr
    assert "Traceback" not in result.stderr
    assert result.stderr.count("interrupted") <= 1, result.stderr


def test_two_runs_racing_for_one_target_publish_once_and_both_end_well(
    sandbox_before: SandboxBefore, expected: Tree
) -> None:
    sandbox = sandbox_before()
    shutil.copytree(sandbox.root / "work", sandbox.root / "other")
    with sandbox.start("run") as first, sandbox.start("run", "--work", "other") as second:
        ends = [process.communicate(timeout=120) for process in (first, second)]
    assert [first.returncode, second.returncode] == [0, 0], ends
    assert sandbox.hub.files(TARGET) == expected
    assert len([commit for commit in sandbox.hub.history(TARGET) if commit.title.startswith("AWQ INT4")]) == 1


def test_ctrl_c_while_quantizing_ends_both_and_leaves_no_half_folder(trained: Sandbox) -> None:
    assert_interrupted(trained.stop_when(lambda: any(trained.root.glob("work/*/layers")), signal.SIGINT, "run"))
    assert not (trained.jobs[0] / "quantized.json").exists()
    assert not (trained.jobs[0] / "quantized").exists()


def test_ctrl_c_while_evaluating_ends_both_and_the_next_run_goes_on(
    sandbox_before: SandboxBefore, expected: Tree
) -> None:
    sandbox = sandbox_before("evaluate", "card")
    assert_interrupted(sandbox.stop_when(partial(is_measuring, sandbox), signal.SIGINT, "run"))
    assert not (sandbox.jobs[0] / "report.json").exists()
    finish(sandbox, expected)


def test_ctrl_c_while_modules_are_loaded_prints_nothing(sandbox_before: SandboxBefore) -> None:
    with sandbox_before().start("evaluate", "--source", "none", "--quantized", "none") as process:
        maps = Path(f"/proc/{process.pid}/maps")
        wait_for(lambda: "libtorch" in maps.read_text())
        process.send_signal(signal.SIGINT)
        assert process.communicate() == ("", "")
    assert process.returncode == -signal.SIGINT


def is_measuring(sandbox: Sandbox) -> bool:
    """Whether a child of this sandbox's run, and not of another test's, has come as far as loading torch.

    Before that it may be Python itself that is interrupted while it starts, and that has its own words for it.
    """
    wanted = b"\0evaluate\0--job\0"
    name = sandbox.jobs[0].name.encode()
    for process in Path("/proc").glob("[0-9]*"):
        command = read_if_there(process / "cmdline")
        if wanted in command and name in command and b"libtorch" in read_if_there(process / "maps"):
            return True
    return False


def read_if_there(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:  # the process ended meanwhile
        return b""
