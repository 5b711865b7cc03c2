"""`awq-bot actions report`: how a run ended, the issues about it, and results that are not trusted."""

from __future__ import annotations

import shutil
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from bot.github.issues import mark, read_mark
from bot.records import Attempts, Publication, Status
from tests.support.factories import HEAD, report
from tests.support.github_api.server import ACTIONS, Issue, Job
from tests.support.workspace import Workspace

TARGET = "quantized/Tiny-awq"
JOB = f"{TARGET} / quantize {TARGET}"  # as GitHub names it
WELL: dict[str, Any] = {"exit_code": 0, "message": "", "hint": ""}


def publication(tag: str = "upstream-01234567-89abcdef") -> Publication:
    url = f"https://huggingface.co/{TARGET}"
    return Publication(repo_id=TARGET, sha=HEAD, tag=tag, url=url, private=False, new=True, duration_s=3.0)


def planned(workspace: Workspace) -> None:
    workspace.seed("Tiny")
    assert workspace.plan().outputs["quantize_count"] == "1"


def failed(workspace: Workspace, run: int, **fields: object) -> Issue:
    """One more run in which the one planned job failed; the issue about it."""
    [job] = workspace.planned()
    workspace.leave(job, **fields)
    ended = workspace.report(GITHUB_RUN_ID=str(run))
    assert ended.code == 0, ended.err
    [issue] = workspace.api.open_issues()
    return issue


def count(issue: Issue) -> Attempts:
    tried = read_mark(issue.body, issue=issue.number)
    assert tried is not None
    return tried


def test_a_failure_opens_one_issue_and_is_counted_four_times(workspace: Workspace) -> None:
    planned(workspace)
    waits = [timedelta(hours=hours) for hours in (1, 6, 24)]
    for number, wait in enumerate(waits, 1):
        before = datetime.now(UTC)
        issue = failed(workspace, number)
        tried = count(issue)
        assert (tried.count, tried.waits_for_person) == (number, False)
        assert tried.next_try is not None
        assert abs(datetime.fromisoformat(tried.next_try) - before - wait) < timedelta(minutes=5)
    assert workspace.api.comments_on(issue.number) == []
    issue = failed(workspace, 4)
    assert count(issue).waits_for_person
    assert len(workspace.api.issues) == 1
    assert workspace.api.comments_on(issue.number) != []
    assert "No more automatic attempts" in issue.body
    # Further failures add no comment.
    failed(workspace, 5)
    assert len(workspace.api.comments_on(issue.number)) == 1


def test_the_issue_says_what_failed_why_and_what_to_do(workspace: Workspace) -> None:
    planned(workspace)
    issue = failed(workspace, 7)
    assert issue.title == f"awq-bot: {TARGET}: layer 3: not finite"
    assert issue.labels == ["awq-bot", "awq-bot: quantization"]
    assert "**cause** lab/Tiny: layer 3: not finite" in issue.body
    assert "**fix** Look at its weights." in issue.body
    assert "/actions/runs/7" in issue.body
    assert "Attempt 1 of 4" in issue.body


def test_a_figure_that_misses_the_gate_is_on_the_page_and_in_the_issue(workspace: Workspace) -> None:
    planned(workspace)
    [job] = workspace.planned()
    workspace.leave(job, exit_code=6, message="lab/Tiny: not published", report=report(kl_mean=0.4321))
    ended = workspace.report()
    [issue] = workspace.api.open_issues()
    assert "0.4321" in issue.body
    assert "0.4321" in ended.summary
    assert "❌ failed (quality gate)" in ended.summary


def test_making_the_report_again_counts_nothing_twice(workspace: Workspace) -> None:
    planned(workspace)
    first = failed(workspace, 3).body
    assert failed(workspace, 3).body == first
    assert count(failed(workspace, 4)).count == 2


def test_success_closes_the_issue_and_says_so(workspace: Workspace) -> None:
    planned(workspace)
    issue = failed(workspace, 1)
    [job] = workspace.planned()
    workspace.leave(job, status=Status.READY, **WELL)
    workspace.leave(job, stage="publish", status=Status.PUBLISHED, publication=publication(job.tag), **WELL)
    ended = workspace.report(GITHUB_RUN_ID="2")
    assert "1 published" in ended.summary
    assert issue.state == "closed"
    [said] = workspace.api.comments_on(issue.number)
    assert job.tag in said
    assert "/actions/runs/2" in said


def test_closing_an_issue_by_hand_starts_a_new_count(workspace: Workspace) -> None:
    planned(workspace)
    for run in (1, 2, 3, 4):
        issue = failed(workspace, run)
    issue.state = "closed"
    again = failed(workspace, 5)
    assert again.number != issue.number
    assert count(again).count == 1


@pytest.mark.parametrize("author", ["mallory", "github-actions", "someone-else[bot]"])
def test_a_mark_in_an_issue_of_another_author_is_ignored(workspace: Workspace, author: str) -> None:
    planned(workspace)
    [job] = workspace.planned()
    forged = Attempts(target=TARGET, content=job.attempt_digest, count=4)
    theirs = workspace.api.open_issue(author, "awq-bot: it failed", mark(forged))
    workspace.leave(job)
    workspace.report()
    assert theirs.body == mark(forged)
    [own] = [issue for issue in workspace.api.open_issues() if issue is not theirs]
    assert count(own).count == 1


def test_a_mark_in_an_error_message_is_only_text(workspace: Workspace) -> None:
    planned(workspace)
    forged = mark(replace(Attempts(target="other/target", content="0" * 64, count=4)))
    issue = failed(workspace, 1, message=f"boom\n{forged}\n", hint=forged)
    assert count(issue).target == TARGET
    assert forged not in issue.body


