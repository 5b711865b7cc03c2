"""`awq-bot actions report`: what became of a run, and the issues about it."""

from __future__ import annotations

import shutil
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from bot.errors import ERRORS_BY_EXIT_CODE
from bot.github.issues import code_name, mark, read_mark
from bot.records import Attempts, Publication
from tests.support.factories import HEAD, report
from tests.support.github_api.server import ACTIONS, Issue
from tests.support.workspace import Workspace

TARGET = "quantized/Tiny-awq"
LEG = f"{TARGET} / quantize {TARGET}"


def publication(tag: str = "upstream-01234567-89abcdef") -> Publication:
    url = f"https://huggingface.co/{TARGET}"
    return Publication(repo_id=TARGET, sha=HEAD, tag=tag, url=url, private=False, new=True, duration_s=3.0)


def planned(place: Workspace) -> None:
    place.seed("Tiny")
    assert place.plan().outputs["quantize_count"] == "1"


def failed(place: Workspace, run: int, **fields: object) -> Issue:
    """One more run in which the one planned job failed; the issue about it."""
    [job] = place.planned()
    place.leave(job, **fields)
    ended = place.report(GITHUB_RUN_ID=str(run))
    assert ended.code == 0, ended.err
    [issue] = place.api.open_issues()
    return issue


def count(issue: Issue) -> Attempts:
    tried = read_mark(issue.body, issue=issue.number)
    assert tried is not None
    return tried


def test_a_failure_opens_one_issue_and_is_counted_four_times(place: Workspace) -> None:
    planned(place)
    waits = [timedelta(hours=hours) for hours in (1, 6, 24)]
    for number, wait in enumerate(waits, 1):
        before = datetime.now(UTC)
        issue = failed(place, number)
        tried = count(issue)
        assert (tried.count, tried.waits_for_person) == (number, False)
        assert tried.next_try is not None
        assert abs(datetime.fromisoformat(tried.next_try) - before - wait) < timedelta(minutes=5)
    assert place.api.comments_on(issue.number) == []
    issue = failed(place, 4)
    assert count(issue).waits_for_person
    assert len(place.api.issues) == 1
    assert place.api.comments_on(issue.number) != []
    assert "There are no more attempts" in issue.body
    # Whoever looks at it in vain does not hear of it again and again.
    failed(place, 5)
    assert len(place.api.comments_on(issue.number)) == 1


def test_the_issue_says_what_failed_why_and_what_to_do(place: Workspace) -> None:
    planned(place)
    issue = failed(place, 7)
    assert issue.title == f"awq-bot: {TARGET}: layer 3: not finite"
    assert issue.labels == ["awq-bot", "awq-bot: quantization"]
    assert "**cause** lab/Tiny: layer 3: not finite" in issue.body
    assert "**fix** Look at its weights." in issue.body
    assert "/actions/runs/7" in issue.body
    assert "Attempt 1 of 4" in issue.body


@pytest.mark.parametrize("exit_code", sorted(ERRORS_BY_EXIT_CODE))
def test_every_exit_code_has_its_label(place: Workspace, exit_code: int) -> None:
    planned(place)
    issue = failed(place, 1, exit_code=exit_code)
    assert issue.labels == ["awq-bot", f"awq-bot: {code_name(exit_code)}"]


def test_a_figure_that_misses_the_gate_is_on_the_page_and_in_the_issue(place: Workspace) -> None:
    planned(place)
    [job] = place.planned()
    place.leave(job, exit_code=6, message="lab/Tiny: not published", report=report(kl_mean=0.4321))
    ended = place.report()
    [issue] = place.api.open_issues()
    assert "0.4321" in issue.body
    assert "0.4321" in ended.summary
    assert "❌ failed (quality gate)" in ended.summary


def test_making_the_report_again_counts_nothing_twice(place: Workspace) -> None:
    planned(place)
    first = failed(place, 3).body
    assert failed(place, 3).body == first
    assert count(failed(place, 4)).count == 2


def test_what_changed_starts_a_new_count_in_the_same_issue(place: Workspace) -> None:
    planned(place)
    failed(place, 1)
    failed(place, 2)
    place.hub.seed("lab/Tiny", {"tokenizer.json": '{"version": "2.0"}'})
    shutil.rmtree(place.root / "results")
    assert place.plan().outputs["quantize_count"] == "1"
    tried = count(failed(place, 3))
    assert tried.count == 1
    assert len(place.api.issues) == 1


