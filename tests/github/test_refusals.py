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


def only_issue(place: Workspace) -> Issue:
    [issue] = place.api.open_issues()
    return issue


def failure_of(place: Workspace, target: str) -> Issue:
    tried = Attempts(target=target, content="0" * 64, count=2, next_try="2026-11-22T04:17:05Z")
    return place.api.open_issue(ACTIONS, "awq-bot: it failed", f"Words.\n\n{mark(tried)}\n")


def test_a_refusal_is_one_issue_until_it_is_no_longer_refused(place: Workspace) -> None:
    place.hub.seed("lab/Tiny", source_files(**UP), gated="manual")
    place.watch("lab/Tiny")
    for _ in range(2):
        ended = place.plan()
        assert (ended.code, ended.outputs["quantize_count"]) == (0, "0")
        issue = only_issue(place)
    assert issue.title.startswith(f"awq-bot: {TARGET}: gated: access to the weights was refused")
    assert issue.labels == ["awq-bot", "awq-bot: upstream"]
    assert "**cause** gated: access to the weights was refused" in issue.body
    assert "**fix** Look at lab/Tiny on the Hub." in issue.body
    found = read_mark(issue.body, issue=issue.number)
    assert found is not None
    assert (found.target, found.count) == (f"refused:{TARGET}", 0)
    place.hub.grant_access("lab/Tiny", "reader")
    assert place.plan().outputs["quantize_count"] == "1"
    assert issue.state == "closed"
    assert "no longer refused" in place.api.comments_on(issue.number)[0]


def test_an_unchanged_refusal_is_not_written_again(place: Workspace) -> None:
    place.watch("lab/missing")
    place.plan()
    place.api.requests.clear()
    place.plan()
    assert {asked.method for asked in place.api.requests if asked.path != "/graphql"} == {"GET"}


def test_another_reason_is_written_into_the_same_issue(place: Workspace) -> None:
    place.watch("lab/Tiny")
    place.plan()
    issue = only_issue(place)
    assert "missing" in issue.title
    place.hub.seed("lab/Tiny", source_files(**UP) | {"README.md": b"no licence"})
    place.plan()
    assert only_issue(place) is issue
    assert "licence absent" in issue.title
    assert len(place.api.comments_on(issue.number)) == 0


def test_a_refusal_counts_no_attempt_and_leaves_the_count_of_failures_alone(place: Workspace) -> None:
    place.watch("lab/Tiny")
    failure = failure_of(place, TARGET)
    before = failure.body
    place.plan()
    assert len(place.api.open_issues()) == 2
    assert failure.body == before
    place.seed("Tiny")
    assert place.plan().outputs["quantize_count"] == "1"
    assert only_issue(place) is failure


@pytest.mark.parametrize(
    "fault",
    [
        Fault(path="/api/models/lab/Tiny", status=503, times=None),
        Fault(path="/api/models/quantized/Tiny-awq", status=502, times=None),
        Fault(path="lab/Tiny/resolve/.*/config.json", status=500, times=None),
    ],
)
def test_an_outage_of_the_hub_opens_no_issue(place: Workspace, fault: Fault) -> None:
    place.seed("Tiny")
    place.hub.faults.add(fault)
    ended = place.plan()
    assert "### Refused" in ended.summary
    assert place.api.issues == {}


def test_an_incomplete_upload_opens_no_issue(place: Workspace) -> None:
    index = b'{"weight_map": {"model.embed_tokens.weight": "model-00001-of-00002.safetensors"}}'
    files = source_files(**UP)
    del files["model.safetensors"]
    place.hub.seed("lab/Tiny", files | {"model.safetensors.index.json": index})
    place.watch("lab/Tiny")
    assert "upload incomplete" in place.plan().summary
    assert place.api.issues == {}


def test_the_issue_of_a_refusal_stays_open_through_an_outage(place: Workspace) -> None:
    place.watch("lab/missing")
    place.plan()
    issue = only_issue(place)
    place.hub.faults.add(Fault(path="/api/models/lab/missing", status=503, times=None))
    place.plan()
    assert only_issue(place) is issue


def test_a_dry_run_opens_no_issue(place: Workspace) -> None:
    place.watch("lab/missing")
    place.plan("--dry-run")
    assert place.api.issues == {}


def test_issues_of_a_removed_model_are_closed_by_a_whole_plan_only(place: Workspace) -> None:
    place.seed("Other")
    place.hub.seed("lab/Tiny", source_files(**UP))
    place.watch("lab/Other", "lab/missing")
    place.plan()
    removed = [failure_of(place, TARGET), only_issue_about(place, "missing")]
    failing = failure_of(place, "quantized/Other-awq")
    watch = failure_of(place, "watch")
    place.watch("lab/Other")
    place.plan("--only", "lab/Other")
    assert len(place.api.open_issues()) == 4
    place.plan()
    assert {issue.number for issue in place.api.open_issues()} == {failing.number, watch.number}
    for issue in removed:
        [said] = place.api.comments_on(issue.number)
        assert "It is no longer on the watchlist." in said
        assert "/actions/runs/1" in said


def only_issue_about(place: Workspace, name: str) -> Issue:
    [issue] = [issue for issue in place.api.open_issues() if name in issue.title]
    return issue


def test_issues_of_a_model_on_hold_are_closed_and_say_so(place: Workspace) -> None:
    place.watch("lab/missing")
    place.plan()
    issues = [only_issue(place), failure_of(place, "quantized/missing-awq")]
    path = place.root / "watchlist.yaml"
    path.write_text(path.read_text().replace("- lab/missing", "- {repo_id: lab/missing, hold: not today}"))
    place.plan()
    assert place.api.open_issues() == []
    assert all("on hold" in place.api.comments_on(issue.number)[0] for issue in issues)
