"""Rules for all workflows, checked on their files; `make check-workflows` has zizmor check others.

zizmor's: actions pinned by commit, no expressions in scripts, no token left by a checkout, no secrets outside of
environments, no self-hosted runner with fixed labels, no `pull_request_target`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest

from bot.github.matrix import PUBLISH_MINUTES
from tests.workflows.interpreter.documents import (
    ROOT,
    SELF,
    CompositeAction,
    Job,
    Step,
    Workflow,
    load_action,
    load_workflow,
)
from tests.workflows.interpreter.parser import WorkflowParser

GITHUB = ROOT / ".github"
FILES = sorted(path.name for path in (GITHUB / "workflows").glob("*.yml"))
ACTIONS = sorted(path.parent.name for path in (GITHUB / "actions").glob("*/action.yml"))
READ = {"contents": "read"}
READ_AND_ID = READ | {"attestations": "write", "id-token": "write"}
BOTH = {"HF_TOKEN", "HF_WRITE_TOKEN"}
# The key that signs is where releases are published, and never on the GPU runner.
AND_KEY = BOTH | {"AWQ_BOT_SIGNING_KEY"}
WEBHOOK = {"AWQ_BOT_NOTIFY_WEBHOOK"}
# Of each job: its permissions, the least that it can work with; its environment; the secrets that it names.
# GitHub sends a machine every secret that its job names, wherever in it and whether the step runs or not.
JOBS: dict[tuple[str, str], tuple[dict[str, str], str | None, set[str]]] = {
    ("ci.yml", "test"): (READ, None, set()),
    ("ci.yml", "base"): (READ, None, set()),
    ("ci.yml", "audit"): (READ, None, set()),
    ("ci.yml", "all-green"): ({}, None, set()),
    ("ci.yml", "watchdog"): (READ | {"actions": "write", "issues": "write"}, None, set()),
    ("model-on-runner.yml", "quantize"): (READ, "publish", BOTH),
    ("model.yml", "quantize"): (READ, "read", {"HF_TOKEN"}),
    ("model.yml", "publish"): (READ_AND_ID, "publish", AND_KEY),
    ("pull-request.yml", "plan"): (READ | {"pull-requests": "write"}, None, set()),
    ("status.yml", "build"): (
        READ | {"issues": "read", "pages": "read", "pull-requests": "read"},
        "read",
        {"HF_TOKEN"},
    ),
    ("status.yml", "deploy"): ({"id-token": "write", "pages": "write"}, "github-pages", set()),
    ("watch.yml", "plan"): (
        READ | {"actions": "read", "issues": "write", "pull-requests": "read"},
        "read",
        {"HF_TOKEN"},
    ),
    ("watch.yml", "propose"): ({"contents": "write", "pull-requests": "write"}, "read", WEBHOOK),
    ("watch.yml", "model"): (READ_AND_ID, None, set()),
    ("watch.yml", "model-on-runner"): (READ, None, set()),
    ("watch.yml", "refresh"): (READ_AND_ID, "publish", AND_KEY),
    ("watch.yml", "report"): (READ | {"actions": "read", "issues": "write"}, "read", WEBHOOK),
}
ON_OUR_RUNNERS = {("model.yml", "quantize"), ("model-on-runner.yml", "quantize")}


@pytest.fixture(scope="session")
def workflows(parser: WorkflowParser) -> dict[str, Workflow]:
    return {file: load_workflow(parser, file) for file in FILES}


@pytest.fixture(scope="session")
def actions(parser: WorkflowParser) -> dict[str, CompositeAction]:
    return {name: load_action(parser, f"{SELF}.github/actions/{name}") for name in ACTIONS}


@pytest.fixture(scope="session")
def jobs(workflows: dict[str, Workflow]) -> dict[tuple[str, str], Job]:
    return {(file, job.id): job for file, workflow in workflows.items() for job in workflow.jobs}


@pytest.fixture(scope="session")
def steps(jobs: dict[tuple[str, str], Job], actions: dict[str, CompositeAction]) -> list[Step]:
    return [step for job in jobs.values() for step in job.steps] + [
        step for action in actions.values() for step in action.steps
    ]


def expressions(tree: Any) -> Iterator[str]:
    """Every expression in what a file holds."""
    if isinstance(tree, dict):
        if "$expression" in tree:
            yield tree["$expression"]
        tree = list(tree.values())
    if isinstance(tree, list | tuple):
        for value in tree:
            yield from expressions(value)


def secrets_of(job: Job) -> set[str]:
    texts = expressions([(step.inputs, step.env, step.run) for step in job.steps])
    return {name for text in texts for name in re.findall(r"secrets\b(?:\.(\w+))?", text)}


def test_every_job_has_exactly_the_permissions_environment_and_secrets_listed_here(
    jobs: dict[tuple[str, str], Job],
) -> None:
    found = {
        name: (job.permissions, job.environment and job.environment["name"], secrets_of(job))
        for name, job in jobs.items()
    }
    assert found == JOBS


def test_only_quantizing_runs_on_self_hosted_runners(jobs: dict[tuple[str, str], Job]) -> None:
    elsewhere = {name for name, job in jobs.items() if job.uses is None and job.runs_on != "ubuntu-latest"}
    assert elsewhere == ON_OUR_RUNNERS


def test_pull_requests_reach_neither_secrets_nor_self_hosted_runners(workflows: dict[str, Workflow]) -> None:
    started = {file for file, each in workflows.items() if any("pull_request" in event for event in each.events)}
    assert started == {"ci.yml", "pull-request.yml"}
    for file in started:
        text = (GITHUB / "workflows" / file).read_text()
        assert [word for word in ("secrets.", "environment:", "model") if word in text] == []


def test_third_party_actions_have_their_version_as_a_comment_the_same_everywhere() -> None:
    text = "\n".join(path.read_text() for path in sorted(GITHUB.rglob("*.yml")))
    used = set(re.findall(r"uses: (?!\$/)(\S+)@(\S+)(?: # (v[\d.]+))?$", text, re.MULTILINE))
    assert all(version for _, _, version in used)
    assert len({name for name, _, _ in used}) == len(used)


def test_every_script_is_one_command(steps: list[Step]) -> None:
    calls = [" ".join(step.run.replace("\\\n", " ").split()) for step in steps if step.run is not None]
    assert {call.split()[0] for call in calls} == {"exec", "make", "mkdir", "python3"}
    # Otherwise a bash waits beside it, whose environment every process of this account can read.
    commands = {call.split()[1] for call in calls if call.startswith("exec")}
    assert commands == {"awq-bot", '"$RUNNER_TEMP/sbom/bin/cyclonedx-py"'}
    assert [call for call in calls if re.search(r"[;|&\n]|\bif\b", call)] == []


def test_a_page_is_published_only_where_a_variable_asks_for_it(jobs: dict[tuple[str, str], Job]) -> None:
    deploying = [
        name for name, job in jobs.items() if any("deploy-pages" in (step.uses or "") for step in job.steps)
    ]
    assert deploying == [("status.yml", "deploy")]
    build, deploy = jobs["status.yml", "build"], jobs["status.yml", "deploy"]
    [condition] = expressions(build.condition)
    assert "vars.AWQ_BOT_STATUS_PAGE == 'true'" in condition
    assert deploy.needed == ["build"]
    assert [*expressions(deploy.condition)] == ["success()"]


def test_packages_are_listed_where_a_release_is_built_and_published_before_any_credential_is_used(
    jobs: dict[tuple[str, str], Job], actions: dict[str, CompositeAction]
) -> None:
    listed = set()
    for name, job in jobs.items():
        used = [(step.uses or "").removeprefix(f"{SELF}.github/actions/") for step in job.steps]
        if "sbom" in used:
            assert used[used.index("sbom") - 1] == "setup"
            listed.add(name)
    assert listed == {*ON_OUR_RUNNERS, ("model.yml", "publish"), ("watch.yml", "refresh")}
    [tool] = [step for step in actions["sbom"].steps if "cyclonedx-py" in str(step.run)]
    assert tool.env == dict.fromkeys(("ACTIONS_ID_TOKEN_REQUEST_TOKEN", "ACTIONS_ID_TOKEN_REQUEST_URL"), "")


def test_the_schedule_is_hourly_and_not_on_the_hour(workflows: dict[str, Workflow]) -> None:
    [schedule] = workflows["watch.yml"].events["schedule"]
    minute, *rest = schedule["cron"].split()
    assert int(minute) % 15 != 0
    assert rest == ["*"] * 4


@pytest.mark.parametrize("folder", ["workflows", "page"])
def test_the_npm_lock_files_name_no_registry(folder: str) -> None:
    lock = json.loads((ROOT / "tests" / folder / "node" / "package-lock.json").read_text())
    assert {package.get("resolved") for package in lock["packages"].values()} == {None}


def test_job_timeouts_are_those_that_the_report_assumes(jobs: dict[tuple[str, str], Job]) -> None:
    assert jobs["model.yml", "publish"].timeout_minutes == PUBLISH_MINUTES
    assert list(expressions(jobs["watch.yml", "refresh"].timeout_minutes)) == ["matrix.timeout_minutes"]
    for name in ON_OUR_RUNNERS:
        assert list(expressions(jobs[name].timeout_minutes)) == ["inputs.timeout_minutes"]


def test_local_actions_get_the_inputs_that_they_declare(
    steps: list[Step], actions: dict[str, CompositeAction]
) -> None:
    calls = [step for step in steps if (step.uses or "").startswith(SELF)]
    assert len(calls) >= 10
    for step in calls:
        known = actions[str(step.uses).rpartition("/")[2]].inputs
        assert {name for name, each in known.items() if each.get("required")} <= step.inputs.keys() <= known.keys()


def test_cuda_is_installed_only_where_there_is_a_gpu(jobs: dict[tuple[str, str], Job]) -> None:
    indexes = {
        name: step.inputs.get("torch-index", "")
        for name, job in jobs.items()
        for step in job.steps
        if step.inputs.get("lock") in {"quantize", "refresh"}
    }
    cpu = indexes.pop(("watch.yml", "refresh"))
    assert cpu.endswith("/whl/cpu")
    assert indexes.keys() == ON_OUR_RUNNERS
