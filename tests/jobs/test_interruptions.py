"""Stopped anywhere, run again: the same published tree, nothing half-published in public, nothing left behind."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from bot.localhub import Fault, HubError
from tests.support.sandbox import Quantized, Sandbox, build_sandbox, recorded_files, wait_for
from tests.support.small_sandbox import TARGET

# Whoever asks first quantizes the trained model, which takes its time on a busy machine.
pytestmark = pytest.mark.timeout(900)

TRAINED = "qwen3-tiny"
# Which records, and which folder, are not there yet when the stage of the name has not run.
UNDONE = {
    "pull": ("weights.json", "source"),
    "quantize": ("quantized.json", "quantized", "layers"),
    "evaluate": ("report.json", "card"),
    "card": ("card.json",),
}

Tree = dict[str, bytes]


@pytest.fixture(scope="module")
def expected(small_sandbox: Sandbox, tmp_path_factory: pytest.TempPathFactory) -> Tree:
    """What is published when nothing interrupts."""
    sandbox = small_sandbox.copy_to(tmp_path_factory.mktemp("expected") / "sandbox")
    with sandbox.hub:
        result = sandbox.call("run")
        assert result.returncode == 0, result.stderr
        return sandbox.hub.files(TARGET)


@pytest.fixture
def before(small_sandbox: Sandbox, tmp_path: Path) -> Iterator[Callable[[str], Sandbox]]:
    """A sandbox in which the stage of the given name, and those after it, have not run; its Hub is up."""
    sandboxes: list[Sandbox] = []

    def make(stage: str) -> Sandbox:
        sandbox = small_sandbox.copy_to(tmp_path / stage)
        names = [name for key, names in UNDONE.items() if _order(key) >= _order(stage) for name in names]
        for name in names:
            path = sandbox.jobs[0] / name
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        sandbox.hub.start()
        sandboxes.append(sandbox)
        return sandbox

    yield make
    for sandbox in sandboxes:
        sandbox.hub.stop()


@pytest.fixture
def trained(tmp_path: Path) -> Iterator[Sandbox]:
    """A sandbox of a trained model, whose layers take long enough to be stopped in the middle; its Hub is up."""
    sandbox = build_sandbox(tmp_path / "trained", models=(TRAINED,))
    with sandbox.hub:
        yield sandbox


def _order(stage: str) -> int:
    return [*UNDONE, "publish"].index(stage)


def _is_public(sandbox: Sandbox) -> bool:
    try:
        return not sandbox.hub.repo(TARGET).settings().private
    except HubError:
        return False


def _finish(sandbox: Sandbox, expected: Tree) -> None:
    result = sandbox.call("run")
    assert result.returncode == 0, result.stderr
    assert sandbox.hub.files(TARGET) == expected
    assert _is_public(sandbox)
    assert sandbox.plan()["jobs"] == []
    assert _left_behind(sandbox) == []


def _left_behind(sandbox: Sandbox) -> list[str]:
    return [path.name for path in sandbox.jobs[0].rglob(".*") if path.is_file() and path.name != ".lock"]


@pytest.mark.parametrize(
    ("stage", "record"),
    [
        ("pull", "weights.json"),
        ("quantize", "quantized.json"),
        ("evaluate", "report.json"),
        ("card", "card.json"),
        ("publish", "publication.json"),
    ],
)
def test_a_run_killed_after_a_stage_resumes_there(
    before: Callable[[str], Sandbox], expected: Tree, stage: str, record: str
) -> None:
    sandbox = before(stage)
    job = sandbox.jobs[0]
    # The next request is held back, so that there is a moment to be killed in.
    sandbox.hub.faults.add(Fault(path="/api/repos/create|/api/models/quantized", method="POST", delay_s=60))
    if record == "publication.json":
        sandbox.hub.faults.clear()
        result = sandbox.call("run")
        assert result.returncode == 0, result.stderr
    else:
        sandbox.stop_when((job / record).exists, signal.SIGKILL, "run")
        sandbox.hub.faults.clear()
    _finish(sandbox, expected)


def test_a_killed_pull_fetches_the_rest(before: Callable[[str], Sandbox], small_sandbox: Sandbox) -> None:
    sandbox = before("pull")
    sandbox.hub.faults.add(Fault(path=r"/objects/.*/model", delay_s=60))
    sandbox.stop_when(
        lambda: not sandbox.hub.faults.pending, signal.SIGKILL, "pull", "--job", str(sandbox.jobs[0])
    )
    assert not (sandbox.jobs[0] / "weights.json").exists()
    result = sandbox.call("pull", "--job", str(sandbox.jobs[0]))
    assert result.returncode == 0, result.stderr
    assert _tree(sandbox.jobs[0] / "source") == _tree(small_sandbox.jobs[0] / "source")


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
    assert _left_behind(trained) == []


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/api/repos/create"),
        ("PUT", ""),
        ("POST", r"/commit/main"),
        ("GET", r"/objects/.*/model"),
        ("PUT", "/settings"),
        ("POST", "/tag/"),
    ],
    ids=["create", "upload", "commit", "read back", "settings", "tag"],
)
def test_a_killed_publish_leaves_nothing_unfinished_in_public(
    before: Callable[[str], Sandbox], expected: Tree, method: str, path: str
) -> None:
    sandbox = before("publish")
    sandbox.hub.faults.add(Fault(path=path, method=method, delay_s=60))
    sandbox.stop_when(lambda: not sandbox.hub.faults.pending, signal.SIGKILL, "run")
    # Only the tag may still be missing once people can see it: everything was read back before.
    assert _is_public(sandbox) <= (path == "/tag/")
    sandbox.hub.faults.clear()
    _finish(sandbox, expected)


@pytest.mark.parametrize(
    ("stage", "fault"),
    [
        ("pull", Fault(path="/api/models/lab/", delay_s=60)),
        ("pull", Fault(path=r"/objects/.*/model", delay_s=60)),
        ("publish", Fault(path="/commit/main", method="POST", delay_s=60)),
    ],
    ids=["plan", "pull", "publish"],
)
def test_ctrl_c_ends_with_130_and_one_line(before: Callable[[str], Sandbox], stage: str, fault: Fault) -> None:
    sandbox = before(stage)
    sandbox.hub.faults.add(fault)
    result = sandbox.stop_when(lambda: not sandbox.hub.faults.pending, signal.SIGINT, "run")
    assert result.returncode == 130
    assert "interrupted" in result.stderr
    assert "Traceback" not in result.stderr


def test_ctrl_c_while_quantizing_ends_both_and_leaves_no_half_folder(trained: Sandbox) -> None:
    result = trained.stop_when(lambda: any(trained.root.glob("work/*/layers")), signal.SIGINT, "run")
    assert result.returncode == 130, result.stderr
    assert "Traceback" not in result.stderr
    assert not (trained.jobs[0] / "quantized.json").exists()
    assert not (trained.jobs[0] / "quantized").exists()


def test_ctrl_c_while_evaluating_ends_both_and_the_next_run_goes_on(
    before: Callable[[str], Sandbox], expected: Tree
) -> None:
    sandbox = before("evaluate")
    result = sandbox.stop_when(partial(_is_measuring, sandbox), signal.SIGINT, "run")
    assert result.returncode == 130, result.stderr
    assert "Traceback" not in result.stderr
    assert not (sandbox.jobs[0] / "report.json").exists()
    _finish(sandbox, expected)


def test_ctrl_c_while_modules_are_loaded_prints_nothing(before: Callable[[str], Sandbox]) -> None:
    with before("evaluate").start("evaluate", "--source", "none", "--quantized", "none") as process:
        maps = Path(f"/proc/{process.pid}/maps")
        wait_for(lambda: "libtorch" in maps.read_text())
        process.send_signal(signal.SIGINT)
        assert process.communicate() == ("", "")
    assert process.returncode == -signal.SIGINT


def _is_measuring(sandbox: Sandbox) -> bool:
    """Whether a child of this sandbox's run, and not of another test's, has come as far as loading torch.

    Before that it may be Python itself that is interrupted while it starts, and that has its own words for it.
    """
    wanted = b"\0evaluate\0--job\0"
    name = sandbox.jobs[0].name.encode()
    for process in Path("/proc").glob("[0-9]*"):
        command = _read(process / "cmdline")
        if wanted in command and name in command and b"libtorch" in _read(process / "maps"):
            return True
    return False


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:  # it ended meanwhile
        return b""


def test_two_runs_racing_for_one_target_publish_once_and_both_end_well(
    before: Callable[[str], Sandbox], expected: Tree
) -> None:
    sandbox = before("publish")
    shutil.copytree(sandbox.root / "work", sandbox.root / "other")
    with sandbox.start("run") as first, sandbox.start("run", "--work", "other") as second:
        ends = [process.communicate(timeout=120) for process in (first, second)]
    assert [first.returncode, second.returncode] == [0, 0], ends
    assert sandbox.hub.files(TARGET) == expected
    assert len([commit for commit in sandbox.hub.history(TARGET) if commit.title.startswith("AWQ INT4")]) == 1


def _tree(folder: Path) -> Tree:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
