"""A workflow's run: which jobs start, in which order, and with what result.

Jobs run one after the other. Jobs of a matrix, too, with the workflows that they call: as if each had its own
machine and were faster than the next one.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from tests.workflows.interpreter.documents import SELF, Job, load_workflow
from tests.workflows.interpreter.jobs import check_inputs, launch
from tests.workflows.interpreter.parser import WorkflowError, as_text, truthy
from tests.workflows.interpreter.repository import NAME, JobRecord, Level, Repository, RunContext, StepRecord

_MATRIX_LIMIT = 256


def start(repository: Repository, file: str, event: str, /, **payload: Any) -> Run:
    """The run that an event starts, to its end. payload: of the event, as webhooks carry it."""
    root = repository.root / f"run-{next(repository.folders)}"
    root.mkdir(parents=True)
    (root / "event.json").write_text(json.dumps(payload))
    workflow = load_workflow(repository.parser, file, source=repository.source)
    if event not in workflow.events:
        raise WorkflowError(f"{file} does not start on {event}")
    number = repository.api.start_run(file)
    run = Run(repository=repository, id=number, root=root, workflow=workflow, event=event, payload=payload)
    run.go()
    return run


def steps_with_value(steps: list[StepRecord], value: str) -> set[tuple[str, str]]:
    """The steps, by job and name, that have a value anywhere in their environment."""
    return {(step.job, step.name) for step in steps if any(value in text for text in step.env.values())}


@dataclass(kw_only=True)
class Run(RunContext):
    """jobs: those that ended so far, in that order."""

    jobs: list[JobRecord] = field(default_factory=list)

    def go(self) -> None:
        self.repository.started(self)
        # What a fork's pull request starts gets no secrets.
        secrets = {} if self.fork else dict(self.repository.secrets)
        self._run_level(Level(workflow=self.workflow, inputs=self._inputs(), secrets=secrets))
        self.repository.api.runs[self.id].status = "completed"

    def job(self, name: str) -> JobRecord:
        return next(job for job in self.jobs if job.name == name)

    @property
    def results(self) -> dict[str, str]:
        """Of the jobs that ran, in the order in which they ended."""
        return {job.name: job.result for job in self.jobs if job.result != "skipped"}

    @property
    def steps(self) -> list[StepRecord]:
        return [step for job in self.jobs for step in job.steps]

    def _inputs(self) -> dict[str, Any]:
        """Of workflow_dispatch, with their defaults; nothing on any other event."""
        if self.event != "workflow_dispatch":
            return {}
        declared = (self.workflow.events["workflow_dispatch"] or {}).get("inputs", {})
        given = self.payload.get("inputs", {})
        check_inputs(self.workflow.file, declared, given)
        return {name: given.get(name, each.get("default", "")) for name, each in declared.items()}

    def _run_level(self, level: Level) -> str:
        """Returns its result, as `needs` shows it."""
        done: dict[str, dict[str, Any]] = {}
        for job in in_order(level.workflow.jobs):
            contexts = self._contexts(level) | {"needs": {need: done[need] for need in job.needed}}
            # What success() goes by.
            status = "success" if all(done[need]["result"] == "success" for need in job.needed) else "skipped"
            if truthy(self._evaluate(job.condition, contexts, status=status)):
                done[job.id] = self._run_matrix(level, job, contexts)
            else:
                done[job.id] = {"result": "skipped", "outputs": {}}
                # A matrix that was not evaluated has no jobs with names.
                name = self._name(job, contexts) if "matrix" not in job.strategy else job.id
                self._record(JobRecord(name=level.name(name)))
        return combined_result([job["result"] for job in done.values()])

    def _run_matrix(self, level: Level, job: Job, contexts: dict[str, Any]) -> dict[str, Any]:
        matrices = matrix_jobs(job, self._evaluate(job.strategy.get("matrix"), contexts))
        results: list[str] = []
        outputs: dict[str, str] = {}
        for matrix in matrices:
            result, outputs = self._run_job(level, job, contexts | {"matrix": matrix})
            results.append(result)
        if len(matrices) > 1 and outputs:
            raise WorkflowError(f"{job.id}: outputs of a matrix are those of the job that ends last")
        return {"result": combined_result(results), "outputs": outputs}

    def _run_job(self, level: Level, job: Job, contexts: dict[str, Any]) -> tuple[str, dict[str, str]]:
        name = level.name(self._name(job, contexts))
        self.repository.before_step(name, "")
        concurrency = self._evaluate(job.concurrency, contexts)
        group = concurrency["group"] if concurrency else f"{self.id}/{name}"
        if group in self.repository.held_groups:
            raise WorkflowError(f"{name} would wait for another job that holds {group}")
        self.repository.held_groups.add(group)
        try:
            if job.uses is not None:
                return self._call(level, job, contexts, name=name), {}
            record = self._record(launch(self, level, job, contexts, name=name))
            return record.result, record.outputs
        finally:
            self.repository.held_groups.discard(group)

    def _call(self, level: Level, job: Job, contexts: dict[str, Any], *, name: str) -> str:
        file = str(job.uses).removeprefix(f"{SELF}.github/workflows/")
        called = load_workflow(self.repository.parser, file, source=self.repository.source)
        declared = called.events["workflow_call"]
        inputs = self._evaluate(job.inputs, contexts)
        secrets = self._evaluate(job.secrets, contexts | {"secrets": level.secrets})
        check_inputs(file, declared.get("inputs", {}), inputs)
        if unknown := secrets.keys() - declared.get("secrets", {}).keys():
            raise WorkflowError(f"{file} has no secrets {sorted(unknown)}")
        return self._run_level(
            Level(
                workflow=called,
                inputs=inputs,
                secrets={key: as_text(value) for key, value in secrets.items()},
                prefix=name,
                ceiling=job.permissions,
            )
        )

    def _record(self, record: JobRecord) -> JobRecord:
        self.jobs.append(record)
        self.repository.api.set_job(self.id, record.name, "completed", record.result)
        return record

    def _contexts(self, level: Level) -> dict[str, Any]:
        github = {
            "event_name": self.event,
            "event": self.payload,
            "repository": NAME,
            "ref": "refs/heads/main",
            "ref_name": "main",
            "run_id": str(self.id),
            "workflow": self.workflow.name,
        }
        known = {"github": github, "vars": self.repository.variables, "inputs": level.inputs}
        return known | {"needs": {}, "matrix": {}}

    def _name(self, job: Job, contexts: dict[str, Any]) -> str:
        return as_text(self._evaluate(job.name, contexts))

    def _evaluate(self, tree: Any, contexts: dict[str, Any], *, status: str = "success") -> Any:
        return self.repository.parser.evaluate(tree, contexts, status=status)


# --- rules of GitHub Actions --------------------------------------------------------------------------------


def in_order(jobs: tuple[Job, ...]) -> Iterator[Job]:
    """Every job after those that it needs, otherwise as written."""
    waiting, done = list(jobs), set[str]()
    while waiting:
        job = next(each for each in waiting if done.issuperset(each.needed))
        waiting.remove(job)
        done.add(job.id)
        yield job


def combined_result(results: list[str]) -> str:
    """The result of several jobs as one."""
    return next((result for result in ("failure", "success") if result in results), "skipped")


def matrix_jobs(job: Job, matrix: Any) -> list[dict[str, Any]]:
    """The matrix context of each job; one empty context without a matrix."""
    if matrix is None:
        return [{}]
    if matrix.keys() == {"include"}:
        found = list(matrix["include"])
    elif "include" in matrix or "exclude" in matrix:
        raise WorkflowError(f"{job.id}: the interpreter knows either axes or `include`")
    else:
        found = [dict(zip(matrix, values, strict=True)) for values in itertools.product(*matrix.values())]
    if not 0 < len(found) <= _MATRIX_LIMIT:
        raise WorkflowError(f"{job.id}: a matrix of {len(found)} jobs")
    return found
