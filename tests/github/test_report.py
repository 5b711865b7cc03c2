"""`awq-bot actions report`: how a run ended, the issues about it, and results that are not trusted."""

from __future__ import annotations

import shutil
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from bot.github.issues import mark, read_mark
from bot.records import Attempts, Job, Publication, Status
from tests.support.factories import HEAD, report
from tests.support.github_api.server import Issue
from tests.support.github_api.server import Job as RunningJob
from tests.support.workspace import Workspace

TARGET = "quantized/Tiny-awq"
JOB = f"{TARGET} / quantize {TARGET}"  # as GitHub names it
HOUR = timedelta(hours=1)
WELL: dict[str, Any] = {"exit_code": 0, "message": "", "hint": ""}


def publication(tag: str = "upstream-01234567-89abcdef") -> Publication:
    url = f"https://huggingface.co/{TARGET}"
    return Publication(repo_id=TARGET, sha=HEAD, tag=tag, url=url, private=False, new=True, duration_s=3.0)


def failed(workspace: Workspace, run: int, **fields: object) -> Issue:
    """One more run in which the one planned job failed; the issue about it."""
    [job] = workspace.planned()
    workspace.leave(job, **fields)
    ended = workspace.report(GITHUB_RUN_ID=str(run))
    assert ended.code == 0, ended.err
    [issue] = workspace.api.open_troubles()
    return issue


def count(issue: Issue) -> Attempts:
    tried = read_mark(issue.body, issue=issue.number)
    assert tried is not None
    return tried


def test_a_failure_opens_one_issue_and_is_counted_four_times(workspace: Workspace, planned: Job) -> None:
    for number, hours in enumerate((1, 6, 24), 1):
        before = datetime.now(UTC)
        issue = failed(workspace, number)
        tried = count(issue)
        assert failed(workspace, number) is issue  # the report of the same run, made again, counts nothing
        assert count(issue) == tried
        assert (tried.count, tried.waits_for_person) == (number, False)
        assert tried.next_try is not None
        wait = datetime.fromisoformat(tried.next_try) - before
        assert abs(wait - timedelta(hours=hours)) < timedelta(minutes=5)
    assert workspace.api.comments_on(issue.number) == []
    for number in (4, 5):
        assert failed(workspace, number) is issue
        assert count(issue).waits_for_person
        assert len(workspace.api.comments_on(issue.number)) == 1
    assert "No more automatic attempts" in issue.body
    issue.state = "closed"
    again = failed(workspace, 6)
    assert again.number != issue.number
    assert count(again).count == 1


def test_the_issue_says_what_failed_why_and_what_to_do_until_it_is_published(
    workspace: Workspace, planned: Job
) -> None:
    issue = failed(workspace, 7)
    assert issue.title == f"awq-bot: {TARGET}: layer 3: not finite"
    assert issue.labels == ["awq-bot", "awq-bot: quantization"]
    assert "**cause** lab/Tiny: layer 3: not finite" in issue.body
    assert "**fix** Look at its weights." in issue.body
    assert "/actions/runs/7" in issue.body
    assert "Attempt 1 of 4" in issue.body
    issue.labels = [*issue.labels, "help wanted"]
    failed(workspace, 8, exit_code=6, report=report(kl_mean=0.4321))
    assert issue.labels == ["help wanted", "awq-bot", "awq-bot: quality gate"]
    assert "0.4321" in issue.body
    workspace.leave(planned, status=Status.READY, **WELL)
    workspace.leave(
        planned, stage="publish", status=Status.PUBLISHED, publication=publication(planned.tag), **WELL
    )
    ended = workspace.report(GITHUB_RUN_ID="9")
    assert "1 published" in ended.summary
    assert issue.state == "closed"
    [said] = workspace.api.comments_on(issue.number)
    assert planned.tag in said
    assert "/actions/runs/9" in said


@pytest.mark.parametrize("author", ["mallory", "github-actions", "someone-else[bot]"])
def test_a_mark_in_an_issue_of_another_author_is_ignored(workspace: Workspace, planned: Job, author: str) -> None:
    forged = mark(Attempts(target=TARGET, content=planned.attempt_digest, count=4))
    theirs = workspace.api.open_issue(author, "awq-bot: it failed", forged)
    assert workspace.plan().outputs["quantize_count"] == "1"
    workspace.leave(planned)
    for run in ("1", "2"):
        workspace.report(GITHUB_TOKEN=workspace.api.token("awq-release[bot]"), GITHUB_RUN_ID=run)
    assert theirs.body == forged
    [own] = [issue for issue in workspace.api.open_troubles() if issue is not theirs]
    assert (own.author, count(own).count) == ("awq-release[bot]", 2)


MARK = mark(Attempts(target="other/target", content="0" * 64, count=4))


@pytest.mark.parametrize(
    "said", ["::error::x", "a`b|c\n## d <b>x</b> @me #1", "%0A::set-output name=a::b", f"boom\n{MARK}\n"]
)
def test_an_error_text_from_a_runner_is_only_text_and_shows_no_token(
    workspace: Workspace, planned: Job, said: str
) -> None:
    token = workspace.hub.token("reader", role="read")
    issue = failed(workspace, 1, message=f"{said} 401 for Bearer {token}", hint=f"{said}{token}")
    ended = workspace.report()
    assert count(issue).target == TARGET
    assert [part for part in ("@me", "\n## d", MARK, token) if part in issue.body] == []
    assert "<b>" not in issue.body.replace("\\<", "")
    assert "\n" not in issue.title
    assert "401 for Bearer" in issue.body
    assert {name for name, _, _ in ended.commands} == {"add-mask"}
    assert token not in issue.title + ended.everything
    assert token.replace("_", "\\_") not in issue.body + ended.summary


