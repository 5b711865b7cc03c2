"""The dashboard: what a plan writes there, what people tick, and what its boxes do."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

import pytest

from bot.github.attempts import iso
from bot.github.dashboard import HELD, MOST_CHARACTERS, Action, Ticks, dashboard_text, read_ticks
from bot.github.issues import DASHBOARD_MARK, mark
from bot.hub import session
from bot.localhub import Fault
from bot.records import Attempts, Plan, Skip
from bot.watch.release import UP_TO_DATE, hold_skip, make_plan
from tests.support.factories import entry, job
from tests.support.github_api.server import ACTIONS, Issue
from tests.support.repos import source_files
from tests.support.workspace import WEIGHTS, Workspace

TARGET = "quantized/Tiny-awq"
UP = {"model__safetensors": WEIGHTS}


@pytest.fixture(autouse=True)
def one_attempt(monkeypatch: pytest.MonkeyPatch) -> None:
    """An outage of the Hub is not waited for."""
    monkeypatch.setattr(session, "ATTEMPTS", 1)


def dashboard(workspace: Workspace) -> Issue:
    [issue] = [issue for issue in workspace.api.issues.values() if DASHBOARD_MARK in issue.body]
    return issue


def failure_of(workspace: Workspace, target: str, content: str = "0" * 64, count: int = 2) -> Issue:
    tried = Attempts(
        target=target, content=content, count=count, next_try=iso(datetime.now(UTC) + timedelta(hours=2))
    )
    if count == 4:
        tried = Attempts(target=target, content=content, count=count, waits_for_person=True)
    return workspace.api.open_issue(ACTIONS, "awq-bot: it failed", f"Words.\n\n{mark(tried)}\n")


def tick(issue: Issue, action: Action, target: str = TARGET, box: str = "x") -> None:
    """As GitHub's page does it: the box, and the ends of the lines."""
    issue.body, ticked = re.subn(
        rf"- \[.\](?= <!-- {action} {target} -->)", f"- [{box}]", issue.body.replace("\n", "\r\n")
    )
    assert ticked == 1, issue.body


def section(issue: Issue, title: str) -> str:
    return issue.body.replace("\r\n", "\n").partition(f"## {title}\n")[2].partition("\n## ")[0]


# --- what is there ------------------------------------------------------------------------------------------


def test_a_plan_writes_one_dashboard_and_edits_it_only_when_something_changed(workspace: Workspace) -> None:
    workspace.watch("lab/Tiny")
    workspace.plan("--dry-run")
    assert workspace.api.issues == {}
    workspace.plan()
    issue = dashboard(workspace)
    assert (issue.title, issue.labels) == ("awq-bot: dashboard", ["awq-bot", "awq-bot: dashboard"])
    assert "missing: no such repo" in section(issue, "Needs a person")
    workspace.hub.seed("lab/Tiny", source_files(**UP), gated="manual")
    workspace.plan()
    assert "gated: access to the weights was refused" in section(issue, "Needs a person")
    workspace.api.requests.clear()
    workspace.plan()
    assert {asked.method for asked in workspace.api.requests if asked.path != "/graphql"} == {"GET"}
    assert workspace.api.comments_on(issue.number) == []
    workspace.hub.grant_access("lab/Tiny", "reader")
    assert workspace.plan().outputs["quantize_count"] == "1"
    assert "first release" in section(issue, "In progress")
    assert list(workspace.api.issues) == [issue.number]


def test_a_plan_of_one_model_or_of_another_branch_leaves_it_alone(workspace: Workspace) -> None:
    workspace.seed("Tiny", "Other")
    workspace.plan()
    issue = dashboard(workspace)
    before = issue.body
    workspace.watch("lab/Tiny")
    workspace.plan(AWQ_BOT_ONLY="lab/Tiny")
    workspace.report()
    elsewhere = {"GITHUB_REF": "refs/heads/try"}
    workspace.plan(**elsewhere)
    workspace.report(**elsewhere)
    assert issue.body == before
    workspace.plan()
    assert "Other" not in issue.body


def test_a_report_shows_how_the_jobs_ended(workspace: Workspace) -> None:
    workspace.seed("Tiny", "Other")
    workspace.plan()
    issue = dashboard(workspace)
    failed, published = workspace.planned()
    workspace.leave(failed)
    workspace.leave(published, stage="publish", status="published", exit_code=0, message="", hint="")
    workspace.report()
    assert "In progress" not in issue.body
    assert f"→ {failed.entry.target}: failed once, next attempt not before" in section(issue, "Waiting")
    assert "[issue " in section(issue, "Waiting")
    assert "1 published and up to date" in issue.body


