"""Which issues a plan opens and closes: models that are refused, on hold, or no longer watched."""

from __future__ import annotations

import pytest

from bot.github.issues import mark, read_mark
from bot.localhub import Fault
from bot.records import Attempts
from tests.support.github_api.server import ACTIONS, Issue
from tests.support.repos import source_files
from tests.support.workspace import WEIGHTS, Workspace

TARGET = "quantized/Tiny-awq"
UP = {"model__safetensors": WEIGHTS}


def only_issue(workspace: Workspace) -> Issue:
    [issue] = workspace.api.open_issues()
    return issue


def failure_of(workspace: Workspace, target: str) -> Issue:
    tried = Attempts(target=target, content="0" * 64, count=2, next_try="2026-11-22T04:17:05Z")
    return workspace.api.open_issue(ACTIONS, "awq-bot: it failed", f"Words.\n\n{mark(tried)}\n")


def test_a_refusal_is_one_issue_until_it_is_no_longer_refused(workspace: Workspace) -> None:
    workspace.hub.seed("lab/Tiny", source_files(**UP), gated="manual")
    workspace.watch("lab/Tiny")
    for _ in range(2):
        ended = workspace.plan()
        assert (ended.code, ended.outputs["quantize_count"]) == (0, "0")
        issue = only_issue(workspace)
    assert issue.title.startswith(f"awq-bot: {TARGET}: gated: access to the weights was refused")
    assert issue.labels == ["awq-bot", "awq-bot: upstream"]
    assert "**cause** gated: access to the weights was refused" in issue.body
    assert "**fix** Look at lab/Tiny on the Hub." in issue.body
    found = read_mark(issue.body, issue=issue.number)
    assert found is not None
    assert (found.target, found.count) == (f"refused:{TARGET}", 0)
    workspace.hub.grant_access("lab/Tiny", "reader")
    assert workspace.plan().outputs["quantize_count"] == "1"
    assert issue.state == "closed"
    assert "no longer refused" in workspace.api.comments_on(issue.number)[0]


def test_an_unchanged_refusal_is_not_written_again(workspace: Workspace) -> None:
    workspace.watch("lab/missing")
    workspace.plan()
    workspace.api.requests.clear()
    workspace.plan()
    assert {asked.method for asked in workspace.api.requests if asked.path != "/graphql"} == {"GET"}


def test_another_reason_is_written_into_the_same_issue(workspace: Workspace) -> None:
    workspace.watch("lab/Tiny")
    workspace.plan()
    issue = only_issue(workspace)
    assert "missing" in issue.title
    workspace.hub.seed("lab/Tiny", source_files(**UP) | {"README.md": b"no licence"})
    workspace.plan()
    assert only_issue(workspace) is issue
    assert "no licence: the repo" in issue.title
    assert len(workspace.api.comments_on(issue.number)) == 0


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
    "fault",
    [
        Fault(path="/api/models/lab/Tiny", status=503, times=None),
        Fault(path="/api/models/quantized/Tiny-awq", status=502, times=None),
        Fault(path="lab/Tiny/resolve/.*/config.json", status=500, times=None),
    ],
)
def test_an_outage_of_the_hub_opens_no_issue(workspace: Workspace, fault: Fault) -> None:
    workspace.seed("Tiny")
    workspace.hub.faults.add(fault)
    ended = workspace.plan()
    assert "### Refused" in ended.summary
    assert workspace.api.issues == {}


def test_an_incomplete_upload_opens_no_issue(workspace: Workspace) -> None:
    index = b'{"weight_map": {"model.embed_tokens.weight": "model-00001-of-00002.safetensors"}}'
    files = source_files(**UP)
    del files["model.safetensors"]
    workspace.hub.seed("lab/Tiny", files | {"model.safetensors.index.json": index})
    workspace.watch("lab/Tiny")
    assert "upload incomplete" in workspace.plan().summary
    assert workspace.api.issues == {}


def test_the_issue_of_a_refusal_stays_open_through_an_outage(workspace: Workspace) -> None:
    workspace.watch("lab/missing")
    workspace.plan()
    issue = only_issue(workspace)
    workspace.hub.faults.add(Fault(path="/api/models/lab/missing", status=503, times=None))
    workspace.plan()
    assert only_issue(workspace) is issue


def test_a_dry_run_opens_no_issue(workspace: Workspace) -> None:
    workspace.watch("lab/missing")
    workspace.plan("--dry-run")
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
