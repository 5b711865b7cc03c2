"""A workflow's run: which jobs start, in which order, and what became of them.

Jobs run one after the other. A leg's whole called workflow runs before the next leg, as if every leg had a machine
of its own and each were faster than the one after it.
"""

from __future__ import annotations

import json
from typing import Any

from tests.workflows import rules
from tests.workflows.artifacts import Artifacts
from tests.workflows.documents import SELF, Job, load_workflow
from tests.workflows.jobs import StepRecord
from tests.workflows.launching import Circumstances, launch
from tests.workflows.reading import WorkflowError, as_text, truthy
from tests.workflows.repository import NAME, SHA, JobRecord, Level, Repository


def start(repository: Repository, file: str, event: str, /, **payload: Any) -> Run:
    """The run that an event starts, to its end. payload: of the event, as webhooks carry it."""
    run = Run(repository, file, event, payload)
    run.go()
    return run


def seeing(steps: list[StepRecord], value: str) -> set[tuple[str, str]]:
    """Which steps, by job and name, find a value anywhere in their environment."""
    return {(step.job, step.name) for step in steps if any(value in text for text in step.env.values())}


class Run:
    """jobs: those that ended so far, in that order."""

    def __init__(self, repository: Repository, file: str, event: str, payload: dict[str, Any]) -> None:
        self._here = repository
        self._payload = payload
        self._root = repository.root / f"run-{next(repository.folders)}"
        self._root.mkdir(parents=True)
        (self._root / "event.json").write_text(json.dumps(payload))
        self._workflow = load_workflow(repository.reading, file, source=repository.source)
        if event not in self._workflow.events:
            raise WorkflowError(f"{file} does not start on {event}")
        self.id = repository.api.start_run(file, event)
        self.artifacts = Artifacts(self._root / "artifacts")
        self.jobs: list[JobRecord] = []
        self._around = Circumstances(
            repository=repository,
            run_id=self.id,
            root=self._root,
            artifacts=self.artifacts,
            event=event,
            file=file,
            workflow_name=self._workflow.name,
            fork=_is_from_fork(payload),
        )

    def go(self) -> None:
        self._here.started(self)
        # What a fork's pull request starts gets no secrets.
        secrets = {} if self._around.fork else dict(self._here.secrets)
        self._run_level(Level(workflow=self._workflow, inputs=self._inputs(), secrets=secrets))
        self._here.api.finish_run(self.id, self.result)

    @property
    def result(self) -> str:
        return rules.together([job.result for job in self.jobs])

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
        if self._around.event != "workflow_dispatch":
            return {}
        declared = self._workflow.events["workflow_dispatch"].get("inputs", {})
        given = self._payload.get("inputs", {})
        rules.check_inputs(self._workflow.file, declared, given)
        return {name: given.get(name, each.get("default", "")) for name, each in declared.items()}

    def _run_level(self, level: Level) -> str:
        """Its result, for those who need it."""
        jobs = level.workflow.jobs
        done: dict[str, dict[str, Any]] = {}
        for job in rules.in_order(jobs):
            contexts = self._contexts(level) | {"needs": {need: done[need] for need in job.needs}}
            status = rules.status(job, {each.id: each for each in jobs}, done)
            if truthy(self._evaluate(job.condition, contexts, status=status)):
                done[job.id] = self._run_legs(level, job, contexts)
            else:
                done[job.id] = {"result": "skipped", "outputs": {}}
                # A matrix that was never looked at has no legs that could have names.
                name = self._name(job, contexts) if job.matrix is None else job.id
                self._record(JobRecord(name=level.name(name), result="skipped"))
        return rules.together([job["result"] for job in done.values()])

    def _run_legs(self, level: Level, job: Job, contexts: dict[str, Any]) -> dict[str, Any]:
        legs = rules.legs(job, self._evaluate(job.matrix, contexts))
        results: list[str] = []
        outputs: dict[str, str] = {}
        for number, leg in enumerate(legs):
            strategy = {"fail-fast": job.fail_fast, "job-index": number, "job-total": len(legs)}
            seen = contexts | {"matrix": leg, "strategy": strategy}
            if job.fail_fast and "failure" in results:
                results.append("cancelled")
                self._record(JobRecord(name=level.name(self._name(job, seen)), result="cancelled"))
                continue
            result, outputs = self._run_leg(level, job, seen)
            results.append(result)
        if len(legs) > 1 and outputs:
            raise WorkflowError(f"{job.id}: outputs of a matrix are those of whichever leg ends last")
        return {"result": rules.together(results), "outputs": outputs}

    def _run_leg(self, level: Level, job: Job, contexts: dict[str, Any]) -> tuple[str, dict[str, str]]:
        name = level.name(self._name(job, contexts))
        self._here.before_step(name, "")
        concurrency = self._evaluate(job.concurrency, contexts)
        group = concurrency["group"] if concurrency else f"{self.id}/{name}"
        if group in self._here.held:
            raise WorkflowError(f"{name} would wait for another job that holds {group}")
        self._here.held.add(group)
        try:
            if job.uses is not None:
                return self._call(level, job, contexts, name=name), {}
            record = self._record(launch(self._around, level, job, contexts, name=name))
            return record.result, record.outputs
        finally:
            self._here.held.discard(group)

    def _call(self, level: Level, job: Job, contexts: dict[str, Any], *, name: str) -> str:
        file = str(job.uses).removeprefix(f"{SELF}.github/workflows/")
        called = load_workflow(self._here.reading, file, source=self._here.source)
        declared = called.events["workflow_call"]
        inputs = self._evaluate(job.inputs, contexts)
        secrets = self._evaluate(job.secrets, contexts | {"secrets": level.secrets})
        rules.check_inputs(file, declared.get("inputs", {}), inputs)
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
        self._here.api.set_job(self.id, record.name, "completed", record.result)
        return record

    def _contexts(self, level: Level) -> dict[str, Any]:
        github = {
            "event_name": self._around.event,
            "event": self._payload,
            "repository": NAME,
            "ref": "refs/heads/main",
            "sha": SHA,
            "run_id": str(self.id),
            "workflow": self._workflow.name,
        }
        nothing: dict[str, Any] = {name: {} for name in ("env", "needs", "matrix", "strategy")}
        return nothing | {"github": github, "vars": self._here.variables, "inputs": level.inputs}

    def _name(self, job: Job, contexts: dict[str, Any]) -> str:
        return as_text(self._evaluate(job.name, contexts))

    def _evaluate(self, tree: Any, contexts: dict[str, Any], *, status: str = "success") -> Any:
        return self._here.reading.evaluate(tree, contexts, status=status, workspace=self._root)


def _is_from_fork(payload: dict[str, Any]) -> bool:
    pull_request = payload.get("pull_request")
    return pull_request is not None and pull_request["head"]["repo"]["full_name"] != NAME
