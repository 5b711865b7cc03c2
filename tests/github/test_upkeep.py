"""`actions keepalive`, `deadman` and `comment`."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta

import pytest

from bot.github.issues import COMMENT_MARK
from tests.support.github_api.server import ACTIONS, REPOSITORY, Job
from tests.support.workflow_steps import StepResult
from tests.support.workspace import Workspace

# --- keepalive ----------------------------------------------------------------------------------------------


def test_keepalive_enables_a_workflow_again_also_after_github_disabled_it(workspace: Workspace) -> None:
    workspace.api.states["watch.yml"] = "disabled_inactivity"
    for words in ((), ("--workflow", "other.yml")):
        ended = workspace.verb("keepalive", *words)
        assert (ended.code, ended.annotations) == (0, [])
    assert (workspace.api.enabled, workspace.api.states) == (["watch.yml", "other.yml"], {})


@pytest.mark.parametrize("state", ["disabled_manually", "disabled_fork"])
def test_keepalive_leaves_a_workflow_alone_that_a_person_disabled(workspace: Workspace, state: str) -> None:
    workspace.api.states["watch.yml"] = state
    ended = workspace.verb("keepalive")
    assert (ended.code, workspace.api.enabled) == (0, [])
    [(_, _, message)] = ended.annotations
    assert message == f"watch.yml was disabled by a person ({state}), and stays disabled."
    assert "stays enabled" not in ended.out


@pytest.mark.parametrize("status", [None, 404, 503])
def test_keepalive_that_fails_or_has_no_token_is_a_warning(workspace: Workspace, status: int | None) -> None:
    if status:
        workspace.api.fail("/enable", status=status)
    ended = workspace.verb("keepalive", **({} if status else {"GITHUB_TOKEN": ""}))
    [(level, _, message)] = ended.annotations
    assert (ended.code, level, "No GITHUB_TOKEN" in message) == (0, "warning", not status)
    assert workspace.api.enabled == []


# --- deadman ------------------------------------------------------------------------------------------------


def a_run(workspace: Workspace, number: int, hours_ago: float, conclusion: str) -> None:
    at = datetime.now(UTC) - timedelta(hours=hours_ago)
    workspace.api.add_run(number, Job(name="plan", conclusion=conclusion, completed_at=at), created_at=at)


def test_an_overdue_plan_is_one_issue_until_the_next_good_plan(workspace: Workspace) -> None:
    assert "is well" in workspace.verb("deadman").out  # it never ran
    a_run(workspace, 1, 9, "success")
    a_run(workspace, 2, 4, "failure")
    for _ in range(2):
        ended = workspace.verb("deadman", "--hours", "6")
        assert ended.code == 0
        assert "9 hours ago" in ended.annotations[0][2]
    [issue] = workspace.api.open_troubles()
    assert "watch.yml" in issue.title
    assert "is it enabled" in issue.body
    a_run(workspace, 4, 0, "success")
    assert "is well" in workspace.verb("deadman", "--hours", "6").out
    assert issue.state == "closed"
    assert len(workspace.api.troubles()) == 1
    a_run(workspace, 5, 0, "failure")
    assert "watch.yml is well" in workspace.verb("deadman", "--hours", "6").out


def test_a_watch_that_only_failed_is_overdue(workspace: Workspace) -> None:
    a_run(workspace, 1, 30, "failure")
    assert "no plan since at least" in workspace.verb("deadman").out
    assert len(workspace.api.open_troubles()) == 1


def test_a_paused_watch_is_not_overdue(workspace: Workspace) -> None:
    a_run(workspace, 1, 30, "success")
    ended = workspace.verb("deadman", AWQ_BOT_PAUSED="true")
    assert "paused" in ended.out
    assert workspace.api.requests == []
    assert workspace.verb("deadman", AWQ_BOT_PAUSED="").code == 0
    assert len(workspace.api.open_troubles()) == 1
    wrong = workspace.verb("deadman", AWQ_BOT_PAUSED="yes")  # the workflows would take it for false
    assert wrong.code == 2
    assert wrong.annotations[0][2] == "AWQ_BOT_PAUSED is 'yes'%0ASet it to `true` or `false`, or delete it."


def test_when_github_does_not_answer_no_issue_is_opened(workspace: Workspace) -> None:
    workspace.api.fail("/actions/", status=500)
    ended = workspace.verb("deadman")
    assert ended.code == 0
    assert "When the last plan was made is not known." in ended.annotations[0][2]
    assert workspace.api.troubles() == []


# --- comment ------------------------------------------------------------------------------------------------


def on_pull_request(
    workspace: Workspace, number: int, *, head: str = REPOSITORY, token: str | None = None
) -> StepResult:
    event = {"pull_request": {"number": number, "head": {"repo": {"full_name": head}}}}
    (workspace.root / "event.json").write_text(json.dumps(event))
    variables = {"GITHUB_EVENT_PATH": str(workspace.root / "event.json"), "HF_TOKEN": ""}
    return workspace.verb("comment", **variables | ({} if token is None else {"GITHUB_TOKEN": token}))


@pytest.fixture
def pull(workspace: Workspace) -> int:
    workspace.seed("Tiny")
    return workspace.api.open_issue("alice", "Watch Tiny", "Please.", (), is_pull=True).number


def test_a_pull_request_gets_one_comment_that_is_kept_up_to_date(workspace: Workspace, pull: int) -> None:
    theirs = workspace.api.add_comment(pull, "mallory", f"hello\n{COMMENT_MARK}")
    other = workspace.api.add_comment(pull, ACTIONS, "something else that Actions said")
    workspace.hub.clear_requests()
    ended = on_pull_request(workspace, pull)
    assert ended.code == 0, ended.err
    assert {(request.method, request.authenticated) for request in workspace.hub.requests} <= {
        ("GET", False),
        ("HEAD", False),
    }
    [*_, text] = workspace.api.comments_on(pull)
    assert text.endswith(f"\n{COMMENT_MARK}\n")
    assert "**1 to quantize**" in text
    assert "lab/Tiny" in text
    assert "disk" in text
    assert ended.summary.strip() in text
    workspace.api.requests.clear()
    on_pull_request(workspace, pull)  # the same comment is not written again
    assert {asked.method for asked in workspace.api.requests if asked.path != "/graphql"} == {"GET"}
    workspace.watch("lab/Tiny", "lab/missing")
    on_pull_request(workspace, pull)
    [*before, text] = workspace.api.comments_on(pull)
    assert before == [theirs.body, other.body] == [f"hello\n{COMMENT_MARK}", "something else that Actions said"]
    assert "**1 to quantize**, 1 refused" in text
    assert "missing: no such repo" in text


def test_mistakes_are_annotated_on_their_lines_and_listed_in_the_comment(workspace: Workspace, pull: int) -> None:
    with (workspace.root / "watchlist.yaml").open("a") as file:
        file.write("  - repo_id: a/b\n    gatee: {}\n")
    ended = on_pull_request(workspace, pull)
    assert ended.code == 2
    assert ended.annotations == [
        ("error", "file=watchlist.yaml,line=6", "unknown key 'gatee'%0ADid you mean 'gate'?")
    ]
    [text] = workspace.api.comments_on(pull)
    assert "unknown key 'gatee'" in text
    assert "unknown key 'gatee'" in ended.summary
    assert len(workspace.api.open_troubles()) == 1  # the pull request itself


def test_a_forks_pull_request_gets_the_page_and_no_comment(workspace: Workspace, pull: int) -> None:
    read_only = workspace.api.token(may_write=False)
    ended = on_pull_request(workspace, pull, head="mallory/awq-bot", token=read_only)
    assert (ended.code, "**1 to quantize**" in ended.summary) == (0, True)
    assert workspace.api.requests == []
    ended = on_pull_request(workspace, pull, token=read_only)
    assert (ended.code, "**1 to quantize**" in ended.summary) == (0, True)
    assert "The comment could not be written." in ended.annotations[0][2]
    assert workspace.api.comments_on(pull) == []


@pytest.mark.parametrize(
    "name", ["$(touch pwned)", "a/`touch pwned`", "a/b;touch pwned", "a/b::error::x", "../../etc"]
)
def test_a_name_with_shell_in_it_is_a_mistake_and_nothing_more(workspace: Workspace, pull: int, name: str) -> None:
    (workspace.root / "watchlist.yaml").write_text(f"publish_to: quantized\nmodels:\n  - {json.dumps(name)}\n")
    ended = on_pull_request(workspace, pull)
    assert ended.code == 2
    assert [level for level, _, _ in ended.commands if level != "add-mask"] == ["error"]
    assert not (workspace.root / "pwned").exists()
    [text] = workspace.api.comments_on(pull)
    assert "`touch" not in text.replace("\\`", "")
