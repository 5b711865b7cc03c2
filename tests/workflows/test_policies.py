"""What holds for every workflow, read off the files: rights, pins, secrets, machines."""

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
PINNED = {
    "actions/checkout": ("3d3c42e5aac5ba805825da76410c181273ba90b1", "v7.0.1"),
    "actions/setup-python": ("5fda3b95a4ea91299a34e894583c3862153e4b97", "v7.0.0"),
    "actions/upload-artifact": ("043fb46d1a93c77aae656e7c1c64a875d1fc6a0a", "v7.0.1"),
    "actions/download-artifact": ("3e5f45b2cfb9172054b4087a40e8e0b5a5461e7c", "v8.0.1"),
    "re-actors/alls-green": ("05ac9388f0aebcb5727afa17fcccfecd6f8ec5fe", "v1.2.2"),
}
# The least that each job can do its work with.
RIGHTS = {
    ("watch.yml", "plan"): {"actions": "read", "contents": "read", "issues": "write"},
    ("watch.yml", "model"): {"contents": "read", "id-token": "write"},
    ("watch.yml", "model-on-runner"): {"contents": "read"},
    ("watch.yml", "refresh"): {"contents": "read", "id-token": "write"},
    ("watch.yml", "report"): {"actions": "read", "contents": "read", "issues": "write"},
    ("model.yml", "quantize"): {"contents": "read"},
    ("model.yml", "publish"): {"contents": "read", "id-token": "write"},
    ("model-on-runner.yml", "quantize"): {"contents": "read"},
    ("pull-request.yml", "plan"): {"contents": "read", "pull-requests": "write"},
    ("ci.yml", "test"): {"contents": "read"},
    ("ci.yml", "base"): {"contents": "read"},
    ("ci.yml", "all-green"): {},
    ("ci.yml", "watchdog"): {"actions": "write", "contents": "read", "issues": "write"},
}


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
    of_jobs = [step for job in jobs.values() for step in job.steps]
    return of_jobs + [step for action in actions.values() for step in action.steps]


def expressions(tree: Any) -> Iterator[str]:
    """Every expression in what a file holds."""
    if isinstance(tree, dict):
        if "$expression" in tree:
            yield tree["$expression"]
        for value in tree.values():
            yield from expressions(value)
    elif isinstance(tree, list | tuple):
        for value in tree:
            yield from expressions(value)


def test_every_job_has_exactly_the_permissions_listed_here(jobs: dict[tuple[str, str], Job]) -> None:
    assert {name: job.permissions for name, job in jobs.items()} == RIGHTS


def test_third_party_actions_are_pinned_by_commit_with_their_version_as_a_comment(steps: list[Step]) -> None:
    text = "\n".join(path.read_text() for path in sorted(GITHUB.rglob("*.yml")))
    used = set(re.findall(r"uses: (?!\$/)(\S+)(?: # (\S+))?$", text, re.MULTILINE))
    assert used == {(f"{name}@{sha}", version) for name, (sha, version) in PINNED.items()}
    assert {step.uses for step in steps if step.uses and not step.uses.startswith(SELF)} == {
        uses for uses, _ in used
    }


def test_scripts_contain_no_expressions(steps: list[Step]) -> None:
    scripts = [step.run for step in steps if step.run is not None]
    assert len(scripts) >= 10
    assert [script for script in scripts if not isinstance(script, str)] == []


def test_every_script_is_one_command(steps: list[Step]) -> None:
    calls = [" ".join(str(step.run).replace("\\\n", " ").split()) for step in steps if step.run is not None]
    assert {call.split()[0] for call in calls} == {"exec", "make", "python3"}
    # Otherwise a bash waits beside it, whose environment every process of this account can read.
    assert {call.split()[1] for call in calls if call.startswith("exec")} == {"awq-bot"}
    assert [call for call in calls if re.search(r"[;|&\n]|\bif\b", call)] == []


def test_no_checkout_leaves_its_token_on_the_machine(steps: list[Step]) -> None:
    checkouts = [step.inputs for step in steps if (step.uses or "").startswith("actions/checkout@")]
    assert len(checkouts) >= 8
    assert all(inputs == {"persist-credentials": "false"} for inputs in checkouts)


