"""One job: its steps in order, on its own machine."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.workflows.interpreter.actions import ActionContext, StepFailedError, run_action
from tests.workflows.interpreter.documents import SELF, CompositeAction, Step, load_action
from tests.workflows.interpreter.parser import WorkflowError, WorkflowParser, as_text, truthy
from tests.workflows.interpreter.shell import run_script

_PATIENCE_S = 280.0


class RunnerLostError(Exception):
    """The machine is gone: no further step, whatever its condition says."""


@dataclass(frozen=True, kw_only=True)
class StepRecord:
    """The environment and log of one `run:` step. name: with the names of the actions around it."""

    job: str
    name: str
    env: dict[str, str]
    script: str
    exit_code: int
    log: str


@dataclass(kw_only=True)
class JobSetup:
    """What a job starts with. tools: `uses` of what is on the machine already. before_step may raise."""

    job: str
    contexts: dict[str, Any]
    env: dict[str, str]
    machine: dict[str, str]
    context: ActionContext
    temp: Path
    source: Path
    tools: tuple[str, ...] = ()
    before_step: Callable[[str, str], None] = lambda job, step: None


@dataclass(kw_only=True)
class Scope:
    """What steps of one level see of each other: those of the job, or those inside an action."""

    inputs: dict[str, Any]
    steps: dict[str, Any] = field(default_factory=dict)
    env: dict[str, str] = field(default_factory=dict)
    status: str = "success"
    inside: tuple[str, ...] = ()
    action_path: str = ""


class JobRun:
    """records, annotations, summary: its log and page."""

    def __init__(self, parser: WorkflowParser, setup: JobSetup) -> None:
        self._parser, self._setup = parser, setup
        self.scope = Scope(inputs=setup.contexts["inputs"])
        self.records: list[StepRecord] = []
        self.annotations: list[str] = []
        self.summary = ""

    def run(self, steps: tuple[Step, ...]) -> str:
        """success or failure."""
        self._setup.context.workspace.mkdir(parents=True)
        self._setup.temp.mkdir(parents=True)
        try:
            self._run_steps(steps, self.scope)
        except RunnerLostError:
            return "failure"
        return self.scope.status

    def outputs(self, trees: Mapping[str, Any]) -> dict[str, str]:
        return {name: as_text(self._evaluate(tree, self.scope)) for name, tree in trees.items()}

    # -- steps

    def _run_steps(self, steps: tuple[Step, ...], scope: Scope) -> None:
        for step in steps:
            outcome, outputs = "skipped", dict[str, str]()
            if truthy(self._evaluate(step.condition, scope)):
                self._setup.before_step(self._setup.job, " / ".join([*scope.inside, step.name]))
                outcome, outputs = self._run_step(step, scope)
            scope.steps[step.id] = {"outputs": outputs, "outcome": outcome, "conclusion": outcome}
            if outcome == "failure":
                scope.status = "failure"

    def _run_step(self, step: Step, scope: Scope) -> tuple[str, dict[str, str]]:
        env = scope.env | {name: as_text(value) for name, value in self._evaluate(step.env, scope).items()}
        if step.run is not None:
            return self._run_shell(step, scope, env)
        inputs = {name: as_text(value) for name, value in self._evaluate(step.inputs, scope).items()}
        uses = str(step.uses)
        if uses in self._setup.tools:
            return "success", {}
        if uses.startswith(SELF):
            return self._run_composite(self._action(uses), step, scope, env=env, inputs=inputs)
        try:
            return "success", run_action(uses, inputs, self._setup.context)
        except StepFailedError as error:
            self.annotations.append(f"::error::{error}")
            return "failure", {}

    def _run_composite(
        self, action: CompositeAction, step: Step, outer: Scope, *, env: dict[str, str], inputs: dict[str, str]
    ) -> tuple[str, dict[str, str]]:
        inner = Scope(
            inputs=self._action_inputs(action, inputs, outer),
            env=env,
            inside=(*outer.inside, step.name),
            action_path=action.path,
        )
        self._run_steps(action.steps, inner)
        outputs = {name: as_text(self._evaluate(tree, inner)) for name, tree in action.outputs.items()}
        return inner.status, outputs

    def _action(self, uses: str) -> CompositeAction:
        return load_action(self._parser, uses, source=self._setup.source)

    def _action_inputs(self, action: CompositeAction, given: dict[str, str], outer: Scope) -> dict[str, str]:
        if unknown := given.keys() - action.inputs.keys():
            raise WorkflowError(f"{action.path} has no inputs {sorted(unknown)}")
        missing = [name for name, each in action.inputs.items() if each.get("required") and name not in given]
        if missing:
            raise WorkflowError(f"{action.path} needs {missing}")
        defaults = {name: self._evaluate(each.get("default", ""), outer) for name, each in action.inputs.items()}
        return {name: as_text(value) for name, value in defaults.items()} | given

    def _run_shell(self, step: Step, scope: Scope, env: dict[str, str]) -> tuple[str, dict[str, str]]:
        script = as_text(self._evaluate(step.run, scope))
        seen = self._setup.machine | self._setup.env | env
        ran = run_script(
            script, shell=step.shell, env=seen, folder=self._setup.context.workspace, timeout_s=_PATIENCE_S
        )
        self.summary += ran.summary
        self.annotations += ran.annotations
        name = " / ".join([*scope.inside, step.name])
        self.records.append(
            StepRecord(
                job=self._setup.job, name=name, env=seen, script=script, exit_code=ran.exit_code, log=ran.log
            )
        )
        return ("success" if ran.exit_code == 0 else "failure"), ran.outputs

    # -- expressions

    def _evaluate(self, tree: Any, scope: Scope) -> Any:
        contexts = self._setup.contexts
        github = contexts["github"] | {"workspace": str(self._setup.context.workspace)}
        seen = contexts | {
            "github": github | {"action_path": scope.action_path},
            "inputs": scope.inputs,
            "steps": scope.steps,
            "env": self._setup.env | scope.env,
            "job": {"status": scope.status},
        }
        return self._parser.evaluate(tree, seen, status=scope.status)
