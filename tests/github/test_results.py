"""What each leg wrote, and what GitHub says of the running that wrote nothing, together say how a job ended."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from bot.github.matrix import timeout_minutes
from bot.github.results import final_results, is_plausible
from bot.records import Job, JobKind, JobResult, RunningJob, Status
from tests.github.test_attempts import NOW
from tests.support.factories import job

TARGET = "quantized/Tiny-awq"
REFRESH = job(job_id="refresh", kind=JobKind.REFRESH, estimate=None)


def result(of: Job | None = None, **fields: Any) -> JobResult:
    of = of or job()
    standard: dict[str, Any] = {
        "job_id": of.job_id,
        "target": of.entry.target,
        "repo_id": of.entry.repo_id,
        "content": of.attempt_digest,
        "stage": "quantize",
        "status": Status.READY,
    }
    return JobResult(**standard | fields)


def seen(stage: str, conclusion: str | None, status: str = "completed", **fields: Any) -> RunningJob:
    standard: dict[str, Any] = {"url": "https://log", "runner": "awq-1"}
    return RunningJob(stage=stage, target=TARGET, status=status, conclusion=conclusion, **standard | fields)


def cancelled(stage: str, *, queued: timedelta = timedelta(), ran: timedelta | None) -> RunningJob:
    """ran: None when no runner ever took it."""
    started = NOW + queued
    times: dict[str, Any] = {"created": NOW, "started": started, "completed": started + (ran or timedelta())}
    return seen(stage, "cancelled", **times, runner="" if ran is None else "awq-1")


@pytest.mark.parametrize(
    ("results", "running", "status", "stage"),
    [
        ([result(), result(stage="publish", status=Status.PUBLISHED)], [], Status.PUBLISHED, "publish"),
        ([result(stage="publish", status=Status.PUBLISHED)], [], Status.PUBLISHED, "publish"),
        ([result(), result(stage="publish", status=Status.UNCHANGED)], [], Status.UNCHANGED, "publish"),
        ([result(), result(stage="publish", status=Status.FAILED)], [], Status.FAILED, "publish"),
        ([result(status=Status.UNCHANGED)], [], Status.UNCHANGED, "quantize"),
        ([result(status=Status.FAILED)], [seen("quantize", "failure")], Status.FAILED, "quantize"),
        ([result()], [seen("quantize", "success"), seen("publish", "failure")], Status.FAILED, "publish"),
        ([result()], [seen("quantize", "success"), seen("publish", "cancelled")], Status.STOPPED, "publish"),
        ([result()], [seen("quantize", "success")], Status.STOPPED, "publish"),
        ([result()], [seen("quantize", "failure")], Status.FAILED, "quantize"),
        ([result()], [seen("quantize", "failure"), seen("publish", "skipped")], Status.FAILED, "quantize"),
        ([result()], [seen("quantize", "cancelled"), seen("publish", "skipped")], Status.STOPPED, "quantize"),
        (
            [result(status=Status.FAILED)],
            [seen("quantize", "failure"), seen("publish", "cancelled")],
            Status.FAILED,
            "quantize",
        ),
        ([], [seen("quantize", "success"), seen("publish", "success")], Status.FAILED, "publish"),
        ([], [seen("quantize", "failure"), seen("publish", "skipped")], Status.FAILED, "quantize"),
        # Nobody who has a machine of ours can say more than GitHub has seen.
        (
            [result(), result(stage="publish", status=Status.PUBLISHED)],
            [seen("quantize", "failure")],
            Status.FAILED,
            "quantize",
        ),
        (
            [result(stage="publish", status=Status.PUBLISHED)],
            [seen("quantize", "failure"), seen("publish", "skipped")],
            Status.FAILED,
            "quantize",
        ),
        (
            [result(stage="publish", status=Status.UNCHANGED)],
            [seen("quantize", "success"), seen("publish", "failure")],
            Status.FAILED,
            "publish",
        ),
        ([result(status=Status.UNCHANGED)], [seen("quantize", "failure")], Status.FAILED, "quantize"),
        (
            [result(stage="publish", status=Status.PUBLISHED)],
            [seen("quantize", "success")],
            Status.PUBLISHED,
            "publish",
        ),
        (
            [result(stage="publish", status=Status.PUBLISHED)],
            [seen("publish", "success")],
            Status.PUBLISHED,
            "publish",
        ),
        ([result(stage="publish", status=Status.PUBLISHED)], None, Status.PUBLISHED, "publish"),
        ([result()], None, Status.UNKNOWN, "publish"),
        ([], None, Status.UNKNOWN, "quantize"),
        ([], [], Status.STOPPED, "quantize"),
        ([], [seen("quantize", "failure")], Status.FAILED, "quantize"),
        ([], [seen("quantize", "startup_failure")], Status.FAILED, "quantize"),
        ([], [seen("quantize", "success")], Status.FAILED, "quantize"),
        ([], [seen("quantize", None, "in_progress")], Status.STOPPED, "quantize"),
        ([], [seen("quantize", "failure"), seen("quantize", "cancelled")], Status.STOPPED, "quantize"),
    ],
)
def test_a_release_job_ends_as_its_last_stage_did(
    results: list[JobResult], running: list[RunningJob] | None, status: Status, stage: str
) -> None:
    [ended] = final_results([job()], results, running)
    assert (ended.status, ended.stage) == (status, stage)


@pytest.mark.parametrize(
    ("results", "running", "status"),
    [
        ([result(REFRESH, stage="refresh", status=Status.PUBLISHED)], None, Status.PUBLISHED),
        ([result(REFRESH, stage="refresh", status=Status.FAILED)], None, Status.FAILED),
        ([], [seen("refresh", "failure")], Status.FAILED),
        ([], [seen("refresh", "cancelled")], Status.STOPPED),
    ],
)
def test_a_job_without_a_gpu_has_one_stage(
    results: list[JobResult], running: list[RunningJob] | None, status: Status
) -> None:
    [ended] = final_results([REFRESH], results, running)
    assert (ended.status, ended.stage) == (status, "refresh")


def test_a_failure_keeps_its_words_and_finds_its_log() -> None:
    failed = result(status=Status.FAILED, exit_code=6, message="KL is too large", hint="Loosen the gate.")
    [ended] = final_results([job()], [failed], [seen("quantize", "failure")])
    assert (ended.message, ended.hint, ended.exit_code) == ("KL is too large", "Loosen the gate.", 6)
    assert ended.url == "https://log"


def test_a_runner_that_died_is_an_environment_problem_with_a_fix() -> None:
    [ended] = final_results([job()], [], [seen("quantize", "failure")])
    assert ended.exit_code == 8
    assert "the runner was lost" in ended.message
    assert "out of memory" in ended.hint


ALLOWED = timedelta(minutes=timeout_minutes(job()))
MINUTE = timedelta(minutes=1)


@pytest.mark.parametrize(
    ("of", "last", "said"),
    [
        (job(), cancelled("quantize", ran=ALLOWED + MINUTE), "it took longer than the workflow allows"),
        (job(), cancelled("quantize", ran=ALLOWED - MINUTE), "it took longer than the workflow allows"),
        (job(), cancelled("publish", ran=timedelta(minutes=350)), "publish: it took longer"),
        (
            REFRESH,
            cancelled("refresh", ran=timedelta(minutes=timeout_minutes(REFRESH))),
            "refresh: it took longer",
        ),
        (
            job(),
            cancelled("quantize", queued=timedelta(hours=24), ran=None),
            "no runner with the labels self-hosted, gpu, gpu-16gb took it within a day",
        ),
    ],
)
def test_what_github_cancelled_by_itself_has_failed(of: Job, last: RunningJob, said: str) -> None:
    [ended] = final_results(
        [of], [result(of)] if last.stage == "publish" else [], [seen("quantize", "success"), last]
    )
    assert (ended.status, ended.stage, ended.exit_code) == (Status.FAILED, last.stage, 8)
    assert said in ended.message
    assert ended.hint


@pytest.mark.parametrize(
    "cancelled_job",
    [
        cancelled("quantize", ran=MINUTE),
        cancelled("quantize", ran=ALLOWED - 5 * MINUTE),
        cancelled("quantize", queued=timedelta(hours=23.9), ran=MINUTE),
        cancelled("quantize", queued=timedelta(hours=3), ran=None),
        seen("quantize", "cancelled"),
        seen("quantize", "cancelled", runner="", completed=NOW),
    ],
)
def test_what_a_person_cancelled_was_stopped(cancelled_job: RunningJob) -> None:
    [ended] = final_results([job()], [], [cancelled_job])
    assert (ended.status, ended.message, ended.exit_code) == (Status.STOPPED, "it was cancelled", 0)


@pytest.mark.parametrize(
    ("made", "plausible"),
    [
        (result(), True),
        (result(status=Status.FAILED, exit_code=5), True),
        (result(stage="publish", status=Status.PUBLISHED), True),
        (result(REFRESH, stage="refresh", status=Status.PUBLISHED), True),
        (result(status=Status.PUBLISHED), False),
        (result(stage="publish", status=Status.READY), False),
        (result(stage="refresh", status=Status.PUBLISHED), False),
        (result(stage="dance"), False),
        (result(job_id="another"), False),
        (result(target="quantized/Other-awq"), False),
        (result(content="0" * 64), False),
        (result(REFRESH, stage="publish", status=Status.PUBLISHED), False),
    ],
)
def test_a_result_is_plausible_if_its_stage_can_have_done_that(made: JobResult, plausible: bool) -> None:
    assert is_plausible(made, {item.job_id: item for item in (job(), REFRESH)}) == plausible
