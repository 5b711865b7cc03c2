"""Workflows and composite actions as GitHub's parser reads them. A key without a field here is refused."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

from tests.workflows.interpreter.parser import Tree, WorkflowError, WorkflowParser

ROOT = Path(__file__).parents[3]
SELF = "$/"  # this repository, at the commit that runs

_RENAMED = {"if": "condition", "with": "inputs", "on": "events"}
T = TypeVar("T")


def _success() -> Tree:
    return {"$expression": "success()"}


@dataclass(frozen=True, kw_only=True)
class Step:
    name: str
    id: str
    condition: Tree = field(default_factory=_success)
    run: Any = None
    shell: str | None = None
    uses: str | None = None
    inputs: Tree = field(default_factory=dict)
    env: Tree = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Job:
    """One of a workflow's jobs, or the call of another workflow (`uses`), before its matrix is known."""

    id: str
    name: Tree
    permissions: dict[str, str]
    needs: str | list[str] = field(default_factory=list)
    condition: Tree = field(default_factory=_success)
    strategy: dict[str, Any] = field(default_factory=dict)
    concurrency: Tree = None
    runs_on: Tree = None
    timeout_minutes: Tree = None
    environment: Tree = None
    outputs: Tree = field(default_factory=dict)
    steps: tuple[Step, ...] = ()
    uses: str | None = None
    inputs: Tree = field(default_factory=dict)
    secrets: Tree = field(default_factory=dict)

    @property
    def needed(self) -> list[str]:
        return [self.needs] if isinstance(self.needs, str) else self.needs


@dataclass(frozen=True, kw_only=True)
class Workflow:
    file: str
    name: str
    events: dict[str, Any]
    permissions: dict[str, str]
    concurrency: Tree = None  # one run at a time here, so it has no effect
    env: Tree = field(default_factory=dict)
    jobs: tuple[Job, ...]


@dataclass(frozen=True, kw_only=True)
class CompositeAction:
    name: str
    description: str
    inputs: dict[str, Any] = field(default_factory=dict)
    outputs: dict[str, Any] = field(default_factory=dict)
    runs: dict[str, Any]
    steps: tuple[Step, ...]


def load_workflow(parser: WorkflowParser, file: str, *, source: Path = ROOT) -> Workflow:
    tree = parser.parse("workflow", source / ".github" / "workflows" / file)
    if tree["permissions"] != {}:
        raise WorkflowError(f"{file}: rights are listed per job here")
    jobs = tuple(_job(f"{file}: {name}", name, job) for name, job in tree["jobs"].items())
    return _read(Workflow, file, tree, file=file, jobs=jobs)


def load_action(parser: WorkflowParser, uses: str, *, source: Path = ROOT) -> CompositeAction:
    path = uses.removeprefix(SELF)
    tree = parser.parse("action", source / path / "action.yml")
    if tree["runs"]["using"] != "composite":
        raise WorkflowError(f"{path}: only composite actions are run here")
    return _read(CompositeAction, path, tree, steps=_steps(path, tree["runs"]))


def _job(where: str, name: str, tree: dict[str, Any]) -> Job:
    job = _read(Job, where, {"name": name} | tree, id=name, steps=_steps(where, tree))
    if "matrix" in job.strategy and job.strategy.get("fail-fast", True):
        raise WorkflowError(f"{where}: a failing job would cancel the others of its matrix")
    if job.uses is None and job.timeout_minutes is None:
        raise WorkflowError(f"{where}: a job without a timeout may run for six hours")
    if "failure()" in str(job.condition):
        raise WorkflowError(f"{where}: the interpreter knows failure() only in steps")
    return job


def _steps(where: str, holder: Mapping[str, Any]) -> tuple[Step, ...]:
    found = []
    for number, tree in enumerate(holder.get("steps", []), 1):
        step = _read(Step, f"{where}: step {number}", {"id": f"__{number}"} | tree)
        if step.uses and step.env:
            raise WorkflowError(f"{where}: step {number}: the interpreter knows env only beside run")
        found.append(step)
    return tuple(found)


def _read(kind: type[T], where: str, tree: Mapping[str, Any], **known: Any) -> T:
    """A record from a mapping of YAML. known: fields that are there already."""
    found = {_RENAMED.get(key, key.replace("-", "_")): value for key, value in tree.items()}
    if unknown := found.keys() - {each.name for each in fields(kind)}:  # type: ignore[arg-type]
        raise WorkflowError(f"{where}: the interpreter does not know {', '.join(sorted(unknown))}")
    return kind(**found | known)
