"""`awq-bot actions plan`: what a run starts, what it leaves alone, and what it writes to GitHub."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from bot.errors import WatchlistError
from bot.github.attempts import iso
from bot.github.issues import mark
from bot.github.planning import publishing_place
from bot.records import Attempts, Watchlist, read_signer
from bot.records import Job as PlannedJob
from tests.support import factories
from tests.support.github_api.server import ACTIONS, REPOSITORY, Job
from tests.support.repos import source_files
from tests.support.workspace import WEIGHTS, Workspace, rows

TARGET = "quantized/Tiny-awq"
RATE_LIMITED = "API rate limit exceeded for installation ID 1."
SWITCHES = ("AWQ_BOT_PAUSED", "AWQ_BOT_OIDC")


def test_a_gated_model_is_refused_where_everyone_can_download_artifacts(workspace: Workspace) -> None:
    workspace.seed("Open")
    workspace.hub.seed("lab/Gated", source_files(model__safetensors=WEIGHTS), gated="auto")
    workspace.hub.grant_access("lab/Gated", "reader")
    workspace.watch("lab/Open", "lab/Gated")
    event = workspace.root / "event.json"
    event.write_text(json.dumps({"repository": {"private": False}}))
    ended = workspace.plan(GITHUB_EVENT_PATH=str(event))
    assert ended.outputs["quantize_count"] == "1"
    assert "everyone could download the artifacts of its jobs" in ended.summary
    assert (
        workspace.plan(GITHUB_EVENT_PATH=str(event), AWQ_BOT_PUBLISH_ON="runner").outputs["quantize_count"] == "2"
    )


def test_an_empty_plan_starts_nothing(workspace: Workspace) -> None:
    workspace.watch("lab/missing")
    ended = workspace.plan()
    assert ended.code == 0, ended.err
    assert (ended.outputs["quantize_count"], ended.outputs["refresh_count"]) == ("0", "0")
    assert rows(ended) == rows(ended, "refresh") == []
    assert "### Refused" in ended.summary
    assert "missing: no such repo" in ended.summary


def test_variables_of_a_dispatch_set_the_options_and_empty_ones_are_defaults(workspace: Workspace) -> None:
    workspace.seed("Tiny", "Other")
    ended = workspace.plan(AWQ_BOT_ONLY="lab/Tiny", AWQ_BOT_FORCE="true", AWQ_BOT_PUBLISH_ON="runner")
    assert [row["target"] for row in rows(ended)] == [TARGET]
    names = ("ONLY", "FORCE", "DRY_RUN", "PUBLISH_ON", "OIDC", "HEARTBEAT_URL", "MOST_JOBS", "PAUSED")
    ended = workspace.plan(**{f"AWQ_BOT_{name}": "" for name in names})
    assert (ended.code, ended.outputs["quantize_count"]) == (0, "2")


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"AWQ_BOT_PUBLISH_ON": "moon"}, "AWQ_BOT_PUBLISH_ON is 'moon'"),
        ({"AWQ_BOT_PUBLISH_ON": "runner", "AWQ_BOT_OIDC": "true"}, "cannot be combined with Trusted Publishers"),
        *(({name: said}, f"{name} is '{said}'") for name in SWITCHES for said in ("1", "yes", "on", " true")),
        ({"AWQ_BOT_ONLY": "lab/other"}, "lab/other is not on watchlist.yaml"),
        ({"AWQ_BOT_ONLY": "$(touch /tmp/x); `id` \n::set-output name=a::b"}, "is not on watchlist.yaml"),
    ],
)
def test_invalid_variables_are_refused_with_an_annotation(
    workspace: Workspace, variables: dict[str, str], said: str
) -> None:
    workspace.seed("Tiny")
    ended = workspace.plan(**variables)
    assert ended.code == 2
    [(level, _, message)] = ended.annotations
    assert level == "error"
    assert said in message
    assert ended.outputs == {}


@pytest.mark.parametrize("said", ["true", "True"])
def test_a_variable_is_true_as_the_workflows_read_it(workspace: Workspace, said: str) -> None:
    workspace.seed("Tiny")
    ended = workspace.plan(AWQ_BOT_PAUSED=said)
    assert (ended.code, ended.outputs) == (0, {})
    assert "paused" in ended.out
    assert "Trusted Publishers cannot create it" in workspace.plan(AWQ_BOT_OIDC=said).summary
    assert workspace.plan(AWQ_BOT_PAUSED="false", AWQ_BOT_OIDC="False").outputs["quantize_count"] == "1"


def test_a_dry_run_shows_the_plan_and_starts_nothing(workspace: Workspace) -> None:
    workspace.seed("Tiny")
    ended = workspace.plan("--dry-run")
    assert (ended.outputs["quantize_count"], rows(ended)) == ("0", [])
    assert "### Would start" in ended.summary
    assert "lab/Tiny" in ended.summary


@pytest.mark.parametrize(
    ("count", "wait", "reason"),
    [(2, timedelta(hours=5), "next attempt not before"), (4, None, "no more automatic retries")],
)
def test_what_failed_waits_unless_it_is_forced_or_its_issue_is_closed(
    workspace: Workspace, planned: PlannedJob, count: int, wait: timedelta | None, reason: str
) -> None:
    next_try = iso(datetime.now(UTC) + wait) if wait else None
    tried = Attempts(target=TARGET, content=planned.attempt_digest, count=count, next_try=next_try)
    issue = workspace.api.open_issue(ACTIONS, "awq-bot: it failed", f"Words.\n\n{mark(tried)}\n")
    ended = workspace.plan()
    assert ended.outputs["quantize_count"] == "0"
    assert "### Waiting" in ended.summary
    assert reason in ended.summary
    assert f"[issue {issue.number}](https://github.com/{REPOSITORY}/issues/{issue.number})" in ended.summary
    assert workspace.plan("--force").outputs["quantize_count"] == "1"
    issue.state = "closed"
    assert workspace.plan().outputs["quantize_count"] == "1"


def test_the_variable_limits_the_releases_in_progress(workspace: Workspace) -> None:
    workspace.seed(*(f"Tiny-{number}" for number in range(9)))
    assert workspace.plan().outputs["quantize_count"] == "8"
    job = Job(name="quantized/Tiny-8-awq / quantize quantized/Tiny-8-awq", status="queued")
    workspace.api.add_run(2, job, status="in_progress")
    ended = workspace.plan(AWQ_BOT_MOST_JOBS="3")
    assert ended.outputs["quantize_count"] == "2"
    assert "A later run will start it." in ended.summary
    for wrong in ("0", "many"):
        assert workspace.plan(AWQ_BOT_MOST_JOBS=wrong).code == 2


@pytest.mark.parametrize(
    ("fault", "started", "notes"),
    [
        ({"status": 403, "body": RATE_LIMITED, "headers": {"X-RateLimit-Reset": "9" * 11}}, 4, ["limits our"]),
        ({"status": 401, "body": "Bad credentials"}, 4, ["refuses the token"]),
        ({"status": 403, "body": "Resource not accessible by integration"}, 4, ["GitHub answers 403"]),
        ({"status": 410, "body": "Issues are disabled for this repo"}, 4, ["GitHub answers 410"]),
        ({"status": 500}, 4, ["keeps failing, after 4 attempts", "no more than 4 jobs are started"]),
        ({"path": "/actions/", "status": 503}, 5, ["What other runs work on is not known."]),
        ({"status": 502, "times": 2}, 5, []),  # the third attempt succeeds
    ],
)
def test_an_error_of_github_is_noted_and_does_not_stop_the_run(
    workspace: Workspace, fault: dict[str, Any], started: int, notes: list[str]
) -> None:
    workspace.seed(*(f"Tiny-{number}" for number in range(5)))
    workspace.api.fail(**{"path": "/issues"} | fault)
    ended = workspace.plan()
    assert (ended.code, ended.outputs["quantize_count"]) == (0, str(started)), ended.err
    assert all(note in ended.summary for note in notes)
    assert ("NOTE" in ended.summary) == bool(notes)


def test_targets_of_runs_in_progress_are_left_alone(workspace: Workspace) -> None:
    workspace.seed("Tiny", "Made", "Failed", "Waits", "Old", "Own")
    name = "{0} / quantize {0}".format
    workspace.api.add_run(1, Job(name=name("quantized/Own-awq"), status="in_progress"), status="in_progress")
    workspace.api.add_run(
        2,
        Job(name="plan"),
        Job(name=name(TARGET), status="in_progress"),
        Job(name="quantize quantized/Made-awq"),
        Job(name=name("quantized/Failed-awq"), conclusion="failure"),
        status="in_progress",
    )
    workspace.api.add_run(3, Job(name="quantized/Waits-awq", status="queued"), status="queued")
    workspace.api.add_run(4, Job(name="quantize quantized/Old-awq"), status="completed")
    ended = workspace.plan()
    assert {row["target"] for row in rows(ended)} == {f"quantized/{name}-awq" for name in ("Failed", "Old", "Own")}
    assert ended.summary.count("another run is working on it") == 3


def test_a_broken_watchlist_is_annotated_line_by_line_and_one_issue(workspace: Workspace) -> None:
    workspace.seed("Tiny")
    good = (workspace.root / "watchlist.yaml").read_text()
    (workspace.root / "watchlist.yaml").write_text(
        f"{good}  - repo_id: a/b\n    gatee: {{}}\n  - repo_id: c%,:d\n"
    )
    for _ in range(2):
        ended = workspace.plan()
        assert (ended.code, ended.outputs) == (2, {})
        assert [(level, where) for level, where, _ in ended.annotations] == [
            ("error", "file=watchlist.yaml,line=6"),
            ("error", "file=watchlist.yaml,line=7"),
        ]
        assert "unknown key 'gatee'%0ADid you mean 'gate'?" in ended.annotations[0][2]
        assert "c%25,:d" in ended.annotations[1][2]
        [issue] = workspace.api.open_troubles()
    assert issue.labels == ["awq-bot", "awq-bot: configuration"]
    assert "watchlist.yaml:6" in issue.body.replace("\\", "")
    assert not (workspace.root / "plan").exists()

    (workspace.root / "watchlist.yaml").write_text(good)
    assert workspace.plan().outputs["quantize_count"] == "1"
    assert workspace.api.open_troubles() == []


def test_the_heartbeat_url_is_requested_after_a_good_plan_only(workspace: Workspace) -> None:
    def annotations(url: str) -> list[tuple[str, str, str]]:
        return workspace.plan(AWQ_BOT_HEARTBEAT_URL=url).annotations

    workspace.seed("Tiny")
    heartbeat = f"{workspace.hub.endpoint}/api/models?limit=1"
    assert annotations(heartbeat) == []
    assert any(request.query == "limit=1" for request in workspace.hub.requests)
    assert annotations("http://127.0.0.1:9/") == [("warning", "", "the heartbeat URL did not answer")]
    workspace.watch("lab/missing", "lab/gone")
    workspace.hub.clear_requests()
    refused = "every model was refused, so the heartbeat URL is not requested"
    assert annotations(heartbeat) == [("warning", "", refused)]
    assert not any(request.query == "limit=1" for request in workspace.hub.requests)


def test_an_expired_hub_token_is_reported_once_and_not_shown(workspace: Workspace) -> None:
    workspace.seed("Tiny")
    expired, token = workspace.hub.add_token("reader-2", role="read"), workspace.api.token()
    workspace.hub.revoke_token(expired)
    ended = workspace.plan(HF_TOKEN=expired, GITHUB_TOKEN=token)
    assert ended.code == 8
    [(_, where, message)] = ended.annotations
    assert "environment" in where
    assert "the Hub refuses the token" in message
    assert "HF_TOKEN" in message
    for secret in (expired, token):
        assert secret not in ended.everything
        assert ("add-mask", "", secret) in ended.commands


def test_text_from_upstream_is_never_read_as_a_command(workspace: Workspace) -> None:
    evil = "::set-output name=publish::true"
    card = f"---\nlicense: other\nlicense_name: '{evil} <img src=x> @everyone [x](http://evil)'\n---\n"
    workspace.seed("Tiny", README__md=card)
    text = (workspace.root / "watchlist.yaml").read_text()
    (workspace.root / "watchlist.yaml").write_text(
        text.replace("defaults: {", "defaults: {licenses: {deny: [other]}, ")
    )
    ended = workspace.plan()
    assert "licence refused" in ended.summary
    assert {name for name, _, _ in ended.commands} == {"add-mask"}
    assert "<img" not in ended.summary.replace("\\<", "")
    assert "@everyone" not in ended.summary
    assert json.loads(ended.outputs["quantize"]) == {"include": []}


def test_nothing_is_signed_on_a_gpu_runner() -> None:
    signed = factories.entry(signed_by=read_signer(f"key:{'ab' * 32}"))
    assert publishing_place("hosted", oidc=False, watchlist=Watchlist(entries=(signed,))) == "hosted"
    assert publishing_place("runner", oidc=False, watchlist=Watchlist(entries=(factories.entry(),))) == "runner"
    with pytest.raises(WatchlistError, match="nothing is signed on a GPU runner"):
        publishing_place("runner", oidc=False, watchlist=Watchlist(entries=(signed,)))