def test_a_job_with_a_secret_names_an_environment(jobs: dict[tuple[str, str], Job]) -> None:
    with_secrets = {
        name
        for name, job in jobs.items()
        if any(
            "secrets." in text for text in expressions([(step.inputs, step.env, step.run) for step in job.steps])
        )
    }
    assert with_secrets == {
        ("watch.yml", "plan"),
        ("watch.yml", "refresh"),
        ("model.yml", "quantize"),
        ("model.yml", "publish"),
        ("model-on-runner.yml", "quantize"),
    }
    assert all(jobs[name].environment for name in with_secrets)


def test_only_publishing_jobs_get_an_id_token(jobs: dict[tuple[str, str], Job]) -> None:
    with_identity = {name for name, job in jobs.items() if "id-token" in job.permissions and job.uses is None}
    assert with_identity == {("watch.yml", "refresh"), ("model.yml", "publish")}
    assert {jobs[name].environment["name"] for name in with_identity} == {"publish"}


def test_only_quantizing_runs_on_self_hosted_runners(jobs: dict[tuple[str, str], Job]) -> None:
    elsewhere = {name for name, job in jobs.items() if job.uses is None and job.runs_on != "ubuntu-latest"}
    assert elsewhere == {("model.yml", "quantize"), ("model-on-runner.yml", "quantize")}


def test_quantizing_names_no_write_credential(jobs: dict[tuple[str, str], Job]) -> None:
    """GitHub sends a machine the secrets that its job names, wherever in it and whether the step runs or not."""
    quantize = jobs["model.yml", "quantize"]
    named = {
        text for step in quantize.steps for text in expressions([step.inputs, step.env]) if "secrets." in text
    }
    assert named == {"secrets.HF_TOKEN"}
    assert quantize.environment["name"] == "read"


def test_pull_requests_reach_neither_secrets_nor_self_hosted_runners(workflows: dict[str, Workflow]) -> None:
    started = {
        file for file, workflow in workflows.items() if any("pull_request" in event for event in workflow.events)
    }
    assert started == {"ci.yml", "pull-request.yml"}
    assert not [file for file, workflow in workflows.items() if "pull_request_target" in workflow.events]
    for file in started:
        text = (GITHUB / "workflows" / file).read_text()
        assert "secrets." not in text
        assert "environment:" not in text
        assert "model" not in text


def test_the_schedule_is_hourly_and_not_on_the_hour(workflows: dict[str, Workflow]) -> None:
    [schedule] = workflows["watch.yml"].events["schedule"]
    minute, *rest = schedule["cron"].split()
    assert int(minute) % 15 != 0
    assert rest == ["*"] * 4
    assert {"workflow_dispatch", "repository_dispatch"} < workflows["watch.yml"].events.keys()


def test_the_npm_lock_file_names_no_registry() -> None:
    lock = json.loads((ROOT / "tests" / "workflows" / "node" / "package-lock.json").read_text())
    assert {package.get("resolved") for package in lock["packages"].values()} == {None}


def test_job_timeouts_are_those_that_the_report_assumes(jobs: dict[tuple[str, str], Job]) -> None:
    assert jobs["model.yml", "publish"].timeout_minutes == PUBLISH_MINUTES
    assert list(expressions(jobs["watch.yml", "refresh"].timeout_minutes)) == ["matrix.timeout_minutes"]
    for file in ("model.yml", "model-on-runner.yml"):
        assert list(expressions(jobs[file, "quantize"].timeout_minutes)) == ["inputs.timeout_minutes"]


def test_local_actions_get_the_inputs_that_they_declare(
    steps: list[Step], actions: dict[str, CompositeAction]
) -> None:
    calls = [step for step in steps if (step.uses or "").startswith(SELF)]
    assert len(calls) >= 10
    for step in calls:
        known = actions[str(step.uses).rpartition("/")[2]].inputs
        assert step.inputs.keys() <= known.keys()
        assert {name for name, each in known.items() if each.get("required")} <= step.inputs.keys()


def test_cuda_is_installed_only_where_there_is_a_gpu(jobs: dict[tuple[str, str], Job]) -> None:
    setups = {
        name: step.inputs
        for name, job in jobs.items()
        for step in job.steps
        if (step.uses or "").endswith("/setup") and step.inputs.get("extra") == "quantize"
    }
    on_hosted = {name for name, inputs in setups.items() if inputs.get("torch-index", "").endswith("/whl/cpu")}
    assert on_hosted == {("watch.yml", "refresh")}
    assert setups.keys() - on_hosted == {("model.yml", "quantize"), ("model-on-runner.yml", "quantize")}
