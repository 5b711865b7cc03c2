"""One job: what it gets (rights, secrets, a machine), and its steps in order."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.workflows.interpreter.actions import ActionContext, StepFailedError, run_action
from tests.workflows.interpreter.documents import SELF, Job, Step, load_action
from tests.workflows.interpreter.parser import WorkflowError, as_text, truthy
from tests.workflows.interpreter.repository import (
    NAME,
    SHA,
    JobRecord,
    Level,
    Repository,
    RunContext,
    RunnerLostError,
    StepRecord,
)
from tests.workflows.interpreter.shell import run_script

_HOSTED = ("ubuntu-latest",)
_RIGHTS = ("none", "read", "write")


@dataclass(kw_only=True)
class Scope:
    """What steps of one level see of each other: those of the job, or those inside an action."""

    inputs: dict[str, Any]
    steps: dict[str, Any] = field(default_factory=dict)
    status: str = "success"
    inside: tuple[str, ...] = ()


def launch(run: RunContext, level: Level, job: Job, contexts: dict[str, Any], *, name: str) -> JobRecord:
    """contexts: all but what only a machine knows."""
    repository = run.repository
    evaluate = repository.parser.evaluate
    # Its URL is an output of a step, and known later.
    named = {key: value for key, value in (job.environment or {}).items() if key != "url"}
    environment = evaluate(named, contexts).get("name")
    permissions = granted_permissions(job.permissions, ceiling=level.ceiling, fork=run.fork)
    labels = _labels(job, evaluate(job.runs_on, contexts), evaluate(job.timeout_minutes, contexts))
    token = repository.api.grant(permissions)
    seen = contexts | {
        "github": contexts["github"] | {"token": token},
        "secrets": _secrets(repository, level, environment) | {"GITHUB_TOKEN": token},
    }
    folder = run.root / name.replace("/", "-")
    env = repository.machine | _defaults(run, folder) | ({} if labels == _HOSTED else repository.gpu_machine)
    if permissions.get("id-token") == "write":
        env |= repository.api.identity(environment or "")
    env |= {key: as_text(value) for key, value in evaluate(level.workflow.env, seen).items()}
    record = JobRecord(name=name, labels=labels, environment=environment, permissions=permissions)
    context = ActionContext(
        workspace=folder / "work",
        home=folder / "temp",
        artifacts=run.artifacts,
        checkout=repository.checkout,
        permissions=permissions,
        caches=repository.caches,
    )
    repository.api.set_job(run.id, name, "in_progress", None)
    for path in (folder / "work", folder / "temp"):
        path.mkdir(parents=True)
    machine = _Machine(repository=repository, record=record, contexts=seen, env=env, context=context)
    scope = Scope(inputs=level.inputs)
    try:
        machine.run_steps(job.steps, scope)
        record.result = scope.status
    except RunnerLostError:
        record.result = "failure"
    record.outputs = machine.texts(job.outputs, scope)
    return record


def granted_permissions(
    asked: Mapping[str, str], *, ceiling: Mapping[str, str] | None, fork: bool
) -> dict[str, str]:
    """What a job's token may do. ceiling: what the caller of its workflow may give."""
    for scope, right in asked.items():
        if ceiling is not None and _RIGHTS.index(right) > _RIGHTS.index(ceiling.get(scope, "none")):
            raise WorkflowError(f"it asks for {scope}: {right}, more than its caller may give")
    return {scope: "read" if fork and right == "write" else right for scope, right in asked.items()}


def _secrets(repository: Repository, level: Level, environment: str | None) -> dict[str, str]:
    """An environment's secrets come first; in a called workflow only those whose names its caller passed."""
    own = repository.environments.get(environment or "", {})
    passed = own.keys() if level.ceiling is None else level.secrets.keys()
    return level.secrets | {name: value for name, value in own.items() if name in passed}


def _labels(job: Job, wanted: Any, timeout_minutes: Any) -> tuple[str, ...]:
    labels = (wanted,) if isinstance(wanted, str) else tuple(wanted)
    if labels != _HOSTED and labels[:1] != ("self-hosted",):
        raise WorkflowError(f"{job.id}: no machine has the labels {labels}")
    if not timeout_minutes > 0:
        raise WorkflowError(f"{job.id}: its timeout is not a positive number")
    return labels


