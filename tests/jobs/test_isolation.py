"""What code of a hostile model reaches from a child process: nothing of it, where the machine can prevent it."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import jinja2
import pytest

from bot.jobs.confined import NOT_ISOLATED, PARENT
from bot.jobs.isolation import ESSENTIAL, Confinement, in_force
from bot.jobs.machine import core_count, memory_bytes
from bot.localhub import LocalHub
from tests.support import probes
from tests.support.probes import LOOKS_LIKE_A_TOKEN, PROBES, SECRET, plant
from tests.support.sandbox import Sandbox, SandboxBefore, recorded_files
from tests.support.small_sandbox import CONFIG, SOURCE, small_model, write_watchlist

ROOT = Path(__file__).parents[2]
pytestmark = [
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="Linux's mechanisms"),
    # Whoever asks first prepares the small sandbox, and a busy machine takes its time.
    pytest.mark.timeout(900),
]

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
def test_a_child_is_kept_from(probe: str, case: str, record_property: Callable[[str, object], None]) -> None:
    try:
        found = outcome(case)
        if not found["in force"][PROBES[probe]]:
            pytest.skip(f"not possible here as {case}: {probe}")
    except pytest.skip.Exception:
        record_property("probe", "not possible")
        raise
    record_property("probe", "reached" if probe in found["confined"] else "blocked")
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
    assert int(soft["Max processes"]) <= max(4096, 256 * core_count())


def test_a_file_that_is_too_large_is_an_error(start: Start) -> None:
    with start("trap '' XFSZ; head -c 2000000 /dev/zero >large; echo $?") as process:
        assert process.communicate()[0].strip() != "0"


def test_without_what_is_needed_the_command_is_not_started(start: Start, tmp_path: Path) -> None:
    with start("touch started", need=("files", "something else")) as process:
        assert "something else" in process.communicate()[1]
    assert process.returncode == NOT_ISOLATED
    assert not (tmp_path / "started").exists()


# --- the pipeline ---------------------------------------------------------------------------------------------

OFF = "AWQ_BOT_ISOLATION"


def test_doctor_names_what_is_in_force(sandbox_before: SandboxBefore, monkeypatch: pytest.MonkeyPatch) -> None:
    sandbox = sandbox_before()
    checks = {check["name"]: check for check in json.loads(sandbox.call("doctor", "--json").stdout)}
    for name, mechanisms in in_force().items():
        check = checks[f"isolation: {name}"]
        assert check["found"] == ", ".join(mechanisms) or check["status"] == "warning"
    monkeypatch.setenv(OFF, "off")
    assert sandbox.call("doctor").returncode == 0
    failed = sandbox.call("doctor", "--require-isolation")
    assert failed.returncode == 8
    assert f"{OFF} is off" in failed.stdout


@pytest.mark.parametrize("verb", ["run", "pull", "quantize", "evaluate"])
def test_nothing_is_done_without_the_isolation_that_is_required(
    sandbox_before: SandboxBefore, monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    sandbox = sandbox_before("pull", "quantize", "evaluate", "card")
    monkeypatch.setenv(OFF, "off")
    sandbox.hub.clear_requests()
    job = () if verb == "run" else ("--job", str(sandbox.jobs[0]))
    done = sandbox.call(verb, *job, "--require-isolation")
    assert done.returncode == 8
    assert "cannot be isolated" in done.stderr
    assert f"{OFF} is off" in done.stderr
    assert not (sandbox.jobs[0] / "weights.json").exists()
    assert sandbox.hub.requests == ()


@pytest.mark.slow
@pytest.mark.parametrize("value", ["off", ""], ids=["off", "without namespaces"])
def test_isolated_or_not_the_same_bytes_are_made(
    small_sandbox: Sandbox, sandbox_before: SandboxBefore, monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    sandbox = sandbox_before("quantize", "evaluate", "card")
    monkeypatch.setenv(OFF, value)
    prefix = () if value else NO_NAMESPACES
    command = [*prefix, sys.executable, "-m", "bot", "run", "--dry-run"]
    done = subprocess.run(
        command, env=sandbox.environment(), cwd=sandbox.root, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    [isolated], [open_] = small_sandbox.jobs, sandbox.jobs
    assert recorded_files(open_) == recorded_files(isolated)
    assert record(open_, "report.json", "duration_s") == record(isolated, "report.json", "duration_s")


def record(job: Path, name: str, *but: str) -> dict[str, Any]:
    content = json.loads((job / name).read_text())["record"]
    return {key: value for key, value in content.items() if key not in but}


# --- a model with its own code --------------------------------------------------------------------------------

OWN_CONFIG = CONFIG | {
    "model_type": "planted",
    "architectures": ["PlantedForCausalLM"],
    "auto_map": {
        "AutoConfig": "modeling_own.PlantedConfig",
        "AutoModelForCausalLM": "modeling_own.PlantedForCausalLM",
    },
}
OWN_CODE = """

