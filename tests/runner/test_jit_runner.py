"""The script that gives a plain machine one runner per job, against a GitHub API and with a fake runner."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from starlette.applications import Starlette

from tests.runner.jit_runners import JitRunners, jit_config
from tests.support.github_api.serving import served
from tests.support.sandbox import wait_for

SCRIPT = Path(__file__).parents[2] / ".github" / "runner" / "jit-runner.sh"
PATIENCE_S = 30
PERMANENT = 78
MARK = ".awq-bot-runner"
# Writes down how it was called and what it found, and leaves a mess as a job does.
FAKE_RUNNER = """\
#!/usr/bin/env bash
case $1 in
awq-bot) printf '%s\\n' "$*" >>"$RECORD/self-test"; exit "${SELF_TEST_CODE:-0}" ;;
esac
printf '%s\\n' "$*" >"$RECORD/arguments"
tr '\\0' ' ' <"/proc/$PPID/cmdline" >"$RECORD/parent"
env >"$RECORD/environment"
ls -A "$RUNNER_WORK" "$RUNNER_WORK/job" >"$RECORD/found"
mkdir -p "$RUNNER_WORK/job/locked/inner" && echo left >"$RUNNER_WORK/job/locked/inner/file"
chmod 000 "$RUNNER_WORK/job/locked"
trap 'echo stopped >"$RECORD/stopped"; exit 0' TERM
touch "$RECORD/started"
for _ in $(seq "${JOB_TENTHS:-0}"); do sleep 0.1; done
exit "${JOB_CODE:-0}"
"""


@dataclass
class Machine:
    github: JitRunners
    environment: dict[str, str]
    root: Path

    @property
    def work(self) -> Path:
        return self.root / "srv" / "runner"

    def run(self, **changed: str) -> subprocess.CompletedProcess[str]:
        environment = self.environment | changed
        return subprocess.run(
            [str(SCRIPT)], env=environment, capture_output=True, text=True, check=False, timeout=PATIENCE_S
        )

    def record(self, name: str) -> str:
        path = self.root / "record" / name
        return path.read_text() if path.exists() else ""


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    github = JitRunners()
    for folder in ("record", "srv"):
        (tmp_path / folder).mkdir()
    fake, token = tmp_path / "fake-runner", tmp_path / "token"
    fake.write_text(FAKE_RUNNER)
    fake.chmod(0o755)
    token.write_text(github.token + "\n")
    token.chmod(0o600)
    with served(Starlette(routes=github.routes)) as url:
        environment = {
            "PATH": os.environ["PATH"],
            "HOSTNAME": "gpu box; rm -rf /",
            "GITHUB_API_URL": url,
            "RUNNER_SCOPE": "repos/someone/awq-bot",
            "RUNNER_LABELS": "self-hosted,gpu,gpu-24gb",
            "RUNNER_WORK": str(tmp_path / "srv" / "runner"),
            "RUNNER_EXEC": str(fake),
            "RUNNER_TOKEN_FILE": str(token),
            "RECORD": str(tmp_path / "record"),
        }
        yield Machine(github, environment, tmp_path)


def test_one_cycle_registers_runs_one_job_and_leaves_nothing(machine: Machine) -> None:
    done = machine.run()
    assert done.returncode == 0, done.stderr
    [body] = machine.github.registered
    assert machine.github.paths == ["/repos/someone/awq-bot/actions/runners/generate-jitconfig"]
    assert body["labels"] == ["self-hosted", "gpu", "gpu-24gb"]
    assert (body["runner_group_id"], body["work_folder"]) == (1, "_work")
    assert body["name"].startswith("awq-gpu-box--rm--rf---")
    assert machine.record("arguments") == "/home/runner/run.sh\n"
    environment = machine.record("environment").splitlines()
    assert f"ACTIONS_RUNNER_INPUT_JITCONFIG={jit_config(body['name'])}" in environment
    assert sorted(path.name for path in machine.work.rglob("*")) == [MARK, "job", "tmp"]


def test_the_machine_is_tested_before_anything_is_registered(machine: Machine) -> None:
    assert machine.run().returncode == 0
    assert machine.record("self-test") == "awq-bot doctor --runner --work /home/runner/_work\n"
    failed = machine.run(SELF_TEST_CODE="8")
    assert failed.returncode == 1
    assert "not fit" in failed.stderr
    assert len(machine.github.registered) == 1


def test_a_job_starts_on_a_clean_disk(machine: Machine) -> None:
    assert machine.run().returncode == 0
    (machine.work / "job" / "left").mkdir()
    (machine.work / "job" / "left" / "over").write_text("by a power cut")
    assert machine.run().returncode == 0
    assert machine.record("found").split() == [f"{machine.work}:", MARK, "job", "tmp", f"{machine.work}/job:"]


def test_the_token_is_in_no_arguments_no_environment_and_no_message(machine: Machine) -> None:
    done = machine.run()
    assert machine.github.leaked == []
    records = [machine.record(name) for name in ("environment", "parent", "arguments")]
    assert machine.github.token not in "".join([done.stdout, done.stderr, *records])
    assert jit_config(machine.github.registered[0]["name"]) not in machine.record("parent") + done.stderr


def test_the_systemd_credential_is_taken_first(machine: Machine) -> None:
    credentials = machine.root / "credentials"
    credentials.mkdir()
    (credentials / "github-token").write_text(machine.github.token)
    done = machine.run(CREDENTIALS_DIRECTORY=str(credentials), RUNNER_TOKEN_FILE="/nowhere")
    assert done.returncode == 0, done.stderr


def test_an_organisation_runner_is_registered_in_its_group(machine: Machine) -> None:
    assert machine.run(RUNNER_SCOPE="orgs/someone", RUNNER_GROUP_ID="7").returncode == 0
    assert machine.github.paths == ["/orgs/someone/actions/runners/generate-jitconfig"]
    assert machine.github.registered[0]["runner_group_id"] == 7


def test_a_token_that_others_may_read_is_not_used(machine: Machine) -> None:
    Path(machine.environment["RUNNER_TOKEN_FILE"]).chmod(0o644)
    done = machine.run()
    assert (done.returncode, machine.github.paths) == (PERMANENT, [])
    assert "chmod 600" in done.stderr


@pytest.mark.parametrize(
    ("status", "code", "words"),
    [
        (403, PERMANENT, "is not permitted to register"),
        (404, PERMANENT, "is not permitted to register"),
        (422, PERMANENT, "labels"),
        (500, 1, "500"),
        (200, 1, "200"),
    ],
)
def test_permanent_errors_of_the_api_have_another_exit_code_than_temporary_ones(
    machine: Machine, status: int, code: int, words: str
) -> None:
    machine.github.status = status
    done = machine.run()
    assert done.returncode == code
    assert words in done.stderr
    assert machine.record("arguments") == ""


def test_an_expired_token_stops_the_unit(machine: Machine) -> None:
    Path(machine.environment["RUNNER_TOKEN_FILE"]).write_text("github_pat_old")
    done = machine.run()
    assert done.returncode == PERMANENT
    assert "401" in done.stderr
    assert "github_pat_old" not in done.stderr


@pytest.mark.parametrize(
    ("name", "value", "code", "words"),
    [
        ("GITHUB_API_URL", "http://127.0.0.1:9", 1, "cannot be reached"),
        ("RUNNER_SCOPE", "someone/awq-bot", PERMANENT, "RUNNER_SCOPE"),
        ("RUNNER_SCOPE", "repos/someone/awq-bot/../../x", PERMANENT, "RUNNER_SCOPE"),
        ("RUNNER_LABELS", 'gpu","evil', PERMANENT, "RUNNER_LABELS"),
        ("RUNNER_LABELS", "gpu,$(id)", PERMANENT, "RUNNER_LABELS"),
        ("RUNNER_GROUP_ID", "one", PERMANENT, "RUNNER_GROUP_ID"),
        ("RUNNER_WORK", "/", PERMANENT, "RUNNER_WORK"),
        ("RUNNER_WORK", "/srv", PERMANENT, "RUNNER_WORK"),
        ("RUNNER_WORK", "work/runner", PERMANENT, "RUNNER_WORK"),
        ("RUNNER_WORK", "/srv/runner/../..", PERMANENT, "RUNNER_WORK"),
        ("RUNNER_EXEC", "/nowhere", PERMANENT, "RUNNER_EXEC"),
        ("RUNNER_EXEC", "", PERMANENT, "RUNNER_EXEC"),
    ],
)
def test_settings_that_cannot_work_are_named_before_anything_is_registered(
    machine: Machine, name: str, value: str, code: int, words: str
) -> None:
    done = machine.run(**{name: value})
    assert done.returncode == code
    assert words in done.stderr
    assert machine.github.paths == []


def test_a_work_folder_with_other_files_is_not_emptied(machine: Machine) -> None:
    machine.work.mkdir()
    (machine.work / "thesis.txt").write_text("precious")
    done = machine.run()
    assert done.returncode == PERMANENT
    assert "is not empty" in done.stderr
    assert (machine.work / "thesis.txt").read_text() == "precious"


def test_a_failed_runner_is_reported_and_cleaned_up(machine: Machine) -> None:
    done = machine.run(JOB_CODE="3")
    assert done.returncode == 1
    assert "ended with 3" in done.stderr
    assert list((machine.work / "job").iterdir()) == []


def test_stopping_the_service_stops_the_job_and_cleans(machine: Machine) -> None:
    environment = machine.environment | {"JOB_TENTHS": "300"}
    with subprocess.Popen([str(SCRIPT)], env=environment, stderr=subprocess.PIPE, text=True) as process:
        wait_for((machine.root / "record" / "started").exists)
        assert machine.run().returncode == 1  # the folder is taken
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 143, err
    assert machine.record("stopped") == "stopped\n"
    assert list((machine.work / "job").iterdir()) == []
