"""A repository on GitHub as its operator set it up; what a job gets there: rights, secrets, environment."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.support.github_api.id_token import REPOSITORY
from tests.workflows.interpreter.actions import ActionContext, Artifacts
from tests.workflows.interpreter.api import RunsApi
from tests.workflows.interpreter.documents import ROOT, Job, Workflow
from tests.workflows.interpreter.jobs import JobRun, JobSetup, StepRecord
from tests.workflows.interpreter.parser import WorkflowError, WorkflowParser, as_text

NAME = REPOSITORY
SHA = "0123456789abcdef0123456789abcdef01234567"


@dataclass(kw_only=True)
class Repository:
    """What an operator sets up: what is checked in, variables, secrets, environments; and the machines.

    source: whose .github is read. machine: the environment of every machine; gpu_machine: what our own add.
    tools: `uses` of what every machine has already. held_groups: concurrency groups that a job holds.
    before_step: called with the names of job and step, first with no step; may raise RunnerLostError.
    started: called with each run.
    """

    parser: WorkflowParser
    api: RunsApi
    root: Path
    checkout: Path
    machine: dict[str, str]
    gpu_machine: dict[str, str] = field(default_factory=dict)
    source: Path = ROOT
    variables: dict[str, str] = field(default_factory=dict)
    secrets: dict[str, str] = field(default_factory=dict)
    environments: dict[str, dict[str, str]] = field(default_factory=dict)
    tools: tuple[str, ...] = ("$/.github/actions/setup",)
    before_step: Callable[[str, str], None] = lambda job, step: None
    started: Callable[[Any], None] = lambda run: None
    held_groups: set[str] = field(default_factory=set)
    folders: Iterator[int] = field(default_factory=itertools.count)


@dataclass(frozen=True, kw_only=True)
class Level:
    """A workflow as it runs: on its own, or called. prefix: the caller's name; ceiling: the rights it may give."""

    workflow: Workflow
    inputs: dict[str, Any]
    secrets: dict[str, str]
    prefix: str = ""
    ceiling: dict[str, str] | None = None

    def name(self, job: str) -> str:
        return f"{self.prefix} / {job}" if self.prefix else job


@dataclass(frozen=True, kw_only=True)
class JobRecord:
    """One job as GitHub shows it: with the caller's name before a called one's."""

    name: str
    result: str
    labels: tuple[str, ...] = ()
    environment: str | None = None
    permissions: dict[str, str] = field(default_factory=dict)
    steps: tuple[StepRecord, ...] = ()
    annotations: tuple[str, ...] = ()
    summary: str = ""
    outputs: dict[str, str] = field(default_factory=dict)


_HOSTED = "ubuntu-latest"
_RIGHTS = ("none", "read", "write")


@dataclass(frozen=True, kw_only=True)
class RunContext:
    """What all jobs of a run share. fork: the change comes from another repository."""

    repository: Repository
    run_id: int
    root: Path
    artifacts: Artifacts
    event: str
    file: str
    workflow_name: str
    fork: bool


