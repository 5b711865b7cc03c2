"""Child processes: what they may see, and how their failures are reported."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import pytest

from bot.errors import BotError, QuantizationError, WatchlistError
from bot.jobs.environment import child_environment
from bot.jobs.folder import JobDir
from bot.jobs.worker import error_of, run_child
from bot.records import Card, Job, JobResult, Publication, Report
from tests.support import factories

SECRETS = {
    "HF_TOKEN": "hf_read",
    "HF_WRITE_TOKEN": "hf_write",
    "HUGGING_FACE_HUB_TOKEN": "hf_old",
    "GITHUB_TOKEN": "ghs_x",
    "ACTIONS_ID_TOKEN_REQUEST_TOKEN": "id",
    "AWS_SECRET_ACCESS_KEY": "aws",
    "HTTPS_PROXY": "http://user:password@proxy",
    # Names that only begin as those of allowed variables, and allowed names with a secret in them.
    "CUDA_SECRET": "cuda",
    "TORCH_X": "hf_" + "x" * 34,
    "CUDA_HOME": "hf_" + "y" * 34,
    "PYTHONWARNINGS": "github_pat_" + "z" * 40,
    "DEPLOY_KEY": "a-key-of-any-kind",
    "LD_LIBRARY_PATH": "/lib:a-key-of-any-kind",
}


def test_a_child_sees_no_secret_and_no_network_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    environment = child_environment(tmp_path / "hf_home")
    assert not set(SECRETS) & set(environment)
    assert not set(SECRETS.values()) & set(environment.values())
    assert environment["HF_HUB_OFFLINE"] == "1"
    for name in ("HOME", "HF_HOME", "TMPDIR"):
        assert environment[name].startswith(str(tmp_path))
    assert environment["PATH"] == os.environ["PATH"]


def test_the_error_of_a_child_is_raised_with_its_hint(tmp_path: Path) -> None:
    jobdir = JobDir(tmp_path)
    jobdir.store(factories.job())
    with pytest.raises(WatchlistError, match="nothing pulled yet") as caught:
        run_child("quantize", jobdir, limit_s=60)
    assert "awq-bot pull" in caught.value.hint
    recorded = jobdir.load(JobResult)
    assert recorded is not None
    assert (recorded.stage, recorded.status, recorded.exit_code) == ("quantize", "failed", 2)


def test_the_error_of_a_child_that_cannot_write_is_raised_too(tmp_path: Path) -> None:
    jobdir = JobDir(tmp_path)
    jobdir.store(factories.job())
    (tmp_path / ".result.json.tmp").mkdir()
    with pytest.raises(WatchlistError, match="nothing pulled yet"):
        run_child("quantize", jobdir, limit_s=300)
    assert jobdir.load(JobResult) is None


@pytest.mark.parametrize("said", [b"", b"{}", b"not JSON", b"[" * 70_000])
def test_what_a_child_says_that_is_no_failure_is_ignored(tmp_path: Path, said: bytes) -> None:
    error = error_of("quantize", JobDir(tmp_path), 5, said)
    assert (type(error), error.message) == (QuantizationError, "quantize ended with code 5")


@pytest.mark.parametrize(
    ("script", "message", "hint"),
    [("exit 2", "quantize ended with code 2", ""), ("kill -9 $$", "killed by SIGKILL", "memory")],
)
def test_a_child_that_records_no_error_is_reported_with_how_it_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, message: str, hint: str
) -> None:
    monkeypatch.setattr(sys, "executable", str(executable(tmp_path / "python", f"#!/bin/sh\n{script}\n")))
    with pytest.raises(QuantizationError, match=message) as caught:
        run_child("quantize", JobDir(tmp_path), limit_s=60)
    assert hint in caught.value.hint


@pytest.mark.parametrize(
    ("verb", "message"), [("trial", "tokenizer, chat template or generation config took"), ("quantize", "stopped")]
)
def test_a_child_that_never_ends_is_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verb: str, message: str
) -> None:
    script = f"#!/bin/sh\necho $$ >{tmp_path}/pid\nwhile true; do sleep 0.05; done\n"
    monkeypatch.setattr(sys, "executable", str(executable(tmp_path / "python", script)))
    with pytest.raises(BotError, match=message):
        run_child(verb, JobDir(tmp_path), limit_s=0.5)
    assert _is_gone(int((tmp_path / "pid").read_text()))


def test_a_child_that_changes_its_job_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    jobdir = JobDir(tmp_path / "job")
    jobdir.store(factories.job())
    script = f"#!/bin/sh\nsed -i s/quantized/elsewhere/ {jobdir.record_path(Job)}\n"
    monkeypatch.setattr(sys, "executable", str(executable(tmp_path / "python", script)))
    with pytest.raises(QuantizationError, match=r"quantize changed job\.json"):
        run_child("quantize", jobdir, limit_s=60)


@pytest.mark.parametrize("code", [0, 1])
def test_a_child_cannot_write_the_records_of_later_stages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    jobdir = JobDir(tmp_path / "job")
    jobdir.store(factories.job())
    later = [jobdir.record_path(kind) for kind in (Report, Card, Publication)]
    written = "".join(f"echo {{}} >{path}\n" for path in later)
    monkeypatch.setattr(
        sys, "executable", str(executable(tmp_path / "python", f"#!/bin/sh\n{written}exit {code}\n"))
    )
    with nullcontext() if code == 0 else pytest.raises(QuantizationError):
        run_child("quantize", jobdir, limit_s=60)
    assert [path.name for path in later if path.exists()] == []


def executable(path: Path, script: str) -> Path:
    path.write_text(script)
    path.chmod(0o755)
    return path


def test_a_child_ends_when_its_parent_is_killed() -> None:
    child = "from bot.jobs.worker import end_with_parent; end_with_parent(); print('up', flush=True)"
    code = f"""
