"""Plan -> the matrices of the workflow: which runner takes a job, for how long, and what may be passed on.

Limits: https://docs.github.com/en/actions/reference/limits
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from bot.errors import EnvironmentProblem
from bot.records import Job, JobKind, Plan, Skip
from bot.text import size
from bot.watch.sizing import gpu_class

MATRIX_LIMIT = 256  # jobs in one matrix
HOSTED_RUNNER = "ubuntu-latest"  # for what needs no GPU

# A hosted runner has at least 14 GB of disk, for the artifact and everything that publishes it.
HOSTED_ARTIFACT_BYTES = 12 * 10**9

# How long GitHub lets a job run, in minutes, on hosted and on self-hosted runners.
HOSTED_LIMIT = 6 * 60
SELF_HOSTED_LIMIT = 5 * 24 * 60
PUBLISH_MINUTES = 350  # `timeout-minutes` of `publish` in model.yml, the same for every model

_BYTES_PER_S = 25e6  # of an ordinary connection, and of a disk that others use too
_SPARE_S = 30 * 60.0  # to install the bot, to wait for the Hub, to start and to clean up


def matrices(plan: Plan) -> dict[str, list[dict[str, Any]]]:
    """The rows of the workflow's two matrices: jobs that need a GPU, and jobs that do not."""
    rows: dict[str, list[dict[str, Any]]] = {"quantize": [], "refresh": []}
    for job in plan.jobs:
        name = "quantize" if job.kind is JobKind.RELEASE else "refresh"
        rows[name].append(matrix_row(job))
    return rows


def matrix_row(job: Job) -> dict[str, Any]:
    """Name, labels and time limit. The job itself is in the plan's artifact."""
    return {
        "job_id": job.job_id,
        "target": job.entry.target,
        "runs_on": list(runner_labels(job)),
        "timeout_minutes": timeout_minutes(job),
    }


def runner_labels(job: Job) -> tuple[str, ...]:
    """`runs-on`: the smallest class of GPU runner that fits, or a hosted runner where no GPU is needed."""
    if job.kind is not JobKind.RELEASE or job.estimate is None:
        return (HOSTED_RUNNER,)
    return ("self-hosted", "gpu", f"gpu-{gpu_class(job.estimate)}gb")


def timeout_minutes(job: Job) -> int:
    """Four times the estimate of the work, time to move files, and half an hour; never beyond GitHub's limits.

    Source and artifact are each moved three times: downloaded, hashed, and read, packed or uploaded.
    """
    needs = job.estimate
    if needs is not None:
        work_s, moved_bytes, limit = needs.duration_s, needs.download_bytes + needs.output_bytes, SELF_HOSTED_LIMIT
    else:
        # The published files are read back. They are smaller than the source, whose size is known.
        work_s, moved_bytes, limit = 0.0, sum(file.size_bytes for file in job.source_files), HOSTED_LIMIT
    return min(math.ceil((4 * work_s + 3 * moved_bytes / _BYTES_PER_S + _SPARE_S) / 60), limit)


def job_minutes(job: Job, stage: str) -> int:
    """How long the workflow lets one stage of a job run."""
    return PUBLISH_MINUTES if stage == "publish" else timeout_minutes(job)


def publishable(plan: Plan, *, hosted: bool, public: bool) -> Plan:
    """The plan without releases whose artifact cannot be passed to the job that publishes it.

    hosted: publishing runs on a hosted runner. public: everyone can download the artifacts of this repository.
    """
    if not hosted:
        return plan
    found = ((job, _too_large(job) or (_closed(job) if public else None)) for job in (*plan.jobs, *plan.deferred))
    refused = {job.job_id: skip for job, skip in found if skip is not None}
    return replace(
        plan,
        jobs=tuple(job for job in plan.jobs if job.job_id not in refused),
        deferred=tuple(job for job in plan.deferred if job.job_id not in refused),
        skipped=(*refused.values(), *plan.skipped),
    )


def _too_large(job: Job) -> Skip | None:
    output_bytes = job.estimate.output_bytes if job.estimate else 0
    if job.kind is not JobKind.RELEASE or output_bytes <= HOSTED_ARTIFACT_BYTES:
        return None
    sizes = f"about {size(output_bytes)} to publish, {size(HOSTED_ARTIFACT_BYTES)} fit"
    hint = "Set AWQ_BOT_PUBLISH_ON to `runner` to publish it from the GPU runner."
    return _refused(job, f"too large for a hosted runner: {sizes}", hint)


def _closed(job: Job) -> Skip | None:
    if job.kind is not JobKind.RELEASE or not (job.upstream.gated or job.upstream.private or job.entry.private):
        return None
    what = "gated" if job.upstream.gated else "private"
    reason = f"it is {what}, and this repository is public: everyone could download the artifacts of its jobs"
    hint = "Watch it from a private repository, or set AWQ_BOT_PUBLISH_ON to `runner`."
    return _refused(job, reason, hint)


def _refused(job: Job, reason: str, hint: str) -> Skip:
    code = EnvironmentProblem.exit_code
    return Skip(entry=job.entry, reason=reason, hint=hint, blocked=True, exit_code=code)
