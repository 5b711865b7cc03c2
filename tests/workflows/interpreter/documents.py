"""Workflows and composite actions as GitHub's parser reads them. What the interpreter does not know is refused."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.workflows.interpreter.parser import Tree, WorkflowError, WorkflowParser

ROOT = Path(__file__).parents[3]
SELF = "$/"  # this repository, at the commit that runs

_WORKFLOW = {"name", "on", "permissions", "concurrency", "env", "jobs"}
_JOB = {
    "name",
    "needs",
    "if",
    "runs-on",
    "timeout-minutes",
    "strategy",
    "concurrency",
    "environment",
    "permissions",
    "outputs",
    "steps",
}
_CALL = {"name", "needs", "if", "strategy", "concurrency", "permissions", "uses", "with", "secrets"}
_STEP = {"name", "id", "if", "run", "shell", "uses", "with", "env"}
_STRATEGY = {"matrix", "fail-fast", "max-parallel"}
_SUCCESS = {"$expression": "success()"}


@dataclass(frozen=True, kw_only=True)
class Step:
    id: str
    name: str
    condition: Tree
    run: Tree = None
    shell: str | None = None
    uses: str | None = None
    inputs: Tree = field(default_factory=dict)
    env: Tree = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Job:
    """One of a workflow's jobs, or the call of another workflow (`uses`), before its matrix is known."""

    id: str
    name: Tree
    needs: tuple[str, ...]
    condition: Tree
    matrix: Tree
    concurrency: Tree
    permissions: dict[str, str]
    runs_on: Tree = None
    timeout_minutes: Tree = None
    environment: Tree = None
    outputs: Tree = field(default_factory=dict)
    steps: tuple[Step, ...] = ()
    uses: str | None = None
    inputs: Tree = field(default_factory=dict)
    secrets: Tree = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Workflow:
    file: str
    name: str
    events: dict[str, Any]
    env: Tree
    jobs: tuple[Job, ...]


@dataclass(frozen=True, kw_only=True)
class CompositeAction:
    path: str
    inputs: dict[str, Any]
    outputs: dict[str, Tree]
    steps: tuple[Step, ...]


def load_workflow(parser: WorkflowParser, file: str, *, source: Path = ROOT) -> Workflow:
    tree = parser.parse("workflow", source / ".github" / "workflows" / file)
    _only(tree, _WORKFLOW, file)
    if tree["permissions"] != {}:
        raise WorkflowError(f"{file}: rights are listed per job here")
    return Workflow(
        file=file,
        name=tree["name"],
        events=_events(tree["on"]),
        env=tree.get("env", {}),
        jobs=tuple(_job(file, name, job) for name, job in tree["jobs"].items()),
    )


def load_action(parser: WorkflowParser, uses: str, *, source: Path = ROOT) -> CompositeAction:
    path = uses.removeprefix(SELF)
    tree = parser.parse("action", source / path / "action.yml")
    _only(tree, {"name", "description", "inputs", "outputs", "runs"}, path)
    runs = tree["runs"]
    if runs["using"] != "composite":
        raise WorkflowError(f"{path}: only composite actions are run here")
    return CompositeAction(
        path=path,
        inputs=tree.get("inputs", {}),
        outputs={name: output["value"] for name, output in tree.get("outputs", {}).items()},
        steps=_steps(path, runs["steps"]),
    )


def _events(on: Tree) -> dict[str, Any]:
    if isinstance(on, str):
        return {on: {}}
    if isinstance(on, list):
        return {name: {} for name in on}
    return {name: config or {} for name, config in on.items()}


def _job(file: str, name: str, tree: dict[str, Any]) -> Job:
    where = f"{file}: {name}"
    _only(tree, _CALL if "uses" in tree else _JOB, where)
    strategy = tree.get("strategy", {})
    _only(strategy, _STRATEGY, where)
    if "matrix" in strategy and strategy.get("fail-fast", True):
        raise WorkflowError(f"{where}: a failing job would cancel the others of its matrix")
    if "uses" not in tree and "timeout-minutes" not in tree:
        raise WorkflowError(f"{where}: a job without a timeout may run for six hours")
    needs = tree.get("needs", [])
    return Job(
        id=name,
        name=tree.get("name", name),
        needs=(needs,) if isinstance(needs, str) else tuple(needs),
        condition=tree.get("if", _SUCCESS),
        matrix=strategy.get("matrix"),
        concurrency=tree.get("concurrency"),
        permissions=tree["permissions"],
        runs_on=tree.get("runs-on"),
        timeout_minutes=tree.get("timeout-minutes"),
        environment=tree.get("environment"),
        outputs=tree.get("outputs", {}),
        steps=_steps(where, tree.get("steps", [])),
        uses=tree.get("uses"),
        inputs=tree.get("with", {}),
        secrets=tree.get("secrets", {}),
    )


def _steps(where: str, trees: Iterable[dict[str, Any]]) -> tuple[Step, ...]:
    return tuple(_step(f"{where}: step {number}", number, tree) for number, tree in enumerate(trees, 1))


def _step(where: str, number: int, tree: dict[str, Any]) -> Step:
    _only(tree, _STEP, where)
    return Step(
        id=tree.get("id", f"__{number}"),
        name=tree["name"],
        condition=tree.get("if", _SUCCESS),
        run=tree.get("run"),
        shell=tree.get("shell"),
        uses=tree.get("uses"),
        inputs=tree.get("with", {}),
        env=tree.get("env", {}),
    )


def _only(tree: dict[str, Any], known: set[str], where: str) -> None:
    if unknown := tree.keys() - known:
        raise WorkflowError(f"{where}: the interpreter does not know {', '.join(sorted(unknown))}")