import os, subprocess, sys, time
os.environ["AWQ_BOT_PARENT"] = str(os.getpid())
child = subprocess.Popen([sys.executable, "-c", {child!r} + "; import time; time.sleep(60)"])
print(child.pid, flush=True)
time.sleep(60)
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        assert parent.stdout.readline().strip() == "up"
        parent.send_signal(signal.SIGKILL)
        assert _is_gone(pid)


SPY = """\
#!/bin/sh
folder="$(dirname "$0")"
exec 2>"$folder/refused"
cat /proc/$PPID/environ >"$folder/seen"
exit 0
"""
PARENT = """
import os, subprocess, sys
from pathlib import Path
from bot.jobs.worker import run_child
from bot.jobs.folder import JobDir
folder = Path(sys.argv[1])
spy, seen = str(folder / "python"), folder / "seen"
subprocess.run([spy], check=True)
print("secret" in seen.read_text())
sys.executable = spy
run_child("quantize", JobDir(folder), limit_s=60)
print("secret" in seen.read_text())
# For ourselves, and for git or nvidia-smi, all is as before.
print(os.environ["HF_WRITE_TOKEN"])
print(subprocess.check_output(["sh", "-c", "echo $HF_WRITE_TOKEN"], text=True))
"""


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that a process without rights may write to, wherever pytest keeps its own."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o777)
        executable(folder / "python", SPY)
        yield folder


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="/proc is Linux's")
@pytest.mark.parametrize("as_root", [True, False])
def test_a_child_cannot_read_what_its_parent_was_started_with(open_folder: Path, as_root: bool) -> None:
    # By `setpriv`: a process that changes its own account is not dumpable anyway.
    prefix = [] if as_root else ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
    if os.geteuid() != 0:
        if as_root:
            pytest.skip("the tests do not run as root")
        prefix = []
    environment = {"PATH": os.environ["PATH"], "HF_WRITE_TOKEN": "secret"}
    done = subprocess.run(
        [*prefix, sys.executable, "-B", "-c", PARENT, str(open_folder)],
        env=environment,
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.stdout.split(), done.stderr) == (["True", "False", "secret", "secret"], "")
    # Root may look, and finds nothing.
    refused = "Permission denied" in (open_folder / "refused").read_text()
    assert refused is not as_root
    if as_root:
        assert (open_folder / "seen").read_bytes().strip(b"\0") == b""


def _is_gone(pid: int) -> bool:
    """Whether the process ends within a few seconds, reaped or not."""
    for _ in range(100):
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
        except FileNotFoundError:
            return True
        if state == "Z":
            return True
        time.sleep(0.05)
    return False