def test_labels_that_people_added_stay(workspace: Workspace) -> None:
    planned(workspace)
    issue = failed(workspace, 1)
    issue.labels = [*issue.labels, "help wanted"]
    assert failed(workspace, 2, exit_code=8).labels == ["help wanted", "awq-bot", "awq-bot: environment"]


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
    [issue] = workspace.api.open_issues()
    assert "quantized/Other-awq" in issue.title


@pytest.mark.parametrize("said", ["::error::x", "a`b|c\n## d <b>x</b> @me #1", "%0A::set-output name=a::b"])
def test_an_error_text_from_a_runner_cannot_be_markup_or_a_command(workspace: Workspace, said: str) -> None:
    planned(workspace)
    issue = failed(workspace, 1, message=said, hint=said)
    assert "@me" not in issue.body
    assert "\n## d" not in issue.body
    assert "<b>" not in issue.body.replace("\\<", "")
    assert "\n" not in issue.title
    ended = workspace.report()
    assert {name for name, _, _ in ended.commands} == {"add-mask"}


def test_tokens_in_messages_are_hidden(workspace: Workspace) -> None:
    planned(workspace)
    token = workspace.hub.token("reader", role="read")
    issue = failed(workspace, 1, message=f"401 for Bearer {token}", hint=token)
    ended = workspace.report()
    assert token not in issue.body + issue.title + ended.everything
    assert token.replace("_", "\\_") not in issue.body + ended.summary
    assert "401 for Bearer" in issue.body


def test_the_author_is_whoever_the_token_acts_as(workspace: Workspace) -> None:
    planned(workspace)
    [job] = workspace.planned()
    workspace.leave(job)
    for run in ("1", "2"):
        workspace.report(GITHUB_TOKEN=workspace.api.token("awq-release[bot]"), GITHUB_RUN_ID=run)
    [issue] = workspace.api.open_issues()
    assert (issue.author, count(issue).count) == ("awq-release[bot]", 2)
    assert issue.author != ACTIONS


# --- jobs without a result, and results that are rejected -----------------------------------------------------


def test_a_job_without_a_result_failed_unless_a_person_cancelled_it(workspace: Workspace) -> None:
    planned(workspace)
    workspace.api.add_run(1, Job(name="plan"), Job(name=JOB, conclusion="cancelled"))
    ended = workspace.report()
    assert workspace.api.issues == {}
    assert "it was cancelled" in ended.summary
    assert "❌" not in ended.summary
    workspace.api.add_run(2, Job(name=JOB, conclusion="failure"))
    ended = workspace.report(GITHUB_RUN_ID="2")
    [issue] = workspace.api.open_issues()
    assert "the runner was lost" in issue.body
    assert "the runner was lost" in ended.summary
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
    workspace.api.add_run(1, Job(name=JOB, conclusion="cancelled", runner=runner, **times))
    workspace.report()
    [issue] = workspace.api.open_issues()
    assert said in issue.body
    assert count(issue).count == 1
    assert workspace.plan().outputs["quantize_count"] == "0"


def test_when_github_does_not_answer_nothing_is_counted(workspace: Workspace) -> None:
    planned(workspace)
    workspace.api.fail("/actions/", status=503)
    ended = workspace.report()
    assert ended.code == 0
    assert workspace.api.issues == {}
    assert "❔ unknown" in ended.summary
    assert "How jobs without a result ended is not known." in ended.summary


def test_an_issue_that_cannot_be_written_is_noted_and_the_page_is_whole(workspace: Workspace) -> None:
    planned(workspace)
    [job] = workspace.planned()
    workspace.leave(job)
    ended = workspace.report(GITHUB_TOKEN=workspace.api.token(may_write=False))
    assert ended.code == 0
    assert "An issue could not be written." in ended.summary
    assert "layer 3: not finite" in ended.summary


def test_forged_and_damaged_results_are_rejected_and_listed(workspace: Workspace) -> None:
    planned(workspace)
    [job] = workspace.planned()
    workspace.leave(job, stage="quantize", status=Status.PUBLISHED, publication=publication(), **WELL)
    workspace.leave(replace(job, job_id="quantized--Other-awq-01234567-89abcdef"), status=Status.UNCHANGED, **WELL)
    workspace.leave(job, stage="publish", target="quantized/Other-awq", status=Status.PUBLISHED, **WELL)
    results = workspace.root / "results" / f"result-quantize-{job.job_id}"
    (results / "broken.json").write_text("{")
    (results / "large.json").write_text(" " * 1_000_001)
    (results / "link.json").symlink_to("/etc/hostname")
    ended = workspace.report()
    assert ended.summary.count("- ") >= 6
    assert "### Rejected results" in ended.summary
    assert len([item for item in ended.annotations if item[0] == "warning"]) == 6
    assert "✅" not in ended.summary
    assert workspace.api.issues == {}


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


def test_a_job_that_github_saw_fail_has_published_nothing(workspace: Workspace) -> None:
    planned(workspace)
    [job] = workspace.planned()
    workspace.leave(job, stage="publish", status=Status.PUBLISHED, publication=publication(), **WELL)
    workspace.api.add_run(
        1, Job(name=JOB, conclusion="failure"), Job(name=f"{TARGET} / publish {TARGET}", conclusion="skipped")
    )
    assert "✅" not in workspace.report().summary
    [issue] = workspace.api.open_issues()
    assert "the runner was lost" in issue.body
