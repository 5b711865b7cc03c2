"""Which issues a plan opens and closes: models that are refused, on hold, or no longer watched."""

from __future__ import annotations

import pytest

from bot.github.issues import mark, read_mark
from bot.hub import session
from bot.localhub import Fault
from bot.records import Attempts
from tests.support.github_api.server import ACTIONS, Issue
from tests.support.repos import source_files
from tests.support.workspace import WEIGHTS, Workspace

TARGET = "quantized/Tiny-awq"
UP = {"model__safetensors": WEIGHTS}


@pytest.fixture(autouse=True)
def one_attempt(monkeypatch: pytest.MonkeyPatch) -> None:
    """An outage of the Hub is not waited for."""
    monkeypatch.setattr(session, "ATTEMPTS", 1)


def only_issue(workspace: Workspace) -> Issue:
    [issue] = workspace.api.open_issues()
    return issue


def failure_of(workspace: Workspace, target: str) -> Issue:
    tried = Attempts(target=target, content="0" * 64, count=2, next_try="2026-11-22T04:17:05Z")
    return workspace.api.open_issue(ACTIONS, "awq-bot: it failed", f"Words.\n\n{mark(tried)}\n")


def test_a_refusal_is_one_issue_until_it_is_no_longer_refused(workspace: Workspace) -> None:
    workspace.watch("lab/Tiny")
    workspace.plan("--dry-run")
    assert workspace.api.issues == {}
    workspace.plan()
    issue = only_issue(workspace)
    assert "missing" in issue.title
    workspace.hub.seed("lab/Tiny", source_files(**UP), gated="manual")
    ended = workspace.plan()
    assert (ended.code, ended.outputs["quantize_count"]) == (0, "0")
    assert only_issue(workspace) is issue
    assert issue.title.startswith(f"awq-bot: {TARGET}: gated: access to the weights was refused")
    assert issue.labels == ["awq-bot", "awq-bot: upstream"]
    assert "**cause** gated: access to the weights was refused" in issue.body
    assert "**fix** Look at lab/Tiny on the Hub." in issue.body
    found = read_mark(issue.body, issue=issue.number)
    assert found is not None
    assert (found.target, found.count) == (f"refused:{TARGET}", 0)
    workspace.api.requests.clear()
    workspace.plan()  # nothing is written that is there already
    assert {asked.method for asked in workspace.api.requests if asked.path != "/graphql"} == {"GET"}
    assert workspace.api.comments_on(issue.number) == []
    workspace.hub.faults.add(Fault(path="/api/models/lab/Tiny", status=503, times=None))
    workspace.plan()
    assert only_issue(workspace) is issue
    workspace.hub.faults.clear()
    workspace.hub.grant_access("lab/Tiny", "reader")
    assert workspace.plan().outputs["quantize_count"] == "1"
    assert issue.state == "closed"
    assert "no longer refused" in workspace.api.comments_on(issue.number)[0]


def test_a_refusal_counts_no_attempt_and_leaves_the_count_of_failures_alone(workspace: Workspace) -> None:
    workspace.watch("lab/Tiny")
    failure = failure_of(workspace, TARGET)
    before = failure.body
    workspace.plan()
    assert len(workspace.api.open_issues()) == 2
    assert failure.body == before
    workspace.seed("Tiny")
    assert workspace.plan().outputs["quantize_count"] == "1"
    assert only_issue(workspace) is failure


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/api/models/lab/Tiny", 503),
        ("/api/models/quantized/Tiny-awq", 502),
        ("lab/Tiny/resolve/.*/config.json", 500),
        ("", None),  # a shard is not uploaded yet
    ],
)
def test_what_passes_without_a_person_opens_no_issue(workspace: Workspace, path: str, status: int | None) -> None:
    workspace.seed("Tiny")
    if status:
        workspace.hub.faults.add(Fault(path=path, status=status, times=None))
    else:
        index = b'{"weight_map": {"model.embed_tokens.weight": "model-00001-of-00002.safetensors"}}'
        workspace.hub.seed("lab/Tiny", {"model.safetensors.index.json": index}, delete=("model.safetensors",))
    ended = workspace.plan()
    assert "### Refused" in ended.summary
    assert ("upload incomplete" in ended.summary) == (not status)
    assert workspace.api.issues == {}


def test_issues_of_a_removed_model_are_closed_by_a_whole_plan_only(workspace: Workspace) -> None:
    workspace.seed("Other")
    workspace.hub.seed("lab/Tiny", source_files(**UP))
    workspace.watch("lab/Other", "lab/missing")
    workspace.plan()
    removed = [failure_of(workspace, TARGET), only_issue_about(workspace, "missing")]
    failing = failure_of(workspace, "quantized/Other-awq")
    watch = failure_of(workspace, "watch")
    workspace.watch("lab/Other")
    workspace.plan("--only", "lab/Other")
    assert len(workspace.api.open_issues()) == 4
    workspace.plan()
    assert {issue.number for issue in workspace.api.open_issues()} == {failing.number, watch.number}
    for issue in removed:
        [said] = workspace.api.comments_on(issue.number)
        assert "It is no longer on the watchlist." in said
        assert "/actions/runs/1" in said


def only_issue_about(workspace: Workspace, name: str) -> Issue:
    [issue] = [issue for issue in workspace.api.open_issues() if name in issue.title]
    return issue


def test_issues_of_a_model_on_hold_are_closed_and_say_so(workspace: Workspace) -> None:
    workspace.watch("lab/missing")
    workspace.plan()
    issues = [only_issue(workspace), failure_of(workspace, "quantized/missing-awq")]
    path = workspace.root / "watchlist.yaml"
    path.write_text(path.read_text().replace("- lab/missing", "- {repo_id: lab/missing, hold: not today}"))
    workspace.plan()
    assert workspace.api.open_issues() == []
    assert all("on hold" in workspace.api.comments_on(issue.number)[0] for issue in issues)