from transformers import Qwen3Config, Qwen3ForCausalLM

class PlantedConfig(Qwen3Config):
    model_type = "planted"

class PlantedForCausalLM(Qwen3ForCausalLM):
    config_class = PlantedConfig

HOME = Path(os.environ["HOME"])
FACTS = json.loads(%r) | {
    "bot": os.getppid(), "alive": str(HOME / "alive"), "source": str(HOME.parent / "source")
}
VERB = next(word for word in sys.argv if word in ("trial", "quantize", "evaluate"))
(HOME / f"reached-{VERB}.json").write_text(json.dumps(reached(FACTS)))
"""


@pytest.fixture
def hostile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Sandbox]:
    """A sandbox with one model whose code tries everything and then works; it is trusted, and planned."""
    facts = plant(tmp_path)
    monkeypatch.setenv("HOME", facts["home"])
    monkeypatch.setenv("HF_WRITE_TOKEN", SECRET)
    with socket.create_server(("", 0)) as tcp, socket.socket(socket.AF_UNIX) as unix:
        unix.bind(facts["unix"])
        unix.listen()
        found = facts | {"port": tcp.getsockname()[1]}
        code = Path(probes.__file__).read_text().partition("# --- as the bot")[0] + OWN_CODE % json.dumps(found)
        root = tmp_path / "sandbox"
        root.mkdir()
        sandbox = Sandbox(LocalHub(root / "hub"), root)
        sha = sandbox.hub.seed(
            SOURCE, small_model() | {"config.json": json.dumps(OWN_CONFIG), "modeling_own.py": code}
        )
        write_watchlist(sandbox, TRUSTING.format(sha=sha))
        with sandbox.hub:
            done = sandbox.call("actions", "plan", "--out", "plan")
            assert done.returncode == 0, done.stderr
            yield sandbox


TRUSTING = """\
publish_to: quantized
defaults:
  calibration: {{samples: 16, seq_len: 64, sources: [{{builtin: stdlib}}]}}
  evaluation: {{tokens: 8192, sources: [{{builtin: stdlib}}]}}
  gate: {{max_kl: 100, min_top1: 0, max_perplexity_ratio: 100}}
models:
  - {{repo_id: lab/small, revision: {sha}, trust_remote_code: true}}
"""


def test_trusted_code_of_a_model_reaches_nothing_and_never_runs_unless_it_is_isolated(
    hostile: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    [job] = json.loads((hostile.root / "plan" / "plan.json").read_text())["jobs"]
    words = ("actions", "quantize", "--plan", "plan", "--job-id", job["job_id"])
    with monkeypatch.context() as patch:
        patch.setenv(OFF, "off")
        refused = hostile.call(*words)
    assert refused.returncode == 8
    assert "cannot be isolated" in refused.stderr
    assert not (hostile.jobs[0] / "source").exists()

    if any(not in_force()[name] for name in ESSENTIAL):
        pytest.skip("not possible here: it is refused")
    # The home is removed when a job is done, so its stages are run by themselves.
    for verb in ("pull", "quantize", "evaluate"):
        done = hostile.call(verb, "--job", str(hostile.jobs[0]))
        assert done.returncode == 0, done.stderr
    possible = {probe for probe, name in PROBES.items() if in_force().get(name, True)}
    for verb in ("trial", "quantize", "evaluate"):
        reached = json.loads((hostile.jobs[0] / "hf_home" / f"reached-{verb}.json").read_text())
        # The last one starts it; whether it lives on is seen below.
        assert possible & {*reached} <= {"outlives the run"}, verb
    if in_force()["left over"]:
        alive = hostile.jobs[0] / "hf_home" / "alive"
        size_bytes = alive.stat().st_size
        time.sleep(0.5)
        assert alive.stat().st_size == size_bytes > 0