def test_no_plan_is_nothing_to_report(workspace: Workspace) -> None:
    ended = workspace.report()
    assert (ended.code, ended.summary) == (0, "")
    assert "nothing to report" in ended.out


def test_one_failed_model_is_listed_apart_from_the_published(workspace: Workspace) -> None:
    workspace.seed("Tiny", "Other", "Third")
    workspace.plan()
    bad, *fine = sorted(workspace.planned(), key=lambda job: job.entry.repo_id != "lab/Other")
    workspace.leave(bad)
    for job in fine:
        workspace.leave(job, status=Status.UNCHANGED, **WELL, report=report())
    ended = workspace.report()
    assert "## 2 already published, 1 failed" in ended.summary
    assert ended.summary.count("| 0.0123 | 93.5&nbsp;% | 16.00&nbsp;→&nbsp;16.40 | 4.16 |") == 2
    [issue] = workspace.api.open_troubles()
    assert "quantized/Other-awq" in issue.title


def test_a_job_without_a_result_failed_unless_a_person_cancelled_it(workspace: Workspace, planned: Job) -> None:
    workspace.api.add_run(1, RunningJob(name="plan"), RunningJob(name=JOB, conclusion="cancelled"))
    ended = workspace.report()
    assert workspace.api.troubles() == []
    assert "it was cancelled" in ended.summary
    assert "❌" not in ended.summary
    created = datetime.now(UTC) - timedelta(days=2)
    for run, runner, started, ended_at, said in (
        (3, "gpu-1", created, created + HOUR, "it took longer than the workflow allows"),
        (4, None, created + 24 * HOUR, created + 24 * HOUR, "gpu-16gb took it within a day"),
    ):
        times: dict[str, Any] = {"created_at": created, "started_at": started, "completed_at": ended_at}
        workspace.api.add_run(run, RunningJob(name=JOB, conclusion="cancelled", runner=runner, **times))
        assert said in workspace.report(GITHUB_RUN_ID=str(run)).summary
    workspace.api.add_run(2, RunningJob(name=JOB, conclusion="failure"))
    ended = workspace.report(GITHUB_RUN_ID="2")
    [issue] = workspace.api.open_troubles()
    assert "the runner was lost" in issue.body
    assert "the runner was lost" in ended.summary
    assert issue.labels == ["awq-bot", "awq-bot: environment"]
    assert workspace.plan().outputs["quantize_count"] == "0"


def test_when_github_does_not_answer_nothing_is_counted(workspace: Workspace, planned: Job) -> None:
    workspace.api.fail("/actions/", status=503)
    ended = workspace.report()
    assert ended.code == 0
    assert workspace.api.troubles() == []
    assert "❔ unknown" in ended.summary
    assert "How jobs without a result ended is not known." in ended.summary


def test_an_issue_that_cannot_be_written_is_noted_and_the_page_is_whole(
    workspace: Workspace, planned: Job
) -> None:
    workspace.leave(planned)
    ended = workspace.report(GITHUB_TOKEN=workspace.api.token(may_write=False))
    assert ended.code == 0
    assert "An issue could not be written." in ended.summary
    assert "layer 3: not finite" in ended.summary


def test_forged_and_damaged_results_are_rejected_and_listed(workspace: Workspace, planned: Job) -> None:
    workspace.leave(planned, stage="quantize", status=Status.PUBLISHED, publication=publication(), **WELL)
    workspace.leave(
        replace(planned, job_id="quantized--Other-awq-01234567-89abcdef"), status=Status.UNCHANGED, **WELL
    )
    workspace.leave(planned, stage="publish", target="quantized/Other-awq", status=Status.PUBLISHED, **WELL)
    results = workspace.root / "results" / f"result-quantize-{planned.job_id}"
    (results / "broken.json").write_text("{")
    (results / "large.json").write_text(" " * 1_000_001)
    (results / "link.json").symlink_to("/etc/hostname")
    ended = workspace.report()
    assert ended.summary.count("- ") >= 6
    assert "### Rejected results" in ended.summary
    assert len([item for item in ended.annotations if item[0] == "warning"]) == 6
    assert "✅" not in ended.summary
    assert workspace.api.troubles() == []


def test_a_result_in_the_artifact_of_another_job_is_rejected(workspace: Workspace) -> None:
    workspace.seed("Tiny", "Other")
    workspace.plan()
    one, two = workspace.planned()
    published = workspace.leave(one, stage="publish", status=Status.PUBLISHED, publication=publication(), **WELL)
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
        "uploaded by a different job"
    ] * 2


def test_a_job_that_github_saw_fail_has_published_nothing(workspace: Workspace, planned: Job) -> None:
    workspace.leave(planned, stage="publish", status=Status.PUBLISHED, publication=publication(), **WELL)
    workspace.api.add_run(
        1,
        RunningJob(name=JOB, conclusion="failure"),
        RunningJob(name=f"{TARGET} / publish {TARGET}", conclusion="skipped"),
    )
    assert "✅" not in workspace.report().summary
    [issue] = workspace.api.open_troubles()
    assert "the runner was lost" in issue.body
