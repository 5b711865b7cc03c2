"""What failed waits longer each time, then for a person; what another run works on waits for that run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from bot.github.attempts import after_failure, apply_retry_limits, busy_targets, iso, needs_person, overdue
from bot.records import Attempts, Job, JobKind, Plan, PlanTimes, RunningJob, Skip, Thresholds
from bot.watch.release import make_plan
from tests.support.factories import digests, entry, job

NOW = datetime(2026, 11, 22, 3, 17, 5, tzinfo=UTC)
TARGET = "quantized/Tiny-awq"
HOUR = timedelta(hours=1)


def fail(before: Attempts | None, *, content: str = "same", now: datetime = NOW, run: str = "") -> Attempts:
    return after_failure(before, target=TARGET, content=content, now=now, run=run)


def test_each_failure_waits_longer_and_the_fourth_waits_for_a_person() -> None:
    tried = None
    waits = ("2026-11-22T04:17:05Z", "2026-11-22T09:17:05Z", "2026-11-23T03:17:05Z", None, None)
    for count, next_try in enumerate(waits, 1):
        tried = fail(tried)
        assert tried == Attempts(
            target=TARGET, content="same", count=count, next_try=next_try, waits_for_person=next_try is None
        )


def test_other_content_is_counted_again_from_one_in_the_same_issue() -> None:
    before = Attempts(target=TARGET, content="before", count=4, waits_for_person=True, issue=7)
    tried = fail(before, content="after")
    assert (tried.count, tried.issue, tried.waits_for_person) == (1, 7, False)


def test_a_run_is_counted_once() -> None:
    first = fail(None, run="12.1")
    assert fail(first, run="12.1", now=NOW + HOUR) == first
    assert fail(first, run="12.2").count == 2
    assert fail(fail(None)).count == 2


def test_attempts_are_counted_per_content_and_gate() -> None:
    one = job()
    assert one.attempt_digest == job(reason="another reason", tag="another").attempt_digest
    looser = replace(one, entry=entry(gate=Thresholds(max_kl=0.5)))
    other = replace(one, digests=replace(digests(), recipe="0" * 64))
    assert len({item.attempt_digest for item in (one, looser, other)}) == 3


def held(jobs: Sequence[Job | Skip], **facts: Any) -> Plan:
    return apply_retry_limits(make_plan(jobs), now=NOW, **{"attempts": ()} | facts)


def tried(**fields: Any) -> Attempts:
    standard: dict[str, Any] = {"target": TARGET, "content": job().attempt_digest, "count": 2, "issue": 9}
    return Attempts(**standard | fields)


@pytest.mark.parametrize(
    ("attempts", "runs"),
    [
        (tried(next_try=iso(NOW + HOUR)), False),
        (tried(next_try=iso(NOW)), True),
        (tried(next_try=iso(NOW - HOUR)), True),
        (tried(next_try=iso(NOW + 24 * HOUR)), False),
        (tried(next_try=iso(NOW + 365 * 24 * HOUR)), True),  # by a clock that was ahead, or ours is behind
        (tried(waits_for_person=True), False),
        (tried(waits_for_person=True, content="something else"), True),
        (tried(waits_for_person=True, target="quantized/Other-awq"), True),
    ],
)
def test_a_job_waits_for_its_time_or_a_person(attempts: Attempts, runs: bool) -> None:
    plan = held([job()], attempts=(attempts,))
    assert len(plan.jobs) == runs
    assert held([job()], attempts=(attempts,), force=True).jobs == (job(),)
    if not runs:
        [skip] = plan.skipped
        assert skip.blocked
        assert skip.exit_code == 0
        assert "Close the issue" in skip.hint
        assert plan.skipped == held([skip], attempts=None).skipped  # what is skipped stays skipped


def test_the_reason_says_when() -> None:
    [skip] = held([job()], attempts=(tried(count=1, next_try=iso(NOW + HOUR)),)).skipped
    assert skip.reason == "failed once, next attempt not before 2026-11-22 04:17 UTC"


def many(count: int) -> list[Job]:
    return [
        job(entry(target=f"quantized/m{number:03}-awq", line=number), job_id=f"m{number}")
        for number in range(count)
    ]


def test_few_jobs_start_when_earlier_failures_are_unknown() -> None:
    plan = held(many(6), attempts=None)
    assert (len(plan.jobs), len(plan.deferred)) == (4, 2)


def test_waiting_jobs_make_room_for_others_in_a_full_matrix() -> None:
    jobs = many(300)
    waits = tried(target="quantized/m000-awq", content=jobs[0].attempt_digest, waits_for_person=True)
    plan = held(jobs, attempts=(waits,))
    assert (len(plan.jobs), len(plan.deferred), len(plan.skipped)) == (256, 43, 1)
    assert plan.jobs[0].job_id == "m1"


def test_releases_of_other_runs_count_towards_the_limit() -> None:
    others = [
        seen("", "pending", target="quantized/a-awq"),
        seen("quantize", "in_progress", target="quantized/b-awq"),
        seen("quantize", conclusion="success", target="quantized/c-awq"),
        seen("quantize", conclusion="failure", target="quantized/d-awq"),
        seen("refresh", "in_progress", target="quantized/e-awq"),
    ]
    assert len(held(many(9), running=others, max_releases=5).jobs) == 2
    assert held(many(9), running=others, max_releases=2).jobs == ()
    assert len(held(many(9), max_releases=5).deferred) == 4


def test_jobs_without_a_gpu_do_not_count_towards_the_limit() -> None:
    refresh = job(job_id="refresh", kind=JobKind.REFRESH, estimate=None)
    plan = held([*many(5), refresh], max_releases=2)
    assert [item.job_id for item in plan.jobs] == ["refresh", "m0", "m1"]
    assert held([*many(5), refresh], max_releases=-3).jobs == (refresh,)


def seen(stage: str, status: str = "completed", conclusion: str | None = None, target: str = TARGET) -> RunningJob:
    return RunningJob(stage=stage, target=target, status=status, conclusion=conclusion)


@pytest.mark.parametrize(
    ("jobs", "busy"),
    [
        ([], False),
        ([seen("quantize", "in_progress")], True),
        ([seen("quantize", "queued")], True),
        ([seen("", "pending")], True),
        ([seen("quantize", conclusion="failure")], False),
        ([seen("quantize", conclusion="cancelled")], False),
        ([seen("quantize", conclusion="success")], True),
        ([seen("quantize", conclusion="success"), seen("publish", "waiting")], True),
        ([seen("quantize", conclusion="success"), seen("publish", conclusion="success")], False),
        ([seen("quantize", conclusion="success"), seen("publish", conclusion="failure")], False),
        ([seen("quantize", conclusion="success"), seen("publish", conclusion="skipped")], False),
        ([seen("refresh", conclusion="success")], False),
        ([seen("refresh", "in_progress")], True),
        ([seen("quantize", "in_progress", target="quantized/Other-awq")], False),
    ],
)
def test_a_target_is_busy_until_the_quantized_model_is_published(jobs: list[RunningJob], busy: bool) -> None:
    assert (TARGET in busy_targets(jobs)) == busy
    plan = held([job()], running=jobs, force=True)
    assert len(plan.jobs) == (not busy)


@pytest.mark.parametrize(
    ("times", "said"),
    [
        (PlanTimes(), None),
        (PlanTimes(last_success=NOW - 5 * HOUR), None),
        (PlanTimes(last_success=NOW - 6 * HOUR), None),
        (
            PlanTimes(last_success=NOW - 7 * HOUR),
            "the last successful plan was made 2026-11-21 20:17 UTC, 7 hours ago",
        ),
        (PlanTimes(oldest_run=NOW - HOUR), None),
        (PlanTimes(oldest_run=NOW - 50 * HOUR), "no plan since at least 2026-11-20 01:17 UTC"),
    ],
)
def test_a_plan_is_overdue_when_the_last_good_one_is_too_old(times: PlanTimes, said: str | None) -> None:
    assert overdue(times, now=NOW, limit=6 * HOUR) == said


@pytest.mark.parametrize(
    ("reason", "needed"),
    [
        ("gated: our token has no access", True),
        ("the target answers 403", True),
        ("the Hub answers 503, after 6 tries", False),
        ("the Hub limits our requests, after 6 tries", False),
        ("the Hub at huggingface.co cannot be reached: timed out", False),
        ("lab/Tiny at 01234567: config.json answers 502", False),
        ("upload incomplete: model-00002-of-00002.safetensors is listed in the index but missing", False),
    ],
)
def test_a_reason_that_passes_needs_no_person(reason: str, needed: bool) -> None:
    assert needs_person(Skip(entry=entry(), reason=reason, blocked=True, exit_code=3)) == needed
    assert not needs_person(Skip(entry=entry(), reason=reason, blocked=True))
