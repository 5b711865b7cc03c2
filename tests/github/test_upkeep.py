"""`actions keepalive`, `deadman` and `comment`."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta

import pytest

from bot.github.issues import COMMENT_MARK
from tests.support.github_api.server import ACTIONS, REPOSITORY, Job
from tests.support.workflow_steps import Ended
from tests.support.workspace import Workspace

# --- keepalive ----------------------------------------------------------------------------------------------


def test_keepalive_enables_a_workflow_again_also_after_github_disabled_it(place: Workspace) -> None:
    place.api.states["watch.yml"] = "disabled_inactivity"
    for words in ((), ("--workflow", "other.yml")):
        ended = place.verb("keepalive", *words)
        assert (ended.code, ended.annotations) == (0, [])
    assert (place.api.enabled, place.api.states) == (["watch.yml", "other.yml"], {})


@pytest.mark.parametrize("state", ["disabled_manually", "disabled_fork"])
def test_keepalive_leaves_a_workflow_alone_that_a_person_disabled(place: Workspace, state: str) -> None:
    place.api.states["watch.yml"] = state
    ended = place.verb("keepalive")
    assert (ended.code, place.api.enabled) == (0, [])
    [(_, _, message)] = ended.annotations
    assert message == f"watch.yml was disabled by a person ({state}), and stays disabled."
    assert "stays enabled" not in ended.out


@pytest.mark.parametrize("status", [404, 503])
def test_keepalive_that_fails_is_a_warning(place: Workspace, status: int) -> None:
    place.api.fail("/enable", status=status)
    ended = place.verb("keepalive")
    assert ended.code == 0
    assert [level for level, _, _ in ended.annotations] == ["warning"]
    assert place.api.enabled == []


def test_keepalive_without_a_token_says_so(place: Workspace) -> None:
    ended = place.verb("keepalive", GITHUB_TOKEN="")
    [(_, _, message)] = ended.annotations
    assert "No GITHUB_TOKEN" in message


# --- deadman ------------------------------------------------------------------------------------------------


def a_run(place: Workspace, number: int, hours_ago: float, conclusion: str) -> None:
    at = datetime.now(UTC) - timedelta(hours=hours_ago)
    place.api.add_run(number, Job(name="plan", conclusion=conclusion, completed_at=at), created_at=at)


def test_a_watch_with_a_recent_plan_is_well(place: Workspace) -> None:
    a_run(place, 1, 9, "success")
    a_run(place, 2, 5, "success")
    a_run(place, 3, 1, "failure")
    ended = place.verb("deadman", "--hours", "6")
    assert (ended.code, place.api.issues) == (0, {})
    assert "watch.yml is well" in ended.out


def test_an_overdue_plan_is_one_issue_until_the_next_good_plan(place: Workspace) -> None:
    a_run(place, 1, 9, "success")
    for number in (2, 3):
        a_run(place, number, 5 - number, "failure")
        ended = place.verb("deadman", "--hours", "6")
        assert ended.code == 0
        assert "9 hours ago" in ended.annotations[0][2]
    [issue] = place.api.open_issues()
    assert "watch.yml" in issue.title
    assert "is it enabled" in issue.body
    a_run(place, 4, 0, "success")
    assert "is well" in place.verb("deadman", "--hours", "6").out
    assert issue.state == "closed"
    assert len(place.api.issues) == 1


def test_a_watch_that_only_failed_is_overdue_and_one_that_never_ran_is_not(place: Workspace) -> None:
    assert "is well" in place.verb("deadman").out
    a_run(place, 1, 30, "failure")
    assert "no plan since at least" in place.verb("deadman").out
    assert len(place.api.open_issues()) == 1


def test_a_paused_watch_is_not_overdue(place: Workspace) -> None:
    a_run(place, 1, 30, "success")
    ended = place.verb("deadman", AWQ_BOT_PAUSED="true")
    assert "paused" in ended.out
    assert place.api.requests == []
    assert place.verb("deadman", AWQ_BOT_PAUSED="").code == 0
    assert len(place.api.open_issues()) == 1


def test_a_pause_that_the_workflows_would_not_see_is_refused(place: Workspace) -> None:
    ended = place.verb("deadman", AWQ_BOT_PAUSED="yes")
    assert ended.code == 2
    assert ended.annotations[0][2] == "AWQ_BOT_PAUSED is 'yes'%0ASet it to `true` or `false`, or delete it."


def test_when_github_does_not_answer_no_issue_is_opened(place: Workspace) -> None:
    place.api.fail("/actions/", status=500)
    ended = place.verb("deadman")
    assert ended.code == 0
    assert "When the last plan was made is not known." in ended.annotations[0][2]
    assert place.api.issues == {}


# --- comment ------------------------------------------------------------------------------------------------


def on_pull_request(place: Workspace, number: int, *, head: str = REPOSITORY, token: str | None = None) -> Ended:
    event = {"pull_request": {"number": number, "head": {"repo": {"full_name": head}}}}
    (place.root / "event.json").write_text(json.dumps(event))
    variables = {"GITHUB_EVENT_PATH": str(place.root / "event.json"), "HF_TOKEN": ""}
    return place.verb("comment", **variables | ({} if token is None else {"GITHUB_TOKEN": token}))


@pytest.fixture
def pull(place: Workspace) -> int:
    place.seed("Tiny")
    return place.api.open_issue("alice", "Watch Tiny", "Please.", (), is_pull=True).number


def test_a_pull_request_gets_one_comment_that_is_kept_up_to_date(place: Workspace, pull: int) -> None:
    ended = on_pull_request(place, pull)
    assert ended.code == 0, ended.err
    [text] = place.api.comments_on(pull)
    assert text.endswith(f"\n{COMMENT_MARK}\n")
    assert "**1 to quantize**" in text
    assert "lab/Tiny" in text
    assert "disk" in text
    assert ended.summary.strip() in text
    place.api.requests.clear()
    on_pull_request(place, pull)  # the same comment is not written again
    assert {asked.method for asked in place.api.requests if asked.path != "/graphql"} == {"GET"}
    place.watch("lab/Tiny", "lab/missing")
    on_pull_request(place, pull)
    [text] = place.api.comments_on(pull)
    assert "**1 to quantize**, 1 refused" in text
    assert "missing: no such repo" in text


def test_a_comment_that_only_looks_like_ours_is_left_alone(place: Workspace, pull: int) -> None:
    theirs = place.api.add_comment(pull, "mallory", f"hello\n{COMMENT_MARK}")
    ours = place.api.add_comment(pull, ACTIONS, "something else that Actions said")
    on_pull_request(place, pull)
    assert (theirs.body, ours.body) == (f"hello\n{COMMENT_MARK}", "something else that Actions said")
    assert len(place.api.comments_on(pull)) == 3


def test_mistakes_are_annotated_on_their_lines_and_listed_in_the_comment(place: Workspace, pull: int) -> None:
    with (place.root / "watchlist.yaml").open("a") as file:
        file.write("  - repo_id: a/b\n    gatee: {}\n")
    ended = on_pull_request(place, pull)
    assert ended.code == 2
    assert ended.annotations == [
        ("error", "file=watchlist.yaml,line=5", "unknown key 'gatee'%0ADid you mean 'gate'?")
    ]
    [text] = place.api.comments_on(pull)
    assert "unknown key 'gatee'" in text
    assert "unknown key 'gatee'" in ended.summary
    assert len(place.api.open_issues()) == 1  # the pull request itself


def test_a_forks_pull_request_gets_the_page_and_no_comment(place: Workspace, pull: int) -> None:
    ended = on_pull_request(place, pull, head="mallory/awq-bot", token=place.api.token(may_write=False))
    assert ended.code == 0
    assert "**1 to quantize**" in ended.summary
    assert place.api.comments_on(pull) == []
    assert place.api.requests == []


def test_a_comment_that_cannot_be_written_is_a_warning(place: Workspace, pull: int) -> None:
    ended = on_pull_request(place, pull, token=place.api.token(may_write=False))
    assert ended.code == 0
    assert "The comment could not be written." in ended.annotations[0][2]
    assert "**1 to quantize**" in ended.summary


def test_the_comment_asks_the_hub_without_a_token(place: Workspace, pull: int) -> None:
    place.hub.clear_requests()
    on_pull_request(place, pull)
    assert place.hub.requests != ()
    assert not any(request.authenticated for request in place.hub.requests)
    assert {request.method for request in place.hub.requests} <= {"GET", "HEAD"}


@pytest.mark.parametrize(
    "name", ["$(touch pwned)", "a/`touch pwned`", "a/b;touch pwned", "a/b::error::x", "../../etc"]
)
def test_a_name_with_shell_in_it_is_a_mistake_and_nothing_more(place: Workspace, pull: int, name: str) -> None:
    (place.root / "watchlist.yaml").write_text(f"publish_to: quantized\nmodels:\n  - {json.dumps(name)}\n")
    ended = on_pull_request(place, pull)
    assert ended.code == 2
    assert [level for level, _, _ in ended.commands if level != "add-mask"] == ["error"]
    assert not (place.root / "pwned").exists()
    [text] = place.api.comments_on(pull)
    assert "`touch" not in text.replace("\\`", "")
