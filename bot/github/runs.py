"""Runs of a workflow and their jobs: what is under way elsewhere, what became of ours, when the last plan was."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from itertools import islice

from github.WorkflowJob import WorkflowJob

from bot.github.client import Forge, answered
from bot.records import PlanTimes, RunningJob

# The name of a leg is its verb and its target. A job that calls another workflow is named for the target, which
# stands alone until that workflow's jobs are there, and then before theirs.
_LEG = re.compile(r"(?:.* / )?(?:(quantize|publish|refresh) )?([\w.-]+/[\w.-]+)", re.ASCII)
_UNDER_WAY = ("in_progress", "queued", "waiting", "pending")
_PLAN = re.compile(r"(?:.* / )?plan")
_RUNS_LOOKED_AT = 50
_OURS_TO_ENABLE = ("active", "disabled_inactivity")  # a person's `disabled_manually` is not


def jobs_elsewhere(forge: Forge) -> tuple[RunningJob, ...]:
    """Every leg of the other runs of this workflow that are not over."""
    if not forge.actions.workflow:
        return ()
    with answered("which runs are under way"):
        workflow = forge.repository.get_workflow(forge.actions.workflow)
        runs = {run.id: run for status in _UNDER_WAY for run in workflow.get_runs(status=status)}
        others = [run for number, run in runs.items() if str(number) != forge.actions.run_id]
        return tuple(leg for run in others for leg in _legs(run.jobs("latest")))


def jobs_of_this_run(forge: Forge) -> tuple[RunningJob, ...]:
    """The legs of this run, each at its latest attempt."""
    if not forge.actions.run_id.isdigit():
        return ()
    with answered("the jobs of this run"):
        return tuple(_legs(forge.repository.get_workflow_run(int(forge.actions.run_id)).jobs("latest")))


def plan_times(forge: Forge, workflow: str) -> PlanTimes:
    """Looked for from the newest run back, so that a workflow that is well costs two requests."""
    oldest = None
    with answered(f"the runs of {workflow}"):
        runs = forge.repository.get_workflow(workflow).get_runs()
        for run in islice(runs, _RUNS_LOOKED_AT):
            oldest = run.created_at
            for job in run.jobs("latest"):
                if _PLAN.fullmatch(job.name) and job.conclusion == "success" and job.completed_at:
                    return PlanTimes(last_good=job.completed_at)
    return PlanTimes(oldest_run=oldest)


def keep_enabled(forge: Forge, workflow: str) -> str:
    """Enabling what is enabled already sets back the clock by which GitHub stops quiet repositories' schedules.

    What else it was, which is left so, or what GitHub did not do; nothing when it is enabled.
    """
    with answered(f"enabling {workflow}"):
        found = forge.repository.get_workflow(workflow)
        if found.state not in _OURS_TO_ENABLE:
            return f"{workflow} was switched off by somebody ({found.state}), and is left so."
        done = found.enable()
    return "" if done else f"GitHub did not enable {workflow}. Does the job have `actions: write`?"


def _legs(jobs: Iterable[WorkflowJob]) -> Iterator[RunningJob]:
    for job in jobs:
        name = _LEG.fullmatch(job.name)
        if name is not None:
            yield RunningJob(
                stage=name[1] or "",
                target=name[2],
                status=job.status,
                conclusion=job.conclusion,
                url=job.html_url or "",
                runner=job.runner_name or "",
                created=job.created_at,
                started=job.started_at,
                completed=job.completed_at,
            )
