"""What code of a hostile model reaches from a child process: nothing of it, where the machine can prevent it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import jinja2
import pytest

from bot.jobs.confined import NOT_ISOLATED, PARENT
from bot.jobs.isolation import ESSENTIAL, Confinement
from bot.jobs.machine import memory_bytes
from tests.support import probes
from tests.support.probes import LOOKS_LIKE_A_TOKEN, PROBES, SECRET

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="Linux's mechanisms")

NOBODY = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups")
# The number of namespaces below a new one can be limited by whoever makes it.
NO_NAMESPACES = (
    *("unshare", "--user", "--map-root-user", "sh", "-c"),
    'echo 0 >/proc/sys/user/max_user_namespaces && exec "$@"',
    "sh",
)
CASES = {
    "this account": (),
    "this account without namespaces": NO_NAMESPACES,
    "an ordinary account": NOBODY,
    "an ordinary account without namespaces": (*NOBODY, *NO_NAMESPACES),
}


@cache
def outcome(case: str) -> dict[str, Any]:
    """Of the probes, run as the case says; each case once. Skips what this machine cannot do."""
    prefix = CASES[case]
    if NOBODY[0] in prefix and os.geteuid() != 0:
        pytest.skip("only root can become another account")
    # An ordinary account may be unable to reach the interpreter that runs the tests.
    python = "/usr/bin/python3" if NOBODY[0] in prefix else sys.executable
    needs = [*prefix, python, "-c", "import sys; assert sys.version_info >= (3, 11)"]
    if subprocess.run(needs, capture_output=True, check=False).returncode:
        pytest.skip(f"this machine cannot run Python as {case}")
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o777)
        environment = {
            "PATH": os.environ["PATH"],
            "PYTHONPATH": os.pathsep.join([str(ROOT), str(Path(jinja2.__file__).parents[1])]),
            "PYTHONDONTWRITEBYTECODE": "1",
            "HOME": f"{folder}/home",
            "HF_WRITE_TOKEN": SECRET,
            "CUDA_SECRET": SECRET,
            "TORCH_X": LOOKS_LIKE_A_TOKEN,
            "CUDA_HOME": LOOKS_LIKE_A_TOKEN,  # a name that is allowed
        }
        done = subprocess.run(
            [*prefix, python, probes.__file__, folder],
            env=environment,
            cwd=folder,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("probe", PROBES)
def test_a_child_is_kept_from(probe: str, case: str) -> None:
    found = outcome(case)
    if not found["in force"][PROBES[probe]]:
        pytest.skip(f"not possible here as {case}: {probe}")
    assert probe not in found["confined"]


def test_each_probe_works_where_nothing_is_confined() -> None:
    assert {*PROBES} - {*outcome("this account")["unconfined"]} == set()


def test_what_needs_no_privilege_is_enough_for_the_essential_ones() -> None:
    """As on machines that forbid user namespaces."""
    found = outcome("an ordinary account without namespaces")["in force"]
    assert [name for name in ESSENTIAL if not found[name]] == []
    assert not found["source"]


# --- the command itself --------------------------------------------------------------------------------------


@pytest.fixture(params=[False, True], ids=["all", "without namespaces"])
def start(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[..., subprocess.Popen[str]]:
    """Starts a shell script as a child process is started, which writes to tmp_path."""

    def popen(script: str, **options: Any) -> subprocess.Popen[str]:
        values = {"memory_bytes": memory_bytes(), "cpu_s": 60, "file_bytes": 1 << 20} | options
        command = Confinement(write=(tmp_path,), **values).around(["/bin/sh", "-c", script])
        prefix = NO_NAMESPACES if request.param else ()
        return subprocess.Popen(
            [*prefix, *command],
            env={"PATH": os.environ["PATH"], PARENT: str(os.getpid())},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=tmp_path,
            text=True,
        )

    if request.param and subprocess.run([*NO_NAMESPACES, "true"], capture_output=True, check=False).returncode:
        pytest.skip("there are none without")
    return popen


Start = Callable[..., subprocess.Popen[str]]


@pytest.mark.parametrize(
    ("script", "code"),
    [("exit 0", 0), ("exit 3", 3), ("kill -KILL $$", -signal.SIGKILL), ("kill -ABRT $$", -signal.SIGABRT)],
)
def test_a_command_ends_as_it_would_by_itself(start: Start, script: str, code: int) -> None:
    with start(script) as process:
        assert process.communicate()[1] == ""
    assert process.returncode == code


def test_a_command_is_asked_to_end_and_may_clean_up(start: Start, tmp_path: Path) -> None:
    script = "trap 'echo cleaned up; exit 7' TERM; touch ready; while :; do sleep 0.05; done"
    with start(script) as process:
        while not (tmp_path / "ready").exists():
            time.sleep(0.01)
        process.terminate()
        assert process.communicate(timeout=30)[0] == "cleaned up\n"
    assert process.returncode == 7


def test_a_command_ends_with_the_process_that_supervises_it(start: Start, tmp_path: Path) -> None:
    script = "while :; do echo . >>alive; sleep 0.05; done"
    alive = tmp_path / "alive"
    with start(script) as process:
        while not alive.exists():
            time.sleep(0.01)
        process.kill()
        process.communicate(timeout=30)
    time.sleep(0.2)
    size_bytes = alive.stat().st_size
    time.sleep(0.3)
    assert alive.stat().st_size == size_bytes


def test_a_command_is_limited(start: Start) -> None:
    with start("cat /proc/self/limits") as process:
        lines = process.communicate()[0].splitlines()[1:]
    # "Max open files            1024                 4096                 files"
    soft = {line[:26].strip(): line[26:].split()[0] for line in lines}
    assert soft["Max core file size"] == "0"
    assert int(soft["Max data size"]) == memory_bytes()
    assert soft["Max cpu time"] == "60"
    assert int(soft["Max file size"]) == 1 << 20
    assert int(soft["Max processes"]) <= 4096


def test_a_file_that_is_too_large_is_an_error(start: Start) -> None:
    with start("trap '' XFSZ; head -c 2000000 /dev/zero >large; echo $?") as process:
        assert process.communicate()[0].strip() != "0"


def test_without_what_is_needed_the_command_is_not_started(start: Start, tmp_path: Path) -> None:
    with start("touch started", need=("files", "something else")) as process:
        assert "something else" in process.communicate()[1]
    assert process.returncode == NOT_ISOLATED
    assert not (tmp_path / "started").exists()
