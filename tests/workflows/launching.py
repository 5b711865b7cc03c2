"""What one leg of a job gets on its machine: rights, secrets, contexts, the environment; then it runs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.workflows import rules
from tests.workflows.artifacts import Artifacts
from tests.workflows.documents import Job
from tests.workflows.jobs import JobRun, Setting
from tests.workflows.reading import WorkflowError, as_text
from tests.workflows.repository import NAME, SHA, JobRecord, Level, Repository
from tests.workflows.third_party import Place

_HOSTED = "ubuntu-latest"


@dataclass(frozen=True, kw_only=True)
class Circumstances:
    """What all jobs of a run share. fork: the change comes from somebody else's repository."""

    repository: Repository
    run_id: int
    root: Path
    artifacts: Artifacts
    event: str
    file: str
    workflow_name: str
    fork: bool


def launch(around: Circumstances, level: Level, job: Job, contexts: dict[str, Any], *, name: str) -> JobRecord:
    """contexts: all but what only a machine knows."""
    here = around.repository
    environment = _environment(around, job, contexts)
    permissions = rules.permissions(job.permissions, ceiling=level.ceiling, fork=around.fork)
    labels = _labels(around, job, contexts)
    token = here.api.grant(permissions)
    hosted = labels == (_HOSTED,)
    seen = contexts | {
        "github": contexts["github"] | {"token": token, "job": job.id},
        "secrets": _secrets(here, level, environment) | {"GITHUB_TOKEN": token},
        "runner": {"os": "Linux", "environment": "github-hosted" if hosted else "self-hosted"},
    }
    folder = around.root / name.replace("/", "-")
    machine = here.machine | _defaults(around, job, folder) | ({} if hosted else here.gpu_machine)
    if permissions.get("id-token") == "write":
        machine |= here.api.identity(environment or "", around.file)
    env = here.reading.evaluate(level.workflow.env, seen, workspace=around.root)
    run = JobRun(
        here.reading,
        Setting(
            job=name,
            contexts=seen,
            env={key: as_text(value) for key, value in env.items()},
            machine=machine,
            place=Place(workspace=folder / "work", artifacts=around.artifacts, checkout=here.checkout),
            temp=folder / "temp",
            source=here.source,
            tools=here.tools,
            before_step=here.before_step,
        ),
    )
    here.api.set_job(around.run_id, name, "in_progress", None)
    result = run.run(job.steps)
    return JobRecord(
        name=name,
        result=result,
        labels=labels,
        environment=environment,
        permissions=permissions,
        steps=tuple(run.records),
        annotations=tuple(run.annotations),
        summary=run.summary,
        outputs=run.outputs(job.outputs),
    )


def _environment(around: Circumstances, job: Job, contexts: dict[str, Any]) -> str | None:
    named = around.repository.reading.evaluate(job.environment, contexts, workspace=around.root)
    return str(named["name"] if isinstance(named, dict) else named) if named else None


def _secrets(here: Repository, level: Level, environment: str | None) -> dict[str, str]:
    """An environment's secrets come first; in a called workflow only those whose names its caller passed."""
    own = here.environments.get(environment or "", {})
    if level.ceiling is None:
        return level.secrets | own
    return level.secrets | {name: value for name, value in own.items() if name in level.secrets}


def _labels(around: Circumstances, job: Job, contexts: dict[str, Any]) -> tuple[str, ...]:
    reading = around.repository.reading
    wanted = reading.evaluate(job.runs_on, contexts, workspace=around.root)
    labels = (wanted,) if isinstance(wanted, str) else tuple(wanted)
    if labels != (_HOSTED,) and labels[:1] != ("self-hosted",):
        raise WorkflowError(f"{job.id}: no machine has the labels {labels}")
    if not reading.evaluate(job.timeout_minutes, contexts, workspace=around.root) > 0:
        raise WorkflowError(f"{job.id}: its timeout is no time")
    return labels


def _defaults(around: Circumstances, job: Job, folder: Path) -> dict[str, str]:
    """What every step on GitHub sees of where it is."""
    return {
        "CI": "true",
        "HOME": str(folder / "temp"),
        "GITHUB_ACTIONS": "true",
        "GITHUB_API_URL": around.repository.api.url,
        "GITHUB_SERVER_URL": "https://github.com",
        "GITHUB_REPOSITORY": NAME,
        "GITHUB_REPOSITORY_OWNER": NAME.split("/", maxsplit=1)[0],
        "GITHUB_RUN_ID": str(around.run_id),
        "GITHUB_RUN_ATTEMPT": "1",
        "GITHUB_WORKFLOW": around.workflow_name,
        "GITHUB_WORKFLOW_REF": f"{NAME}/.github/workflows/{around.file}@refs/heads/main",
        "GITHUB_JOB": job.id,
        "GITHUB_REF": "refs/heads/main",
        "GITHUB_SHA": SHA,
        "GITHUB_EVENT_NAME": around.event,
        "GITHUB_EVENT_PATH": str(around.root / "event.json"),
        "GITHUB_WORKSPACE": str(folder / "work"),
        "RUNNER_TEMP": str(folder / "temp"),
    }