def test_a_report_creates_no_dashboard(workspace: Workspace) -> None:
    workspace.seed("Tiny")
    workspace.plan()
    [planned] = workspace.planned()
    workspace.api.issues.clear()
    workspace.leave(planned)
    workspace.report()
    assert [issue.title for issue in workspace.api.open_troubles()] == [
        f"awq-bot: {TARGET}: layer 3: not finite",
    ]


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/api/models/lab/Tiny", 503),
        ("/api/models/quantized/Tiny-awq", 502),
        ("lab/Tiny/resolve/.*/config.json", 500),
    ],
)
def test_what_passes_without_a_person_waits(workspace: Workspace, path: str, status: int) -> None:
    workspace.seed("Tiny")
    workspace.hub.faults.add(Fault(path=path, status=status, times=None))
    workspace.plan()
    assert TARGET in section(dashboard(workspace), "Waiting")
    assert "Needs a person" not in dashboard(workspace).body


def test_a_closed_dashboard_is_neither_read_nor_written_nor_opened_again(workspace: Workspace) -> None:
    workspace.watch("lab/Tiny")
    workspace.plan()
    issue = dashboard(workspace)
    tick(issue, Action.HOLD)
    issue.state, before = "closed", issue.body
    workspace.seed("Tiny")
    assert workspace.plan().outputs["quantize_count"] == "1"
    assert (list(workspace.api.issues), issue.body) == ([issue.number], before)
    issue.state = "open"
    assert workspace.plan().outputs["quantize_count"] == "0"


def test_issues_of_refusals_from_before_are_closed(workspace: Workspace) -> None:
    workspace.watch("lab/Tiny")
    old = failure_of(workspace, f"refused:{TARGET}", count=4)
    workspace.plan()
    assert old.state == "closed"
    assert "on the dashboard" in workspace.api.comments_on(old.number)[0]


# --- what boxes do ------------------------------------------------------------------------------------------


def test_a_ticked_hold_keeps_a_model_back_until_it_is_unticked(workspace: Workspace) -> None:
    workspace.watch("lab/Tiny")
    workspace.plan()
    issue = dashboard(workspace)
    tick(issue, Action.HOLD)
    workspace.seed("Tiny")
    for _ in range(2):
        assert workspace.plan().outputs["quantize_count"] == "0"
        assert f"- [x] <!-- hold {TARGET} --> hold" in section(issue, "On hold")
    tick(issue, Action.HOLD, box=" ")
    assert workspace.plan().outputs["quantize_count"] == "1"
    assert "On hold" not in issue.body


@pytest.mark.parametrize("count", [2, 4])
def test_a_failure_is_retried_when_its_box_is_ticked(workspace: Workspace, count: int) -> None:
    workspace.seed("Tiny")
    workspace.plan()
    issue = dashboard(workspace)
    [planned] = workspace.planned()
    failure_of(workspace, TARGET, planned.attempt_digest, count)
    assert workspace.plan().outputs["quantize_count"] == "0"
    assert TARGET in section(issue, "Waiting" if count == 2 else "Needs a person")
    assert workspace.plan().outputs["quantize_count"] == "0"
    tick(issue, Action.RETRY)
    assert workspace.plan().outputs["quantize_count"] == "1"
    assert "retry" not in issue.body


def test_what_is_wanted_now_comes_first(workspace: Workspace) -> None:
    workspace.seed("A", "B")
    few = {"AWQ_BOT_MOST_JOBS": "1"}
    workspace.plan(**few)
    issue, [first] = dashboard(workspace), workspace.planned()
    other = {"quantized/A-awq", "quantized/B-awq"} - {first.entry.target}
    tick(issue, Action.NOW, other.pop())
    workspace.plan(**few)
    [now] = workspace.planned()
    assert now.entry.target != first.entry.target
    assert f"<!-- now {first.entry.target} -->" in section(issue, "Waiting")


def test_what_settles_is_taken_when_it_is_wanted_now(workspace: Workspace) -> None:
    workspace.seed("Tiny")
    path = workspace.root / "watchlist.yaml"
    path.write_text(path.read_text().replace("- lab/Tiny", "- {repo_id: lab/Tiny, settle: 2h}"))
    assert workspace.plan().outputs["quantize_count"] == "0"
    assert "settling" in section(dashboard(workspace), "Waiting")
    tick(dashboard(workspace), Action.NOW)
    assert workspace.plan().outputs["quantize_count"] == "1"


def test_only_the_workflows_own_dashboard_counts(workspace: Workspace) -> None:
    workspace.seed("Tiny")
    body = f"- [x] <!-- hold {TARGET} --> hold\n\n{DASHBOARD_MARK}\n"
    labels = ["awq-bot", "awq-bot: dashboard"]
    workspace.api.open_issue("someone", "awq-bot: dashboard", body, labels)
    workspace.api.open_issue(ACTIONS, "awq-bot: dashboard", body, labels, is_pull=True)
    assert workspace.plan().outputs["quantize_count"] == "1"
    assert len(workspace.api.issues) == 3


