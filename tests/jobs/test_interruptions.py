"""Stopped anywhere, run again: the same published tree, nothing half-published in public, nothing left behind."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from bot.localhub import Fault, HubError
from tests.support.sandbox import House, Quantized, build_house, recorded_files, wait_for
from tests.support.small_model import TARGET

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
def expected(small_house: House, tmp_path_factory: pytest.TempPathFactory) -> Tree:
    """What is published when nothing interrupts."""
    house = small_house.copy_to(tmp_path_factory.mktemp("expected") / "house")
    with house.hub:
        result = house.call("run")
        assert result.returncode == 0, result.stderr
        return house.hub.files(TARGET)


@pytest.fixture
def before(small_house: House, tmp_path: Path) -> Iterator[Callable[[str], House]]:
    """A house in which the stage of the given name, and those after it, have not run; its Hub is up."""
    houses: list[House] = []

    def make(stage: str) -> House:
        house = small_house.copy_to(tmp_path / stage)
        names = [name for key, names in UNDONE.items() if _order(key) >= _order(stage) for name in names]
        for name in names:
            path = house.jobs[0] / name
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        house.hub.start()
        houses.append(house)
        return house

    yield make
    for house in houses:
        house.hub.stop()


@pytest.fixture
def trained(tmp_path: Path) -> Iterator[House]:
    """A house of a trained model, whose layers take long enough to be stopped in the middle; its Hub is up."""
    house = build_house(tmp_path / "trained", models=(TRAINED,))
    with house.hub:
        yield house


def _order(stage: str) -> int:
    return [*UNDONE, "publish"].index(stage)


def _is_public(house: House) -> bool:
    try:
        return not house.hub.repo(TARGET).settings().private
    except HubError:
        return False


def _finish(house: House, expected: Tree) -> None:
    result = house.call("run")
    assert result.returncode == 0, result.stderr
    assert house.hub.files(TARGET) == expected
    assert _is_public(house)
    assert house.plan()["jobs"] == []
    assert _left_behind(house) == []


def _left_behind(house: House) -> list[str]:
    return [path.name for path in house.jobs[0].rglob(".*") if path.is_file() and path.name != ".lock"]


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
def test_killed_at_the_end_of_a_stage_it_goes_on_from_there(
    before: Callable[[str], House], expected: Tree, stage: str, record: str
) -> None:
    house = before(stage)
    job = house.jobs[0]
    # The next request is held back, so that there is a moment to be killed in.
    house.hub.faults.add(Fault(path="/api/repos/create|/api/models/quantized", method="POST", delay_s=60))
    if record == "publication.json":
        house.hub.faults.clear()
        result = house.call("run")
        assert result.returncode == 0, result.stderr
    else:
        house.stop_when((job / record).exists, signal.SIGKILL, "run")
        house.hub.faults.clear()
    _finish(house, expected)


def test_killed_inside_pull_it_fetches_the_rest(before: Callable[[str], House], small_house: House) -> None:
    house = before("pull")
    house.hub.faults.add(Fault(path=r"/objects/.*/model", delay_s=60))
    house.stop_when(lambda: not house.hub.faults.pending, signal.SIGKILL, "pull", "--job", str(house.jobs[0]))
    assert not (house.jobs[0] / "weights.json").exists()
    result = house.call("pull", "--job", str(house.jobs[0]))
    assert result.returncode == 0, result.stderr
    assert _tree(house.jobs[0] / "source") == _tree(small_house.jobs[0] / "source")


def test_killed_inside_quantize_it_loses_at_most_a_layer_and_makes_the_same_bytes(
    trained: House, quantized: Quantized
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
def test_killed_inside_publish_nothing_unfinished_is_public(
    before: Callable[[str], House], expected: Tree, method: str, path: str
) -> None:
    house = before("publish")
    house.hub.faults.add(Fault(path=path, method=method, delay_s=60))
    house.stop_when(lambda: not house.hub.faults.pending, signal.SIGKILL, "run")
    # Only the tag may still be missing once people can see it: everything was read back before.
    assert _is_public(house) <= (path == "/tag/")
    house.hub.faults.clear()
    _finish(house, expected)


@pytest.mark.parametrize(
    ("stage", "fault"),
    [
        ("pull", Fault(path="/api/models/lab/", delay_s=60)),
        ("pull", Fault(path=r"/objects/.*/model", delay_s=60)),
        ("publish", Fault(path="/commit/main", method="POST", delay_s=60)),
    ],
    ids=["plan", "pull", "publish"],
)
def test_ctrl_c_ends_with_130_and_one_line(before: Callable[[str], House], stage: str, fault: Fault) -> None:
    house = before(stage)
    house.hub.faults.add(fault)
    result = house.stop_when(lambda: not house.hub.faults.pending, signal.SIGINT, "run")
    assert result.returncode == 130
    assert "interrupted" in result.stderr
    assert "Traceback" not in result.stderr


def test_ctrl_c_while_quantizing_ends_both_and_leaves_no_half_folder(trained: House) -> None:
    result = trained.stop_when(lambda: any(trained.root.glob("work/*/layers")), signal.SIGINT, "run")
    assert result.returncode == 130, result.stderr
    assert "Traceback" not in result.stderr
    assert not (trained.jobs[0] / "quantized.json").exists()
    assert not (trained.jobs[0] / "quantized").exists()


def test_ctrl_c_while_evaluating_ends_both_and_the_next_run_goes_on(
    before: Callable[[str], House], expected: Tree
) -> None:
    house = before("evaluate")
    result = house.stop_when(partial(_is_measuring, house), signal.SIGINT, "run")
    assert result.returncode == 130, result.stderr
    assert "Traceback" not in result.stderr
    assert not (house.jobs[0] / "report.json").exists()
    _finish(house, expected)


def test_ctrl_c_while_modules_are_loaded_ends_in_silence(before: Callable[[str], House]) -> None:
    with before("evaluate").start("evaluate", "--source", "none", "--quantized", "none") as process:
        maps = Path(f"/proc/{process.pid}/maps")
        wait_for(lambda: "libtorch" in maps.read_text())
        process.send_signal(signal.SIGINT)
        assert process.communicate() == ("", "")
    assert process.returncode == -signal.SIGINT


def _is_measuring(house: House) -> bool:
    """Whether a child of this house's run, and not of another test's, has come as far as loading torch.

    Before that it may be Python itself that is interrupted while it starts, and that has its own words for it.
    """
    wanted = b"\0evaluate\0--job\0"
    name = house.jobs[0].name.encode()
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
    before: Callable[[str], House], expected: Tree
) -> None:
    house = before("publish")
    shutil.copytree(house.root / "work", house.root / "other")
    with house.start("run") as first, house.start("run", "--work", "other") as second:
        ends = [process.communicate(timeout=120) for process in (first, second)]
    assert [first.returncode, second.returncode] == [0, 0], ends
    assert house.hub.files(TARGET) == expected
    assert len([commit for commit in house.hub.history(TARGET) if commit.title.startswith("AWQ INT4")]) == 1


def _tree(folder: Path) -> Tree:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
