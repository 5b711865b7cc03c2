"""What legs say of themselves, and what GitHub saw of them: lost, cancelled, forged."""

from __future__ import annotations

import shutil
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from tests.github.test_report import LEG, TARGET, count, planned, publication
from tests.support.factories import report
from tests.support.github_api.server import Job
from tests.support.workspace import Workspace


@pytest.mark.parametrize(
    ("conclusion", "said"),
    [
        ("failure", "the runner was lost"),
        ("timed_out", "it took longer than the workflow allows"),
        ("success", "the job succeeded and left no result"),
    ],
)
def test_a_leg_that_left_no_result_failed(place: Workspace, conclusion: str, said: str) -> None:
    planned(place)
    place.api.add_run(1, Job(name="plan"), Job(name=LEG, conclusion=conclusion))
    ended = place.report()
    [issue] = place.api.open_issues()
    assert said in issue.body
    assert said in ended.summary
    assert issue.labels == ["awq-bot", "awq-bot: environment"]


@pytest.mark.parametrize(
    ("runner", "queued", "ran", "said"),
    [
        ("gpu-1", timedelta(minutes=1), timedelta(hours=1), "it took longer than the workflow allows"),
        (None, timedelta(hours=24), timedelta(), "no runner with the labels self-hosted, gpu, gpu-16gb took it"),
    ],
)
def test_what_github_cancelled_by_itself_is_an_attempt(
    place: Workspace, runner: str | None, queued: timedelta, ran: timedelta, said: str
) -> None:
    planned(place)
    created = datetime.now(UTC) - timedelta(days=2)
    started = created + queued
    times: dict[str, Any] = {"created_at": created, "started_at": started, "completed_at": started + ran}
    place.api.add_run(1, Job(name=LEG, conclusion="cancelled", runner=runner, **times))
    place.report()
    [issue] = place.api.open_issues()
    assert said in issue.body
    assert count(issue).count == 1
    assert place.plan().outputs["quantize_count"] == "0"


@pytest.mark.parametrize("conclusion", ["cancelled", "skipped"])
def test_what_was_cancelled_has_not_failed(place: Workspace, conclusion: str) -> None:
    planned(place)
    place.api.add_run(1, Job(name=LEG, conclusion=conclusion))
    ended = place.report()
    assert place.api.issues == {}
    assert f"it was {conclusion}" in ended.summary
    assert "❌" not in ended.summary


def test_a_publish_leg_that_died_failed_though_quantizing_went_well(place: Workspace) -> None:
    planned(place)
    [job] = place.planned()
    place.leave(job, status="quantized", exit_code=0, message="", hint="", report=report())
    place.api.add_run(1, Job(name=LEG), Job(name=f"{TARGET} / publish {TARGET}", conclusion="failure"))
    place.report()
    [issue] = place.api.open_issues()
    assert "publish: the runner was lost" in issue.body.replace("\\", "")


def test_when_github_does_not_answer_nothing_is_counted(place: Workspace) -> None:
    planned(place)
    place.api.fail("/actions/", status=503)
    ended = place.report()
    assert ended.code == 0
    assert place.api.issues == {}
    assert "❔ unknown" in ended.summary
    assert "How jobs without a result ended is not known." in ended.summary


def test_an_issue_that_cannot_be_written_is_noted_and_the_page_is_whole(place: Workspace) -> None:
    planned(place)
    [job] = place.planned()
    place.leave(job)
    ended = place.report(GITHUB_TOKEN=place.api.token(may_write=False))
    assert ended.code == 0
    assert "An issue could not be written." in ended.summary
    assert "layer 3: not finite" in ended.summary


def test_forged_and_damaged_results_are_named_and_not_believed(place: Workspace) -> None:
    planned(place)
    [job] = place.planned()
    good = {"exit_code": 0, "message": "", "hint": ""}
    place.leave(job, stage="quantize", status="published", publication=publication(), **good)
    place.leave(replace(job, job_id="quantized--Other-awq-01234567-89abcdef"), status="unchanged", **good)
    place.leave(job, stage="publish", target="quantized/Other-awq", status="published", **good)
    results = place.root / "results" / f"result-quantize-{job.job_id}"
    (results / "broken.json").write_text("{")
    (results / "large.json").write_text(" " * 1_000_001)
    (results / "link.json").symlink_to("/etc/hostname")
    ended = place.report()
    assert ended.summary.count("- ") >= 6
    assert "### Rejected results" in ended.summary
    assert len([item for item in ended.annotations if item[0] == "warning"]) == 6
    assert "✅" not in ended.summary
    assert place.api.issues == {}


def test_a_result_speaks_for_the_leg_whose_artifact_it_is_and_no_other(place: Workspace) -> None:
    place.seed("Tiny", "Other")
    place.plan()
    one, two = place.planned()
    good = {"exit_code": 0, "message": "", "hint": ""}
    published = place.leave(one, stage="publish", status="published", publication=publication(), **good)
    quantize, deeper, flat = (
        place.root / "results" / name
        for name in (
            f"result-quantize-{one.job_id}",
            f"result-quantize-{two.job_id}/result-publish-{one.job_id}",
            "",
        )
    )
    for folder in (quantize, deeper, flat):
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(published, folder)
    shutil.rmtree(published.parent)
    ended = place.report()
    assert "✅" not in ended.summary
    assert [message.rpartition(": ")[2] for level, _, message in ended.annotations] == [
        "uploaded by a different job"
    ] * 2


def test_a_leg_that_failed_as_github_saw_it_has_published_nothing(place: Workspace) -> None:
    planned(place)
    [job] = place.planned()
    good = {"exit_code": 0, "message": "", "hint": ""}
    place.leave(job, stage="publish", status="published", publication=publication(), **good)
    place.api.add_run(
        1, Job(name=LEG, conclusion="failure"), Job(name=f"{TARGET} / publish {TARGET}", conclusion="skipped")
    )
    assert "✅" not in place.report().summary
    [issue] = place.api.open_issues()
    assert "the runner was lost" in issue.body
