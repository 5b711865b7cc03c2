"""A pull request that changes the watchlist: what its author and its reviewer get to see."""

from __future__ import annotations

from tests.support.github_api.server import ACTIONS
from tests.workflows.deployment import Deploy, Deployment
from tests.workflows.interpreter.repository import NAME
from tests.workflows.interpreter.runs import Run, start


def propose(deployment: Deployment, number: int, *, repository: str = NAME) -> Run:
    pull = {"number": number, "head": {"repo": {"full_name": repository}}}
    payload = {"action": "synchronize", "number": number, "pull_request": pull}
    return start(deployment.repository, "pull-request.yml", "pull_request", **payload)


def open_pull_request(deployment: Deployment) -> int:
    return deployment.api.open_issue("maintainer", "Watch one more", "", labels=[], is_pull=True).number


def test_the_plan_needs_no_secret_and_is_one_comment_that_is_updated(deploy: Deploy) -> None:
    deployment = deploy("one", "two", prepared=False)
    number = open_pull_request(deployment)
    deployment.hub.clear_requests()
    run = propose(deployment, number)
    assert run.results == {"plan": "success"}
    assert not [step for step in run.steps if "HF_TOKEN" in step.env]
    assert {request.authenticated for request in deployment.hub.requests} == {False}
    [comment] = deployment.api.comments_on(number)
    assert "lab/one" in comment
    assert "lab/two" in comment

    deployment.write_watchlist("two")
    again = propose(deployment, number)
    assert again.results == {"plan": "success"}, again.steps[-1].log
    [comment] = deployment.api.comments_on(number)
    assert "lab/one" not in comment
    assert {each.author for each in deployment.api.comments.values()} == {ACTIONS}


def test_a_pull_request_from_a_fork_gets_a_summary_annotations_and_no_comment(deploy: Deploy) -> None:
    deployment = deploy("one", prepared=False)
    number = open_pull_request(deployment)
    run = propose(deployment, number, repository="another/fork")
    assert run.results == {"plan": "success"}
    assert "lab/one" in run.job("plan").summary
    assert deployment.api.comments_on(number) == []
    assert not [asked for asked in deployment.api.requests if asked.method not in ("GET", "HEAD")]

    path = deployment.repository.checkout / "watchlist.yaml"
    path.write_text(path.read_text() + "  - not-a-model\n")
    run = propose(deployment, number, repository="another/fork")
    assert run.results == {"plan": "failure"}
    [annotation] = run.job("plan").annotations
    assert annotation.startswith(f"::error file=watchlist.yaml,line={len(path.read_text().splitlines())}")
