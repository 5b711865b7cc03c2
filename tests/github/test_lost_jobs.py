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
        ("success", "the job ended well and left no result"),
    ],
)
def test_a_leg_that_left_no_result_failed(workspace: Workspace, conclusion: str, said: str) -> None:
    planned(workspace)
    workspace.api.add_run(1, Job(name="plan"), Job(name=LEG, conclusion=conclusion))
    ended = workspace.report()
    [issue] = workspace.api.open_issues()
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
    workspace: Workspace, runner: str | None, queued: timedelta, ran: timedelta, said: str
) -> None:
    planned(workspace)
    created = datetime.now(UTC) - timedelta(days=2)
    started = created + queued
    times: dict[str, Any] = {"created_at": created, "started_at": started, "completed_at": started + ran}
    workspace.api.add_run(1, Job(name=LEG, conclusion="cancelled", runner=runner, **times))
    workspace.report()
    [issue] = workspace.api.open_issues()
    assert said in issue.body
    assert count(issue).count == 1
    assert workspace.plan().outputs["quantize_count"] == "0"


@pytest.mark.parametrize("conclusion", ["cancelled", "skipped"])
def test_what_was_cancelled_has_not_failed(workspace: Workspace, conclusion: str) -> None:
    planned(workspace)
    workspace.api.add_run(1, Job(name=LEG, conclusion=conclusion))
    ended = workspace.report()
    assert workspace.api.issues == {}
    assert f"it was {conclusion}" in ended.summary
    assert "❌" not in ended.summary


def test_a_publish_leg_that_died_failed_though_quantizing_went_well(workspace: Workspace) -> None:
    planned(workspace)
    [job] = workspace.planned()
    workspace.leave(job, status="quantized", exit_code=0, message="", hint="", report=report())
    workspace.api.add_run(1, Job(name=LEG), Job(name=f"{TARGET} / publish {TARGET}", conclusion="failure"))
    workspace.report()
    [issue] = workspace.api.open_issues()
    assert "publish: the runner was lost" in issue.body.replace("\\", "")


def test_when_github_does_not_answer_nothing_is_counted(workspace: Workspace) -> None:
    planned(workspace)
    workspace.api.fail("/actions/", status=503)
    ended = workspace.report()
    assert ended.code == 0
    assert workspace.api.issues == {}
    assert "❔ unknown" in ended.summary
    assert "What became of lost jobs is not known." in ended.summary


def test_an_issue_that_cannot_be_written_is_noted_and_the_page_is_whole(workspace: Workspace) -> None:
    planned(workspace)
    [job] = workspace.planned()
    workspace.leave(job)
    ended = workspace.report(GITHUB_TOKEN=workspace.api.token(may_write=False))
    assert ended.code == 0
    assert "An issue could not be written." in ended.summary
    assert "layer 3: not finite" in ended.summary


def test_forged_and_damaged_results_are_named_and_not_believed(workspace: Workspace) -> None:
    planned(workspace)
    [job] = workspace.planned()
    good = {"exit_code": 0, "message": "", "hint": ""}
    workspace.leave(job, stage="quantize", status="published", publication=publication(), **good)
    workspace.leave(replace(job, job_id="quantized--Other-awq-01234567-89abcdef"), status="unchanged", **good)
    workspace.leave(job, stage="publish", target="quantized/Other-awq", status="published", **good)
    results = workspace.root / "results" / f"result-quantize-{job.job_id}"
    (results / "broken.json").write_text("{")
    (results / "large.json").write_text(" " * 1_000_001)
    (results / "link.json").symlink_to("/etc/hostname")
    ended = workspace.report()
    assert ended.summary.count("- ") >= 6
    assert "### Results that were not believed" in ended.summary
    assert len([item for item in ended.annotations if item[0] == "warning"]) == 6
    assert "✅" not in ended.summary
    assert workspace.api.issues == {}


def test_a_result_speaks_for_the_leg_whose_artifact_it_is_and_no_other(workspace: Workspace) -> None:
    workspace.seed("Tiny", "Other")
    workspace.plan()
    one, two = workspace.planned()
    good = {"exit_code": 0, "message": "", "hint": ""}
    published = workspace.leave(one, stage="publish", status="published", publication=publication(), **good)
    quantize, deeper, flat = (
        workspace.root / "results" / name
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
    ended = workspace.report()
    assert "✅" not in ended.summary
    assert [message.rpartition(": ")[2] for level, _, message in ended.annotations] == [
        "speaks for another leg"
    ] * 2


def test_a_leg_that_failed_as_github_saw_it_has_published_nothing(workspace: Workspace) -> None:
    planned(workspace)
    [job] = workspace.planned()
    good = {"exit_code": 0, "message": "", "hint": ""}
    workspace.leave(job, stage="publish", status="published", publication=publication(), **good)
    workspace.api.add_run(
        1, Job(name=LEG, conclusion="failure"), Job(name=f"{TARGET} / publish {TARGET}", conclusion="skipped")
    )
    assert "✅" not in workspace.report().summary
    [issue] = workspace.api.open_issues()
    assert "the runner was lost" in issue.body