def launch(run: RunContext, level: Level, job: Job, contexts: dict[str, Any], *, name: str) -> JobRecord:
    """contexts: all but what only a machine knows."""
    repository = run.repository
    environment = _environment(run, job, contexts)
    permissions = granted_permissions(job.permissions, ceiling=level.ceiling, fork=run.fork)
    labels = _labels(run, job, contexts)
    token = repository.api.grant(permissions)
    hosted = labels == (_HOSTED,)
    seen = contexts | {
        "github": contexts["github"] | {"token": token, "job": job.id},
        "secrets": _secrets(repository, level, environment) | {"GITHUB_TOKEN": token},
        "runner": {"os": "Linux", "environment": "github-hosted" if hosted else "self-hosted"},
    }
    folder = run.root / name.replace("/", "-")
    machine = repository.machine | _defaults(run, job, folder) | ({} if hosted else repository.gpu_machine)
    if permissions.get("id-token") == "write":
        machine |= repository.api.identity(environment or "", run.file)
    env = repository.parser.evaluate(level.workflow.env, seen)
    started = JobRun(
        repository.parser,
        JobSetup(
            job=name,
            contexts=seen,
            env={key: as_text(value) for key, value in env.items()},
            machine=machine,
            context=ActionContext(
                workspace=folder / "work", artifacts=run.artifacts, checkout=repository.checkout
            ),
            temp=folder / "temp",
            source=repository.source,
            tools=repository.tools,
            before_step=repository.before_step,
        ),
    )
    repository.api.set_job(run.run_id, name, "in_progress", None)
    result = started.run(job.steps)
    return JobRecord(
        name=name,
        result=result,
        labels=labels,
        environment=environment,
        permissions=permissions,
        steps=tuple(started.records),
        annotations=tuple(started.annotations),
        summary=started.summary,
        outputs=started.outputs(job.outputs),
    )


def _environment(run: RunContext, job: Job, contexts: dict[str, Any]) -> str | None:
    named = run.repository.parser.evaluate(job.environment, contexts)
    return str(named["name"] if isinstance(named, dict) else named) if named else None


def _secrets(repository: Repository, level: Level, environment: str | None) -> dict[str, str]:
    """An environment's secrets come first; in a called workflow only those whose names its caller passed."""
    own = repository.environments.get(environment or "", {})
    if level.ceiling is None:
        return level.secrets | own
    return level.secrets | {name: value for name, value in own.items() if name in level.secrets}


def _labels(run: RunContext, job: Job, contexts: dict[str, Any]) -> tuple[str, ...]:
    parser = run.repository.parser
    wanted = parser.evaluate(job.runs_on, contexts)
    labels = (wanted,) if isinstance(wanted, str) else tuple(wanted)
    if labels != (_HOSTED,) and labels[:1] != ("self-hosted",):
        raise WorkflowError(f"{job.id}: no machine has the labels {labels}")
    if not parser.evaluate(job.timeout_minutes, contexts) > 0:
        raise WorkflowError(f"{job.id}: its timeout is not a positive number")
    return labels


def _defaults(run: RunContext, job: Job, folder: Path) -> dict[str, str]:
    """What every step on GitHub sees of where it is."""
    return {
        "CI": "true",
        "HOME": str(folder / "temp"),
        "GITHUB_ACTIONS": "true",
        "GITHUB_API_URL": run.repository.api.url,
        "GITHUB_SERVER_URL": "https://github.com",
        "GITHUB_REPOSITORY": NAME,
        "GITHUB_REPOSITORY_OWNER": NAME.split("/", maxsplit=1)[0],
        "GITHUB_RUN_ID": str(run.run_id),
        "GITHUB_RUN_ATTEMPT": "1",
        "GITHUB_WORKFLOW": run.workflow_name,
        "GITHUB_WORKFLOW_REF": f"{NAME}/.github/workflows/{run.file}@refs/heads/main",
        "GITHUB_JOB": job.id,
        "GITHUB_REF": "refs/heads/main",
        "GITHUB_SHA": SHA,
        "GITHUB_EVENT_NAME": run.event,
        "GITHUB_EVENT_PATH": str(run.root / "event.json"),
        "GITHUB_WORKSPACE": str(folder / "work"),
        "RUNNER_TEMP": str(folder / "temp"),
    }


def granted_permissions(
    asked: Mapping[str, str], *, ceiling: Mapping[str, str] | None, fork: bool
) -> dict[str, str]:
    """What a job's token may do. ceiling: what the caller of its workflow may give."""
    for scope, right in asked.items():
        if ceiling is not None and _RIGHTS.index(right) > _RIGHTS.index(ceiling.get(scope, "none")):
            raise WorkflowError(f"it asks for {scope}: {right}, more than its caller may give")
    return {scope: "read" if fork and right == "write" else right for scope, right in asked.items()}
