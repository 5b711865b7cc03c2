"""The rows of the workflow's matrices: labels and time limits that GitHub accepts, and artifacts that fit."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from bot.github.matrix import HOSTED_ARTIFACT_BYTES, MATRIX_LIMIT, matrices, publishable, timeout_minutes
from bot.records import Job, JobKind, from_json, to_json
from bot.watch.plan import make_plan
from tests.support.factories import entry, hub_file, job, needs


def small(kind: JobKind) -> Job:
    return job(job_id="small", kind=kind, estimate=None)


def test_the_matrices_are_json_that_github_takes() -> None:
    jobs = [job(job_id=f"quantized--Model-{number}-01234567-89abcdef", estimate=needs()) for number in range(300)]
    made = matrices(make_plan([*jobs, small(JobKind.FINISH)], max_jobs=MATRIX_LIMIT))
    assert (len(made["quantize"]), len(made["refresh"])) == (255, 1)
    assert len(json.dumps(made)) < 1_000_000
    assert made["quantize"][0] == {
        "job_id": "quantized--Model-0-01234567-89abcdef",
        "target": "quantized/Tiny-awq",
        "runs_on": ["self-hosted", "gpu", "gpu-16gb"],
        "timeout_minutes": 91,
    }
    assert matrices(make_plan([])) == {"quantize": [], "refresh": []}


@pytest.mark.parametrize("kind", [JobKind.REFRESH, JobKind.FINISH])
def test_what_needs_no_gpu_runs_on_a_hosted_runner(kind: JobKind) -> None:
    [row] = matrices(make_plan([small(kind)]))["refresh"]
    assert row["runs_on"] == ["ubuntu-latest"]


def test_a_job_of_an_earlier_version_is_read_without_the_fields_that_it_had() -> None:
    written = json.loads(to_json(job())) | {"runner_labels": ["self-hosted", "gpu"], "modules_to_not_convert": []}
    assert from_json(Job, json.dumps(written)) == job()


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
def test_a_timeout_has_room_for_work_and_transfers_within_githubs_limits(
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
    made = replace(small(kind), source_files=(replace(hub_file("model.safetensors"), size_bytes=weights_bytes),))
    assert timeout_minutes(made) == minutes


@pytest.mark.parametrize(
    ("of", "hosted", "planned"),
    [
        (job(estimate=needs(output_bytes=HOSTED_ARTIFACT_BYTES)), True, True),
        (job(estimate=needs(output_bytes=HOSTED_ARTIFACT_BYTES + 1)), True, False),
        (job(estimate=needs(output_bytes=HOSTED_ARTIFACT_BYTES + 1)), False, True),
        (small(JobKind.REFRESH), True, True),
    ],
)
def test_an_artifact_too_large_for_a_hosted_runner_is_refused_before_it_is_made(
    of: Job, hosted: bool, planned: bool
) -> None:
    for plan in (make_plan([of]), make_plan([of], max_jobs=0)):
        found = publishable(plan, hosted=hosted, public=False)
        assert len(found.jobs + found.deferred) == planned
        assert [skip.exit_code for skip in found.skipped] == [8] * (not planned)
        assert all("AWQ_BOT_PUBLISH_ON" in skip.hint and "12.0 GB" in skip.reason for skip in found.skipped)


@pytest.mark.parametrize(("public", "planned"), [(True, False), (False, True)])
def test_a_private_model_is_refused_where_everyone_can_download_artifacts(public: bool, planned: bool) -> None:
    plan = publishable(make_plan([job(entry(private=True))]), hosted=True, public=public)
    assert len(plan.jobs) == planned