def _defaults(run: RunContext, folder: Path) -> dict[str, str]:
    """What every step on GitHub sees of where it is."""
    return {
        "CI": "true",
        "HOME": str(folder / "temp"),
        "GITHUB_ACTIONS": "true",
        "GITHUB_API_URL": run.repository.api.url,
        "GITHUB_SERVER_URL": "https://github.com",
        "GITHUB_REPOSITORY": NAME,
        "GITHUB_REPOSITORY_OWNER": NAME.split("/", maxsplit=1)[0],
        "GITHUB_RUN_ID": str(run.id),
        "GITHUB_RUN_ATTEMPT": "1",
        "GITHUB_WORKFLOW": run.workflow.name,
        "GITHUB_WORKFLOW_REF": f"{NAME}/.github/workflows/{run.workflow.file}@refs/heads/main",
        "GITHUB_REF": "refs/heads/main",
        "GITHUB_SHA": SHA,
        "GITHUB_EVENT_NAME": run.event,
        "GITHUB_EVENT_PATH": str(run.root / "event.json"),
        "GITHUB_WORKSPACE": str(folder / "work"),
        "RUNNER_TEMP": str(folder / "temp"),
    }


@dataclass(frozen=True, kw_only=True)
class _Machine:
    """env: what every step sees. Writes what happens into the record."""

    repository: Repository
    record: JobRecord
    contexts: dict[str, Any]
    env: dict[str, str]
    context: ActionContext

    def run_steps(self, steps: tuple[Step, ...], scope: Scope) -> None:
        for step in steps:
            outcome, outputs = "skipped", dict[str, str]()
            if truthy(self._evaluate(step.condition, scope)):
                self.repository.before_step(self.record.name, " / ".join([*scope.inside, step.name]))
                outcome, outputs = self._run_step(step, scope)
            scope.steps[step.id] = {"outputs": outputs}
            if outcome == "failure":
                scope.status = "failure"

    def texts(self, trees: Mapping[str, Any], scope: Scope) -> dict[str, str]:
        return {name: as_text(self._evaluate(tree, scope)) for name, tree in trees.items()}

    def _run_step(self, step: Step, scope: Scope) -> tuple[str, dict[str, str]]:
        if step.uses is None:
            return self._run_shell(step, scope)
        inputs = self.texts(step.inputs, scope)
        if step.uses in self.repository.tools:
            return "success", {}
        if step.uses.startswith(SELF):
            return self._run_composite(step.uses, inputs, scope, inside=(*scope.inside, step.name))
        try:
            return "success", run_action(step.uses, inputs, self.context)
        except StepFailedError as error:
            self.record.annotations.append(f"::error::{error}")
            return "failure", {}

    def _run_composite(
        self, uses: str, given: dict[str, str], outer: Scope, *, inside: tuple[str, ...]
    ) -> tuple[str, dict[str, str]]:
        action = load_action(self.repository.parser, uses, source=self.repository.source)
        check_inputs(uses, action.inputs, given)
        defaults = self.texts({name: each.get("default") for name, each in action.inputs.items()}, outer)
        inner = Scope(inputs=defaults | given, inside=inside)
        self.run_steps(action.steps, inner)
        outputs = {name: output["value"] for name, output in action.outputs.items()}
        return inner.status, self.texts(outputs, inner)

    def _run_shell(self, step: Step, scope: Scope) -> tuple[str, dict[str, str]]:
        script, env = as_text(self._evaluate(step.run, scope)), self.env | self.texts(step.env, scope)
        ran = run_script(script, shell=step.shell, env=env, folder=self.context.workspace)
        self.record.summary += ran.summary
        self.record.annotations += ran.annotations
        name = " / ".join([*scope.inside, step.name])
        self.record.steps.append(
            StepRecord(job=self.record.name, name=name, env=env, exit_code=ran.exit_code, log=ran.log)
        )
        return ("success" if ran.exit_code == 0 else "failure"), ran.outputs

    def _evaluate(self, tree: Any, scope: Scope) -> Any:
        seen = self.contexts | {"inputs": scope.inputs, "steps": scope.steps}
        return self.repository.parser.evaluate(tree, seen, status=scope.status)


_KINDS: dict[str, type | tuple[type, ...]] = {"string": str, "number": (int, float), "boolean": bool}


def check_inputs(what: str, declared: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    """Of a workflow, or of an action, whose inputs are all text."""
    if unknown := given.keys() - declared.keys():
        raise WorkflowError(f"{what} has no inputs {sorted(unknown)}")
    for name, each in declared.items():
        if each.get("required") and name not in given:
            raise WorkflowError(f"{what} needs {name}")
        kind = each.get("type", "string")
        if name in given and not isinstance(given[name], _KINDS[kind]):
            raise WorkflowError(f"{what}: {name} is no {kind}: {given[name]!r}")
