"""What each leg wrote, and what GitHub says of the legs that wrote nothing, together say how a job ended."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from bot.github.attempts import tried_content
from bot.github.matrix import timeout_minutes
from bot.github.results import Fate, believable, endings
from bot.records import Job, JobKind, JobResult, RunningJob
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
        "content": tried_content(of),
        "stage": "quantize",
        "status": "quantized",
    }
    return JobResult(**standard | fields)


def leg(stage: str, conclusion: str | None, status: str = "completed", **fields: Any) -> RunningJob:
    standard: dict[str, Any] = {"url": "https://log", "runner": "awq-1"}
    return RunningJob(stage=stage, target=TARGET, status=status, conclusion=conclusion, **standard | fields)


def cancelled(stage: str, *, queued: timedelta = timedelta(), ran: timedelta | None) -> RunningJob:
    """ran: None when no runner ever took it."""
    started = NOW + queued
    times: dict[str, Any] = {"created": NOW, "started": started, "completed": started + (ran or timedelta())}
    return leg(stage, "cancelled", **times, runner="" if ran is None else "awq-1")


@pytest.mark.parametrize(
    ("results", "legs", "fate", "stage"),
    [
        ([result(), result(stage="publish", status="published")], [], Fate.PUBLISHED, "publish"),
        ([result(stage="publish", status="published")], [], Fate.PUBLISHED, "publish"),
        ([result(), result(stage="publish", status="unchanged")], [], Fate.UNCHANGED, "publish"),
        ([result(), result(stage="publish", status="failed")], [], Fate.FAILED, "publish"),
        ([result(status="unchanged")], [], Fate.UNCHANGED, "quantize"),
        ([result(status="failed")], [leg("quantize", "failure")], Fate.FAILED, "quantize"),
        ([result()], [leg("quantize", "success"), leg("publish", "failure")], Fate.FAILED, "publish"),
        ([result()], [leg("quantize", "success"), leg("publish", "cancelled")], Fate.STOPPED, "publish"),
        ([result()], [leg("quantize", "success")], Fate.STOPPED, "publish"),
        ([result()], [leg("quantize", "failure")], Fate.FAILED, "quantize"),
        ([result()], [leg("quantize", "failure"), leg("publish", "skipped")], Fate.FAILED, "quantize"),
        ([result()], [leg("quantize", "cancelled"), leg("publish", "skipped")], Fate.STOPPED, "quantize"),
        (
            [result(status="failed")],
            [leg("quantize", "failure"), leg("publish", "cancelled")],
            Fate.FAILED,
            "quantize",
        ),
        ([], [leg("quantize", "success"), leg("publish", "success")], Fate.FAILED, "publish"),
        ([], [leg("quantize", "failure"), leg("publish", "skipped")], Fate.FAILED, "quantize"),
        # Nobody who has a machine of ours can say more than GitHub has seen.
        (
            [result(), result(stage="publish", status="published")],
            [leg("quantize", "failure")],
            Fate.FAILED,
            "quantize",
        ),
        (
            [result(stage="publish", status="published")],
            [leg("quantize", "failure"), leg("publish", "skipped")],
            Fate.FAILED,
            "quantize",
        ),
        (
            [result(stage="publish", status="unchanged")],
            [leg("quantize", "success"), leg("publish", "failure")],
            Fate.FAILED,
            "publish",
        ),
        ([result(status="unchanged")], [leg("quantize", "failure")], Fate.FAILED, "quantize"),
        ([result(stage="publish", status="published")], [leg("quantize", "success")], Fate.PUBLISHED, "publish"),
        ([result(stage="publish", status="published")], [leg("publish", "success")], Fate.PUBLISHED, "publish"),
        ([result(stage="publish", status="published")], None, Fate.PUBLISHED, "publish"),
        ([result()], None, Fate.UNKNOWN, "publish"),
        ([], None, Fate.UNKNOWN, "quantize"),
        ([], [], Fate.STOPPED, "quantize"),
        ([], [leg("quantize", "failure")], Fate.FAILED, "quantize"),
        ([], [leg("quantize", "startup_failure")], Fate.FAILED, "quantize"),
        ([], [leg("quantize", "success")], Fate.FAILED, "quantize"),
        ([], [leg("quantize", None, "in_progress")], Fate.STOPPED, "quantize"),
        ([], [leg("quantize", "failure"), leg("quantize", "cancelled")], Fate.STOPPED, "quantize"),
    ],
)
def test_a_release_job_ends_as_its_last_leg_did(
    results: list[JobResult], legs: list[RunningJob] | None, fate: Fate, stage: str
) -> None:
    [ending] = endings([job()], results, legs)
    assert (ending.fate, ending.stage) == (fate, stage)


@pytest.mark.parametrize(
    ("results", "legs", "fate"),
    [
        ([result(REFRESH, stage="refresh", status="published")], None, Fate.PUBLISHED),
        ([result(REFRESH, stage="refresh", status="failed")], None, Fate.FAILED),
        ([], [leg("refresh", "failure")], Fate.FAILED),
        ([], [leg("refresh", "cancelled")], Fate.STOPPED),
    ],
)
def test_a_job_without_a_gpu_has_one_leg(
    results: list[JobResult], legs: list[RunningJob] | None, fate: Fate
) -> None:
    [ending] = endings([REFRESH], results, legs)
    assert (ending.fate, ending.stage) == (fate, "refresh")


def test_a_failure_keeps_its_words_and_finds_its_log() -> None:
    failed = result(status="failed", exit_code=6, message="KL is too large", hint="Loosen the gate.")
    [ending] = endings([job()], [failed], [leg("quantize", "failure")])
    assert (ending.message, ending.hint, ending.exit_code) == ("KL is too large", "Loosen the gate.", 6)
    assert ending.url == "https://log"


def test_a_runner_that_died_is_an_environment_problem_with_a_fix() -> None:
    [ending] = endings([job()], [], [leg("quantize", "failure")])
    assert ending.exit_code == 8
    assert "the runner was lost" in ending.message
    assert "out of memory" in ending.hint


ALLOWED = timedelta(minutes=timeout_minutes(job()))
MINUTE = timedelta(minutes=1)


@pytest.mark.parametrize(
    ("of", "seen", "said"),
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
def test_what_github_cancelled_by_itself_has_failed(of: Job, seen: RunningJob, said: str) -> None:
    [ending] = endings([of], [result(of)] if seen.stage == "publish" else [], [leg("quantize", "success"), seen])
    assert (ending.fate, ending.stage, ending.exit_code) == (Fate.FAILED, seen.stage, 8)
    assert said in ending.message
    assert ending.hint


@pytest.mark.parametrize(
    "seen",
    [
        cancelled("quantize", ran=MINUTE),
        cancelled("quantize", ran=ALLOWED - 5 * MINUTE),
        cancelled("quantize", queued=timedelta(hours=23.9), ran=MINUTE),
        cancelled("quantize", queued=timedelta(hours=3), ran=None),
        leg("quantize", "cancelled"),
        leg("quantize", "cancelled", runner="", completed=NOW),
    ],
)
def test_what_a_person_cancelled_was_stopped(seen: RunningJob) -> None:
    [ending] = endings([job()], [], [seen])
    assert (ending.fate, ending.message, ending.exit_code) == (Fate.STOPPED, "it was cancelled", 0)


@pytest.mark.parametrize(
    ("made", "believed"),
    [
        (result(), True),
        (result(status="failed", exit_code=5), True),
        (result(stage="publish", status="published"), True),
        (result(REFRESH, stage="refresh", status="published"), True),
        (result(status="published"), False),
        (result(stage="publish", status="quantized"), False),
        (result(stage="refresh", status="published"), False),
        (result(stage="dance"), False),
        (result(job_id="another"), False),
        (result(target="quantized/Other-awq"), False),
        (result(content="0" * 64), False),
        (result(REFRESH, stage="publish", status="published"), False),
    ],
)
def test_a_leg_is_believed_what_it_can_have_done(made: JobResult, believed: bool) -> None:
    assert believable(made, {item.job_id: item for item in (job(), REFRESH)}) == believed