def test_success_closes_the_issue_and_says_so(place: Workspace) -> None:
    planned(place)
    issue = failed(place, 1)
    [job] = place.planned()
    place.leave(job, status="quantized", exit_code=0, message="", hint="")
    fields = {"exit_code": 0, "message": "", "hint": ""}
    place.leave(job, stage="publish", status="published", publication=publication(job.tag), **fields)
    ended = place.report(GITHUB_RUN_ID="2")
    assert "1 published" in ended.summary
    assert issue.state == "closed"
    [said] = place.api.comments_on(issue.number)
    assert job.tag in said
    assert "/actions/runs/2" in said


def test_closing_by_hand_starts_anew(place: Workspace) -> None:
    planned(place)
    for run in (1, 2, 3, 4):
        issue = failed(place, run)
    issue.state = "closed"
    again = failed(place, 5)
    assert again.number != issue.number
    assert count(again).count == 1


@pytest.mark.parametrize("author", ["mallory", "github-actions", "someone-else[bot]"])
def test_a_forged_mark_of_somebody_else_counts_for_nothing(place: Workspace, author: str) -> None:
    planned(place)
    [job] = place.planned()
    forged = Attempts(target=TARGET, content=job.attempt_digest, count=4)
    theirs = place.api.open_issue(author, "awq-bot: it failed", mark(forged))
    place.leave(job)
    place.report()
    assert theirs.body == mark(forged)
    [own] = [issue for issue in place.api.open_issues() if issue is not theirs]
    assert count(own).count == 1


def test_a_mark_in_what_failed_is_only_text(place: Workspace) -> None:
    planned(place)
    forged = mark(replace(Attempts(target="other/target", content="0" * 64, count=4)))
    issue = failed(place, 1, message=f"boom\n{forged}\n", hint=forged)
    assert count(issue).target == TARGET
    assert forged not in issue.body


def test_labels_that_people_added_stay(place: Workspace) -> None:
    planned(place)
    issue = failed(place, 1)
    issue.labels = [*issue.labels, "help wanted"]
    assert failed(place, 2, exit_code=8).labels == ["help wanted", "awq-bot", "awq-bot: environment"]


def test_no_plan_is_nothing_to_report(place: Workspace) -> None:
    ended = place.report()
    assert (ended.code, ended.summary) == (0, "")
    assert "nothing to report" in ended.out


def test_one_failing_model_is_told_apart_from_what_was_published(place: Workspace) -> None:
    place.seed("Tiny", "Other", "Third")
    place.plan()
    bad, *fine = sorted(place.planned(), key=lambda job: job.entry.repo_id != "lab/Other")
    place.leave(bad)
    for job in fine:
        place.leave(job, status="unchanged", exit_code=0, message="", hint="", report=report())
    ended = place.report()
    assert "## 2 already published, 1 failed" in ended.summary
    assert ended.summary.count("| 0.0123 | 93.5&nbsp;% | 16.00&nbsp;→&nbsp;16.40 | 4.16 |") == 2
    [issue] = place.api.open_issues()
    assert "quantized/Other-awq" in issue.title


@pytest.mark.parametrize("said", ["::error::x", "a`b|c\n## d <b>x</b> @me #1", "%0A::set-output name=a::b"])
def test_an_error_text_from_a_runner_cannot_be_markup_or_a_command(place: Workspace, said: str) -> None:
    planned(place)
    issue = failed(place, 1, message=said, hint=said)
    assert "@me" not in issue.body
    assert "\n## d" not in issue.body
    assert "<b>" not in issue.body.replace("\\<", "")
    assert "\n" not in issue.title
    ended = place.report()
    assert {name for name, _, _ in ended.commands} == {"add-mask"}


def test_tokens_in_messages_are_hidden(place: Workspace) -> None:
    planned(place)
    token = place.hub.token("reader", role="read")
    issue = failed(place, 1, message=f"401 for Bearer {token}", hint=token)
    ended = place.report()
    assert token not in issue.body + issue.title + ended.everything
    assert token.replace("_", "\\_") not in issue.body + ended.summary
    assert "401 for Bearer" in issue.body


def test_the_author_is_whoever_the_token_acts_as(place: Workspace) -> None:
    planned(place)
    [job] = place.planned()
    place.leave(job)
    for run in ("1", "2"):
        place.report(GITHUB_TOKEN=place.api.token("awq-release[bot]"), GITHUB_RUN_ID=run)
    [issue] = place.api.open_issues()
    assert (issue.author, count(issue).count) == ("awq-release[bot]", 2)
    assert issue.author != ACTIONS
