"""The interpreter on made-up workflows: what the tests of secrets and rights rely on, and what it refuses.

The other rules (outputs, artifacts, matrices, actions) are needed for the real workflows to end as they do.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from textwrap import dedent, indent
from typing import Any

import pytest

from tests.workflows.interpreter.api import RunsApi
from tests.workflows.interpreter.parser import WorkflowError, WorkflowParser
from tests.workflows.interpreter.repository import NAME, Repository
from tests.workflows.interpreter.runs import Run, start


class Trial:
    """A repository of which a test writes just the workflows that it is about."""

    def __init__(self, parser: WorkflowParser, api: RunsApi, root: Path) -> None:
        checkout, machine = root / "checkout", {"PATH": os.environ["PATH"]}
        checkout.mkdir()
        self.api = api
        self.repository = Repository(
            parser=parser, api=api, root=root / "runs", checkout=checkout, source=root, machine=machine
        )

    def write(self, file: str, text: str) -> None:
        path = self.repository.source / ".github" / "workflows" / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(dedent(text))

    def run(self, *jobs: str, event: str = "push", **payload: Any) -> Run:
        head = "name: trial\non: [push, pull_request]\npermissions: {}\njobs:\n"
        self.write("trial.yml", head + indent("\n".join(jobs), "  "))
        return start(self.repository, "trial.yml", event, **payload)


@pytest.fixture
def trial(parser: WorkflowParser, tmp_path: Path) -> Iterator[Trial]:
    with RunsApi() as api:
        yield Trial(parser, api, tmp_path)


def job(name: str, *steps: str, more: str = "") -> str:
    """more: other keys of the job, or other values for the usual ones."""
    usual = ("runs-on: ubuntu-latest", "timeout-minutes: 1", "permissions: {}")
    keys = [line for line in usual if line.split()[0] not in more]
    return "\n".join([f"{name}:", indent("\n".join([*keys, more, "steps:", *steps]), "  ")])


def step(script: str, *more: str) -> str:
    """`run: script`, or any step that begins with `uses:`; its name is the last word."""
    body = script if script.startswith("uses:") else f"run: |\n{indent(script, '  ')}"
    return "- " + indent("\n".join([f"name: '{script.rsplit(maxsplit=1)[-1]}'", body, *more]), "  ").strip()


def log(run: Run, name: str) -> str:
    """What a job printed, as words."""
    return " ".join(" ".join(step.log for step in run.job(name).steps).split())


def test_a_log_hides_masked_values_and_obeys_no_command_while_commands_are_stopped(trial: Trial) -> None:
    printed = ("hush", "::add-mask::hush", "hush", "::error::x", "::stop-commands::e", "::error::y", "::e::")
    run = trial.run(job("a", step("\n".join(f"echo {line}" for line in printed))))
    assert log(run, "a") == "hush *** ::error::x ::error::y"
    assert run.job("a").annotations == ["::error::x"]


# --- secrets, permissions, called workflows ------------------------------------------------------------------

SAY_SECRETS = step("echo $READ-$WRITE", "env: {READ: '${{ secrets.READ }}', WRITE: '${{ secrets.WRITE }}'}")
SAFE = "environment: {name: safe}"
CALLED = f"""\
name: called
on:
  workflow_call:
    inputs: {{word: {{type: string, required: true}}}}
    secrets: {{READ: {{required: false}}, WRITE: {{required: false}}}}
