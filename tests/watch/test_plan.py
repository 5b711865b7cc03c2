"""Decisions in, order out."""

from __future__ import annotations

import json

import pytest

from bot.records import Estimate, Job, JobKind, Plan, Skip, from_json, to_json
from bot.watch.release import make_plan
from tests.support.factories import entry, job, needs


def release(name: str, *, size: int = 1000, priority: int = 0, line: int = 1) -> Job:
    return job(entry(priority=priority, line=line), job_id=name, estimate=needs(download_bytes=size))


def test_finish_comes_before_refresh_before_releases_by_priority_then_size_then_line() -> None:
    plan = make_plan(
        [
            release("large", size=3000, line=1),
            release("later", size=1000, line=9),
            release("small", size=1000, line=2),
            release("low", size=1, priority=-1),
            release("urgent", size=9000, priority=5),
            job(job_id="refresh", kind=JobKind.REFRESH, estimate=None),
            job(job_id="finish", kind=JobKind.FINISH, estimate=None),
        ]
    )
    expected = ["finish", "refresh", "urgent", "small", "later", "large", "low"]
    assert [item.job_id for item in plan.jobs] == expected


def test_skips_keep_their_order_and_count_for_nothing() -> None:
    skips = [Skip(entry=entry(line=line), reason="up to date") for line in (3, 1, 2)]
    plan = make_plan([skips[0], release("a"), *skips[1:]], max_jobs=1)
    assert plan.skipped == tuple(skips)
    assert [item.job_id for item in plan.jobs] == ["a"]
    assert make_plan([]) == Plan(jobs=(), skipped=())


@pytest.mark.parametrize(("max_jobs", "planned"), [(None, 5), (2, 2), (-1, 0)])
def test_what_is_beyond_the_cap_is_deferred_not_dropped(max_jobs: int | None, planned: int) -> None:
    jobs = [release(f"job-{number}", size=number) for number in range(5)]
    plan = make_plan(jobs, max_jobs=max_jobs)
    assert (list(plan.jobs), list(plan.deferred)) == (jobs[:planned], jobs[planned:])


def test_what_an_earlier_version_planned_can_be_read() -> None:
    stored = json.loads(to_json(needs()))
    for added in ("quantized_share", "experts", "experts_per_token"):
        del stored[added]
    assert from_json(Estimate, json.dumps(stored)) == needs()
