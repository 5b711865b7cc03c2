"""Decisions in, order out."""

from __future__ import annotations

from bot.records import Job, JobKind, Plan, Skip
from bot.watch.release import make_plan
from tests.support.factories import entry, job, needs


def release(name: str, *, size: int = 1000, priority: int = 0, line: int = 1) -> Job:
    return job(entry(priority=priority, line=line), job_id=name, estimate=needs(download_bytes=size))


def small(name: str, kind: JobKind) -> Job:
    return job(job_id=name, kind=kind, estimate=None)


def test_finish_comes_before_refresh_before_release() -> None:
    plan = make_plan(
        [release("release", priority=1000), small("refresh", JobKind.REFRESH), small("finish", JobKind.FINISH)]
    )
    assert [item.job_id for item in plan.jobs] == ["finish", "refresh", "release"]


def test_releases_go_by_priority_then_size_then_line() -> None:
    plan = make_plan(
        [
            release("large", size=3000, line=1),
            release("later", size=1000, line=9),
            release("small", size=1000, line=2),
            release("low", size=1, priority=-1),
            release("urgent", size=9000, priority=5),
        ]
    )
    assert [item.job_id for item in plan.jobs] == ["urgent", "small", "later", "large", "low"]


def test_skips_keep_their_order_and_count_for_nothing() -> None:
    skips = [Skip(entry=entry(line=line), reason="up to date") for line in (3, 1, 2)]
    plan = make_plan([skips[0], release("a"), *skips[1:]], max_jobs=1)
    assert plan.skipped == tuple(skips)
    assert [item.job_id for item in plan.jobs] == ["a"]


def test_what_is_beyond_the_cap_is_deferred_not_dropped() -> None:
    plan = make_plan([release(f"job-{number}", size=number) for number in range(5)], max_jobs=2)
    assert [item.job_id for item in plan.jobs] == ["job-0", "job-1"]
    assert [item.job_id for item in plan.deferred] == ["job-2", "job-3", "job-4"]


def test_without_a_cap_everything_is_planned_and_with_one_below_zero_nothing() -> None:
    jobs = [release(f"job-{number}") for number in range(300)]
    assert make_plan(jobs).deferred == ()
    assert len(make_plan(jobs, max_jobs=-1).deferred) == 300


def test_nothing_to_do_is_an_empty_plan() -> None:
    assert make_plan([]) == Plan(jobs=(), skipped=())
