"""The status page as GitHub builds and deploys it: only where that is asked for, and by a job without secrets."""

from __future__ import annotations

import json
from pathlib import Path

from bot.github.issues import mark
from bot.records import Attempts
from tests.support.github_api.server import ACTIONS
from tests.workflows.deployment import Deploy, Deployment, target
from tests.workflows.interpreter.actions import SITE
from tests.workflows.interpreter.runs import Run, start, steps_with_value


def build(deployment: Deployment, event: str = "schedule") -> Run:
    return start(deployment.repository, "status.yml", event)


def site(run: Run) -> Path:
    return run.artifacts.named("github-pages").folder


def test_nothing_is_published_unless_the_variable_asks_for_it(deploy: Deploy) -> None:
    deployment = deploy("one", prepared=False)
    for value in ("", "false", "yes"):
        deployment.repository.variables["AWQ_BOT_STATUS_PAGE"] = value
        run = build(deployment)
        assert (run.results, run.artifacts.names()) == ({}, [])


def test_the_page_is_built_and_deployed_with_failed_attempts_and_without_what_is_private(deploy: Deploy) -> None:
    deployment = deploy("one", "secret", prepared=False)
    deployment.hub.repo("lab/secret").update_settings(private=True)
    deployment.repository.variables["AWQ_BOT_STATUS_PAGE"] = "true"
    tried = Attempts(target=target("one"), content="0" * 64, count=2, next_try="2026-11-22T04:17:05Z")
    deployment.api.open_issue(ACTIONS, "awq-bot: it failed", f"Words.\n\n{mark(tried)}\n")
    run = build(deployment)
    assert run.results == {"build": "success", "deploy": "success"}, run.steps[-1].log
    report = json.loads((site(run) / "status.json").read_text())
    assert [model["source"] for model in report["models"]] == ["lab/one"]
    assert (report["left_out"], report["private"], report["notes"]) == (1, False, [])
    assert f"{SITE}/feed.xml" in (site(run) / "feed.xml").read_text()
    assert [path for path in site(run).rglob("*") if path.is_file() and "secret" in path.read_text()] == []
    # Nothing is written, and the job that deploys reads neither the Hub nor the repository.
    assert {asked.method for asked in deployment.api.requests if asked.path != "/graphql"} == {"GET"}
    assert {job for job, _ in steps_with_value(run.steps, deployment.read_token)} == {"build"}


def test_a_hub_that_is_down_deploys_nothing(deploy: Deploy) -> None:
    deployment = deploy("one", prepared=False)
    deployment.repository.variables["AWQ_BOT_STATUS_PAGE"] = "true"
    deployment.repository.machine["HF_ENDPOINT"] = "http://127.0.0.1:9"
    assert build(deployment, "workflow_dispatch").results == {"build": "failure"}
