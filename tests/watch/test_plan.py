"""Decisions in, order and matrix out."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from bot.records import Job, JobKind, Skip
from bot.watch.plan import (
    HOSTED_ARTIFACT_BYTES,
    HOSTED_RUNNER,
    MATRIX_LIMIT,
    make_plan,
    matrices,
    publishable,
    timeout_minutes,
)
from tests.support.factories import entry, hub_file, job, needs


def release(name: str, *, size: int = 1000, priority: int = 0, line: int = 1) -> Job:
    return job(entry(priority=priority, line=line), job_id=name, estimate=needs(download_bytes=size))


def small(name: str, kind: JobKind) -> Job:
    return job(job_id=name, kind=kind, estimate=None, runner_labels=())


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


def test_what_waits_for_a_gpu_is_capped_by_itself() -> None:
    releases = [release(f"job-{number}", size=number) for number in range(5)]
    plan = make_plan([*releases, small("refresh", JobKind.REFRESH)], max_releases=2)
    assert [item.job_id for item in plan.jobs] == ["refresh", "job-0", "job-1"]
    assert len(make_plan([*releases, small("finish", JobKind.FINISH)], max_releases=-3).jobs) == 1


@pytest.mark.parametrize(("asked", "planned"), [(0, 0), (-1, 0), (10**6, MATRIX_LIMIT)])
def test_the_cap_is_never_more_than_a_matrix_holds(asked: int, planned: int) -> None:
    plan = make_plan([release(f"job-{number}") for number in range(300)], max_jobs=asked)
    assert (len(plan.jobs), len(plan.deferred)) == (planned, 300 - planned)
    assert MATRIX_LIMIT == 256


def test_nothing_to_do_is_an_empty_plan_and_an_empty_matrix() -> None:
    plan = make_plan([])
    assert (plan.jobs, plan.skipped, plan.deferred) == ((), (), ())
    assert matrices(plan) == {"quantize": [], "refresh": []}


def test_the_matrix_is_json_that_github_takes() -> None:
    jobs = [release(f"quantized--Model-{number}-01234567-89abcdef") for number in range(300)]
    made = matrices(make_plan(jobs))
    text = json.dumps(made)
    assert len(made["quantize"]) == 256
    assert len(text) < 1_000_000
    assert json.loads(text) == made
    assert made["quantize"][0] == {
        "job_id": "quantized--Model-0-01234567-89abcdef",
        "target": "quantized/Tiny-awq",
        "runs_on": ["self-hosted", "gpu", "gpu-16gb"],
        "timeout_minutes": 76,
    }


@pytest.mark.parametrize("kind", [JobKind.REFRESH, JobKind.FINISH])
def test_what_needs_no_gpu_runs_on_a_hosted_runner(kind: JobKind) -> None:
    (row,) = matrices(make_plan([small("a", kind)]))["refresh"]
    assert row["runs_on"] == [HOSTED_RUNNER]


@pytest.mark.parametrize(
    ("duration_s", "moved_bytes", "minutes"),
    [
        (0, 0, 30),
        (600, 0, 70),
        (3600, 0, 270),
        (0, 500_000_000, 31),
        (600, 10_500_000_000, 91),
        # Llama-3.1-70B: 141 GB in, 40 GB out. Alone the download takes an hour and a half.
        (9000, 181_000_000_000, 992),
        (10**6, 0, 5 * 24 * 60),
        (1e300, 0, 7200),
    ],
)
def test_a_timeout_holds_the_work_and_what_is_moved_within_what_github_allows(
    duration_s: float, moved_bytes: int, minutes: int
) -> None:
    size = {"download_bytes": moved_bytes * 3 // 4, "output_bytes": moved_bytes - moved_bytes * 3 // 4}
    assert timeout_minutes(job(estimate=needs(duration_s=duration_s, **size))) == minutes


@pytest.mark.parametrize("kind", [JobKind.REFRESH, JobKind.FINISH])
@pytest.mark.parametrize(
    ("weights_bytes", "minutes"), [(0, 30), (8_000_000_000, 46), (141_000_000_000, 312), (10**12, 360)]
)
def test_a_job_without_a_gpu_has_time_to_read_the_weights_back(
    kind: JobKind, weights_bytes: int, minutes: int
) -> None:
    made = replace(
        small("a", kind), source_files=(replace(hub_file("model.safetensors"), size_bytes=weights_bytes),)
    )
    assert timeout_minutes(made) == minutes


@pytest.mark.parametrize(
    ("of", "hosted", "planned"),
    [
        (job(estimate=needs(output_bytes=HOSTED_ARTIFACT_BYTES)), True, True),
        (job(estimate=needs(output_bytes=HOSTED_ARTIFACT_BYTES + 1)), True, False),
        (job(estimate=needs(output_bytes=HOSTED_ARTIFACT_BYTES + 1)), False, True),
        (small("a", JobKind.REFRESH), True, True),
    ],
)
def test_what_does_not_fit_a_hosted_machine_is_refused_before_it_is_made(
    of: Job, hosted: bool, planned: bool
) -> None:
    for plan in (make_plan([of]), make_plan([of], max_jobs=0)):
        found = publishable(plan, hosted=hosted, public=False)
        assert len(found.jobs + found.deferred) == planned
        assert [skip.exit_code for skip in found.skipped] == [8] * (not planned)
        assert all("AWQ_BOT_PUBLISH_ON" in skip.hint and "12.0 GB" in skip.reason for skip in found.skipped)
