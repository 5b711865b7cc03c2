"""A pull request that changes the watchlist: what its author and its reviewer get to see."""

from __future__ import annotations

from tests.support.github_api.server import ACTIONS
from tests.workflows.deployment import Deploy, Deployment
from tests.workflows.repository import NAME
from tests.workflows.runs import Run, start


def propose(here: Deployment, number: int, *, repository: str = NAME) -> Run:
    head = {"repo": {"full_name": repository}}
    pull = {"number": number, "head": head}
    return start(
        here.repository, "pull-request.yml", "pull_request", action="synchronize", number=number, pull_request=pull
    )


def open_pull_request(here: Deployment) -> int:
    return here.api.open_issue("maintainer", "Watch one more", "", labels=[], is_pull=True).number


def test_the_plan_is_kept_in_one_comment(deploy: Deploy) -> None:
    here = deploy("one", "two", prepared=False)
    number = open_pull_request(here)
    run = propose(here, number)
    assert run.results == {"plan": "success"}
    [comment] = here.api.comments_on(number)
    assert "lab/one" in comment
    assert "lab/two" in comment

    here.write_watchlist("two")
    again = propose(here, number)
    assert again.results == {"plan": "success"}, again.steps[-1].log
    [comment] = here.api.comments_on(number)
    assert "lab/one" not in comment
    assert {each.author for each in here.api.comments.values()} == {ACTIONS}


def test_it_needs_no_secret(deploy: Deploy) -> None:
    here = deploy("one", prepared=False)
    here.hub.clear_requests()
    run = propose(here, open_pull_request(here))
    assert here.hub.requests
    assert not [request for request in here.hub.requests if request.authenticated]
    assert not [step for step in run.steps if "HF_TOKEN" in step.env]


def test_a_fork_gets_the_page_and_no_comment(deploy: Deploy) -> None:
    here = deploy("one", prepared=False)
    number = open_pull_request(here)
    run = propose(here, number, repository="stranger/fork")
    assert run.results == {"plan": "success"}
    assert "lab/one" in run.job("plan").summary
    assert here.api.comments_on(number) == []
    assert not [asked for asked in here.api.requests if asked.method not in ("GET", "HEAD")]


def test_a_forks_mistake_is_annotated_on_its_line(deploy: Deploy) -> None:
    here = deploy("one", prepared=False)
    path = here.repository.checkout / "watchlist.yaml"
    path.write_text(path.read_text() + "  - not-a-model\n")
    line = len(path.read_text().splitlines())
    run = propose(here, open_pull_request(here), repository="stranger/fork")
    assert run.results == {"plan": "failure"}
    [annotation] = run.job("plan").annotations
    assert annotation.startswith(f"::error file=watchlist.yaml,line={line}")
    assert not here.api.issues[1].labels
