"""How a job ended: from the results that its stages left, and from GitHub's API."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from bot.github.matrix import timeout_minutes
from bot.github.results import final_results, is_plausible
from bot.records import Job, JobKind, JobResult, RunningJob, Status, job_result
from tests.github.test_attempts import NOW
from tests.support.factories import job

TARGET = "quantized/Tiny-awq"
REFRESH = job(job_id="refresh", kind=JobKind.REFRESH, estimate=None)


def result(
    of: Job | None = None, stage: str = "quantize", status: Status = Status.READY, **fields: Any
) -> JobResult:
    return replace(job_result(of or job(), stage=stage, status=status), **fields)


def seen(stage: str, conclusion: str | None, status: str = "completed", **fields: Any) -> RunningJob:
    standard: dict[str, Any] = {"url": "https://log", "runner": "awq-1"}
    return RunningJob(stage=stage, target=TARGET, status=status, conclusion=conclusion, **standard | fields)


def cancelled(stage: str, *, queued: timedelta = timedelta(), ran: timedelta | None) -> RunningJob:
    """ran: None when no runner ever took it."""
    started = NOW + queued
    times: dict[str, Any] = {"created": NOW, "started": started, "completed": started + (ran or timedelta())}
    return seen(stage, "cancelled", **times, runner="" if ran is None else "awq-1")


@pytest.mark.parametrize(
    ("left", "on_github", "ended"),
    # Results that were left; how jobs ended on GitHub, None if it does not answer; how the job ended.
    [
        ("quantize: ready, publish: published", "", "publish: published"),
        ("publish: published", "", "publish: published"),
        ("quantize: ready, publish: unchanged", "", "publish: unchanged"),
        ("quantize: ready, publish: failed", "", "publish: failed"),
        ("quantize: unchanged", "", "quantize: unchanged"),
        ("quantize: failed", "quantize: failure, publish: cancelled", "quantize: failed"),
        ("quantize: ready", "quantize: success, publish: failure", "publish: failed"),
        ("quantize: ready", "quantize: success, publish: cancelled", "publish: stopped"),
        ("quantize: ready", "quantize: success", "publish: stopped"),
        ("quantize: ready", "quantize: failure", "quantize: failed"),
        ("quantize: ready", "quantize: failure, publish: skipped", "quantize: failed"),
        ("quantize: ready", "quantize: cancelled, publish: skipped", "quantize: stopped"),
        ("quantize: ready", None, "publish: unknown"),
        ("publish: published", "publish: success", "publish: published"),
        ("publish: published", None, "publish: published"),
        # A runner cannot claim a success that GitHub did not see.
        ("quantize: ready, publish: published", "quantize: failure", "quantize: failed"),
        ("publish: published", "quantize: failure, publish: skipped", "quantize: failed"),
        ("publish: unchanged", "quantize: success, publish: failure", "publish: failed"),
        ("quantize: unchanged", "quantize: failure", "quantize: failed"),
        ("", "quantize: success, publish: success", "publish: failed"),
        ("", "quantize: failure, publish: skipped", "quantize: failed"),
        ("", "quantize: failure", "quantize: failed"),
        ("", "quantize: startup_failure", "quantize: failed"),
        ("", "quantize: success", "quantize: failed"),
        ("", "quantize: in_progress", "quantize: stopped"),
        ("", "quantize: failure, quantize: cancelled", "quantize: stopped"),
        ("", "", "quantize: stopped"),
        ("", None, "quantize: unknown"),
        ("refresh: published", None, "refresh: published"),
        ("", "refresh: failure", "refresh: failed"),
        ("", "refresh: cancelled", "refresh: stopped"),
    ],
)
def test_a_job_ends_as_its_last_stage_did(left: str, on_github: str | None, ended: str) -> None:
    of = REFRESH if "refresh" in ended else job()
    results = [result(of, stage, Status(status)) for stage, status in _pairs(left)]
    running = None if on_github is None else [_job_on_github(*pair) for pair in _pairs(on_github)]
    [final] = final_results([of], results, running)
    assert f"{final.stage}: {final.status}" == ended


def _pairs(text: str) -> list[tuple[str, str]]:
    return [(stage, word) for stage, _, word in (item.partition(": ") for item in text.split(", ") if item)]


def _job_on_github(stage: str, word: str) -> RunningJob:
    return seen(stage, None, word) if word == "in_progress" else seen(stage, word)


def test_a_failure_keeps_its_message_and_gets_its_log() -> None:
    failed = result(status=Status.FAILED, exit_code=6, message="KL is too large", hint="Loosen the gate.")
    [ended] = final_results([job()], [failed], [seen("quantize", "failure")])
    assert (ended.message, ended.hint, ended.exit_code) == ("KL is too large", "Loosen the gate.", 6)
    assert ended.url == "https://log"


@pytest.mark.parametrize(
    ("conclusion", "said", "fix"),
    [
        ("failure", "the runner was lost", "out of memory"),
        ("timed_out", "it took longer than the workflow allows", "connection slow"),
        ("success", "the job succeeded and left no result", "Run the workflow again"),
    ],
)
def test_a_job_without_a_result_is_an_environment_problem_with_a_fix(conclusion: str, said: str, fix: str) -> None:
    [ended] = final_results([job()], [], [seen("quantize", conclusion)])
    assert ended.exit_code == 8
    assert said in ended.message
    assert fix in ended.hint


def test_name_and_log_come_from_the_plan_and_the_api_and_not_from_the_result() -> None:
    forged = result(status=Status.FAILED, repo_id="evil/repo", url="https://evil.example")
    for running, url in (([seen("quantize", "failure")], "https://log"), (None, "")):
        [ended] = final_results([job()], [forged], running)
        assert (ended.repo_id, ended.url) == ("lab/Tiny", url)


ALLOWED = timedelta(minutes=timeout_minutes(job()))
MINUTE = timedelta(minutes=1)
LABELS = "self-hosted, gpu, gpu-16gb"


@pytest.mark.parametrize(
    ("of", "last", "said"),
    [
        (job(), cancelled("quantize", ran=ALLOWED + MINUTE), "it took longer than the workflow allows"),
        (job(), cancelled("quantize", ran=ALLOWED - MINUTE), "it took longer than the workflow allows"),
        (job(), cancelled("publish", ran=350 * MINUTE), "publish: it took longer"),
        (REFRESH, cancelled("refresh", ran=timeout_minutes(REFRESH) * MINUTE), "refresh: it took longer"),
        (job(), cancelled("quantize", queued=24 * 60 * MINUTE, ran=None), f"labels {LABELS} took it within a day"),
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
        (result(status=Status.STOPPED), False),
        (result(status=Status.UNKNOWN), False),
        (result(job_id="another"), False),
        (result(target="quantized/Other-awq"), False),
        (result(content="0" * 64), False),
        (result(REFRESH, stage="publish", status=Status.PUBLISHED), False),
    ],
)
def test_a_result_is_plausible_if_its_stage_can_have_done_that(made: JobResult, plausible: bool) -> None:
    assert is_plausible(made, {item.job_id: item for item in (job(), REFRESH)}) == plausible