def test_a_dashboard_that_was_edited_by_hand_is_written_again_and_keeps_its_boxes(workspace: Workspace) -> None:
    workspace.watch("lab/Tiny")
    workspace.plan()
    issue = dashboard(workspace)
    before = issue.body
    tick(issue, Action.HOLD)
    issue.body = f"- [x] <!-- hold other/model -->\n<script>- [x] <!-- now x\nWords.\n{issue.body}"
    workspace.plan()
    assert f"- [x] <!-- hold {TARGET} --> hold" in section(issue, "On hold")
    assert "Words" not in issue.body
    tick(issue, Action.HOLD, box=" ")
    workspace.plan()
    assert issue.body == before


@pytest.mark.parametrize("status", [403, 500])
def test_a_plan_goes_on_without_its_dashboard(workspace: Workspace, status: int) -> None:
    workspace.seed("Tiny")
    workspace.api.fail("/issues$", status=status)
    ended = workspace.plan()
    assert (ended.code, ended.outputs["quantize_count"]) == (0, "1")
    assert "The dashboard could not be written." in ended.summary
    assert "What is ticked on it is not known." in ended.summary


# --- its text -----------------------------------------------------------------------------------------------


def refused(number: int) -> Skip:
    reason = "missing: no such repo, or private without access for our token"
    name = f"model-{number}"
    return Skip(
        entry=entry(repo_id=f"lab/{name}", target=f"q/{name}-awq"),
        reason=reason,
        hint="Look at it on the Hub.",
        blocked=True,
        exit_code=3,
    )


def text_of(plan: Plan, ticks: Ticks | None = None) -> str | None:
    return dashboard_text(
        plan, ticks or Ticks(), (), endpoint="https://hub.example", issues_url="I", runs_url="https://runs.example"
    )


def test_a_thousand_models_fit_and_what_is_left_out_is_counted() -> None:
    refusals = [refused(number) for number in range(500)]
    current = [Skip(entry=entry(repo_id=f"lab/P{n}", target=f"q/P{n}-awq"), reason=UP_TO_DATE) for n in range(500)]
    held = hold_skip(entry(repo_id="lab/H", target="q/H-awq", hold=HELD))
    text = text_of(make_plan([*refusals, *current, held]), Ticks(hold=frozenset({"q/H-awq"})))
    assert text is not None
    assert 0.98 * MOST_CHARACTERS < len(text) <= MOST_CHARACTERS
    assert read_ticks(text) == Ticks(hold=frozenset({"q/H-awq"}))
    for pattern in (r"\[lab/model-\d+\]", r"\[q/P\d+-awq\]"):
        shown = len(re.findall(pattern, text))
        assert f"and {500 - shown} more, in the summary of [the last plan](https://runs.example)" in text


def test_what_is_on_hold_is_never_left_out() -> None:
    held = [hold_skip(entry(repo_id=f"lab/H{n}", target=f"q/H{n}-awq", hold=HELD)) for n in range(450)]
    ticks = Ticks(hold=frozenset(skip.entry.target for skip in held))
    text = text_of(make_plan([*held, *map(refused, range(500))]), ticks)
    assert text is not None
    assert read_ticks(text) == ticks
    assert (
        text_of(make_plan([hold_skip(entry(repo_id="a/b" * 30, target=f"q/{n}", hold=HELD)) for n in range(900)]))
        is None
    )


def test_an_empty_watchlist_says_what_to_do() -> None:
    assert "`awq-bot add OWNER/NAME`" in str(text_of(make_plan([])))


def test_a_job_has_no_box() -> None:
    assert "- [ ]" not in str(text_of(make_plan([job()])))


@pytest.mark.parametrize(
    "line",
    [
        "- [x] <!-- hold a -->",
        "- [x] hold a/b",
        "text - [x] <!-- hold a/b -->",
        "- [x] <!-- drop a/b -->",
        "- [ ] <!-- hold a/b -->",
        "- [y] <!-- hold a/b -->",
    ],
)
def test_what_is_no_ticked_box_is_not_read(line: str) -> None:
    assert read_ticks(line) == Ticks()


# --- issues that a plan closes ------------------------------------------------------------------------------


def test_issues_of_a_removed_model_are_closed_by_a_whole_plan_only(workspace: Workspace) -> None:
    workspace.seed("Other")
    removed = failure_of(workspace, TARGET)
    failing = failure_of(workspace, "quantized/Other-awq")
    watch = failure_of(workspace, "watch")
    workspace.plan("--only", "lab/Other")
    assert len(workspace.api.open_troubles()) == 3
    workspace.plan()
    assert workspace.api.open_troubles() == [failing, watch]
    [said] = workspace.api.comments_on(removed.number)
    assert "It is no longer on the watchlist." in said
    assert "/actions/runs/1" in said


def test_the_failure_of_a_model_on_hold_is_closed_and_says_so(workspace: Workspace) -> None:
    workspace.watch("lab/missing")
    path = workspace.root / "watchlist.yaml"
    path.write_text(path.read_text().replace("- lab/missing", "- {repo_id: lab/missing, hold: not today}"))
    issue = failure_of(workspace, "quantized/missing-awq")
    workspace.plan()
    assert issue.state == "closed"
    assert "on hold" in workspace.api.comments_on(issue.number)[0]