permissions: {{}}
jobs:
{indent(job("inner", SAY_SECRETS, step("echo $ACTIONS_ID_TOKEN_REQUEST_URL"), more=SAFE), "  ")}
"""


def call(permissions: str = "{}", secrets: str = "{}", inputs: str = "{word: hello}") -> str:
    lines = (f"permissions: {permissions}", f"secrets: {secrets}", f"with: {inputs}")
    return "\n  ".join(["outer:", "uses: $/.github/workflows/called.yml", *lines])


def test_secrets_of_an_environment_are_seen_only_by_jobs_that_name_it(trial: Trial) -> None:
    trial.repository.secrets = {"READ": "r"}
    trial.repository.environments = {"safe": {"WRITE": "w"}}
    run = trial.run(job("a", SAY_SECRETS), job("b", SAY_SECRETS, more=SAFE))
    assert (log(run, "a"), log(run, "b")) == ("r-", "r-w")


def test_a_called_workflow_sees_secrets_of_its_environment_by_the_names_that_were_passed(trial: Trial) -> None:
    trial.repository.environments = {"safe": {"WRITE": "w", "READ": "r"}}
    trial.write("called.yml", CALLED)
    run = trial.run(call(secrets="{WRITE: '${{ secrets.WRITE }}'}"))
    assert log(run, "outer / inner") == "-w"


def test_an_id_token_needs_the_permission_of_job_and_caller(trial: Trial) -> None:
    trial.write("called.yml", CALLED.replace("permissions: {}\n    en", "permissions: {id-token: write}\n    en"))
    run = trial.run(call(permissions="{id-token: write}"))
    assert trial.api.identities.environment["ACTIONS_ID_TOKEN_REQUEST_URL"] in log(run, "outer / inner")
    with pytest.raises(WorkflowError, match="id-token: write, more than its caller"):
        trial.run(call(permissions="{contents: read}"))


@pytest.mark.parametrize(
    ("inputs", "wrong"), [("{}", "needs word"), ("{word: x, other: y}", "no inputs"), ("{word: 3}", "no string")]
)
def test_a_called_workflow_gets_the_inputs_that_it_declares(trial: Trial, inputs: str, wrong: str) -> None:
    trial.write("called.yml", CALLED)
    with pytest.raises(WorkflowError, match=wrong):
        trial.run(call(inputs=inputs))


@pytest.mark.parametrize(
    ("head", "secrets", "right"), [("another/fork", "-", "read"), (NAME, "r-", "write")], ids=["fork", "own"]
)
def test_a_pull_request_from_a_fork_gets_no_secrets_and_a_read_only_token(
    trial: Trial, head: str, secrets: str, right: str
) -> None:
    trial.repository.secrets = {"READ": "r"}
    asking = job("a", SAY_SECRETS, more="permissions: {issues: write}")
    run = trial.run(asking, event="pull_request", pull_request={"head": {"repo": {"full_name": head}}})
    assert (log(run, "a"), run.job("a").permissions) == (secrets, {"issues": right})


# --- refused --------------------------------------------------------------------------------------------------

ECHO = job("a", step("echo"))
MATRIX = "name: job ${{ matrix.code }}\nstrategy: {matrix: {code: [0, 1, 2]}, fail-fast: false}"
UPLOAD = f"uses: actions/upload-artifact@{'0' * 40}"


@pytest.mark.parametrize(
    ("jobs", "message"),
    [
        (job("a", step("echo", "working-directory: /")), "does not know working_directory"),
        (job("a", step("echo"), more="container: x"), "does not know container"),
        (job("a", step("uses: actions/checkout@v7")), "not pinned"),
        (job("a", step(f"uses: who/knows@{'0' * 40}")), "does not know this action"),
        (job("a", step(UPLOAD, "with: {name: a, path: out}")), "a second attempt fails"),
        (job("a", step(UPLOAD, "env: {X: y}")), "only beside run"),
        (job("a", step("echo", "shell: python")), "shell python"),
        (ECHO.replace("ubuntu-latest", "windows-latest"), "no machine"),
        (job("a", step("echo ${{ unknown.name }} # a")), "Unrecognized named-value"),
        (ECHO + "\n" + job("b", step("echo"), more="needs: [a, unknown]"), "unknown job"),
        (job("a", step("echo"), more="if: failure()"), "only in steps"),
        (ECHO.replace("  timeout-minutes: 1\n", ""), "without a timeout"),
        (job("a", step("echo"), more=MATRIX.replace("{code", "{exclude: [{code: 1}], code")), "either axes or"),
        (job("a", step("echo"), more=MATRIX.replace("false", "true")), "would cancel the others"),
        (job("a", step("echo"), more="concurrency: {group: held}"), "would wait"),
    ],
)
def test_what_the_interpreter_does_not_know_is_refused(trial: Trial, jobs: str, message: str) -> None:
    trial.repository.held_groups.add("held")
    with pytest.raises(WorkflowError, match=message):
        trial.run(jobs)


def test_a_workflow_starts_only_on_its_events(trial: Trial) -> None:
    with pytest.raises(WorkflowError, match="does not start on schedule"):
        trial.run(ECHO, event="schedule")
