"""The checks of a change, and the watchdog over the watch. `make` is a stand-in that says what it was asked."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from tests.support.github_api.server import Job
from tests.workflows.deployment import Deploy, Deployment
from tests.workflows.interpreter.documents import load_workflow
from tests.workflows.interpreter.runs import Run, start

MAKE = """\
#!/bin/sh
echo "make $*"
test "make $1" != "$FAILS"
"""


@pytest.fixture
def deployment(deploy: Deploy, tmp_path: Path) -> Deployment:
    made = deploy("one", prepared=False)
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "make").write_text(MAKE)
    (tmp_path / "bin" / "make").chmod(0o755)
    path = made.repository.machine["PATH"]
    made.repository.machine |= {"PATH": f"{tmp_path / 'bin'}:{path}", "FAILS": "nothing"}
    return made


def propose(deployment: Deployment) -> Run:
    pull = {"head": {"repo": {"full_name": "a/fork"}}}
    return start(deployment.repository, "ci.yml", "pull_request", pull_request=pull)


def test_a_change_is_checked_on_every_supported_python(deployment: Deployment) -> None:
    run = propose(deployment)
    assert set(run.results.values()) == {"success"}
    assert [step.log for step in run.steps] == [
        "make check TORCH_INDEX=https://download.pytorch.org/whl/cpu",
        "make test",
        "make test-base PYTHON=python",
        "make test-base PYTHON=python",
        "make audit PYTHON=python",
    ]
    assert list(run.results)[1:3] == ["without torch on 3.12", "without torch on 3.13"]


@pytest.mark.parametrize("fails", ["make check", "make test", "make test-base"])
def test_all_green_fails_when_any_job_failed(deployment: Deployment, fails: str) -> None:
    deployment.repository.machine["FAILS"] = fails
    assert propose(deployment).job("all green").result == "failure"


def test_a_known_vulnerability_is_no_fault_of_a_change(deployment: Deployment) -> None:
    deployment.repository.machine["FAILS"] = "make audit"
    run = propose(deployment)
    assert run.job("known vulnerabilities").result == "failure"
    assert run.job("all green").result == "success"


def test_vulnerabilities_are_looked_for_weekly(deployment: Deployment) -> None:
    weekly, daily = (
        start(deployment.repository, "ci.yml", "schedule", schedule=cron) for cron in ("13 6 * * 1", "43 5 * * *")
    )
    assert weekly.results == {"known vulnerabilities": "success", "watchdog": "success"}
    assert daily.results == {"watchdog": "success"}
    events = load_workflow(deployment.repository.parser, "ci.yml").events["schedule"]
    assert [each["cron"] for each in events] == ["43 5 * * *", "13 6 * * 1"]


def watchdog(deployment: Deployment) -> None:
    run = start(deployment.repository, "ci.yml", "schedule")
    assert run.results == {"watchdog": "success"}, run.steps[-1].log


def planned(deployment: Deployment, *, hours_ago: float) -> None:
    then = datetime.now(UTC) - timedelta(hours=hours_ago)
    number = len(deployment.api.runs) + 1
    deployment.api.add_run(number, Job(name="plan", completed_at=then), created_at=then)


@pytest.mark.slow
def test_the_watchdog_opens_an_issue_without_a_recent_plan_and_closes_it_after_one(deployment: Deployment) -> None:
    planned(deployment, hours_ago=7)
    watchdog(deployment)
    watchdog(deployment)
    [issue] = deployment.api.troubles()
    assert "no plan" in issue.title + issue.body
    planned(deployment, hours_ago=0)
    watchdog(deployment)
    assert issue.state == "closed"
    assert deployment.api.enabled[:2] == ["watch.yml", "ci.yml"]


def test_a_new_repository_opens_no_watchdog_issue(deployment: Deployment) -> None:
    run = start(deployment.repository, "ci.yml", "push")
    assert run.job("watchdog").result == "success"
    assert deployment.api.enabled == ["watch.yml", "ci.yml"]
    assert not deployment.api.troubles()


def test_the_watchdog_opens_no_issue_while_the_watch_is_paused(deployment: Deployment) -> None:
    planned(deployment, hours_ago=700)
    deployment.repository.variables["AWQ_BOT_PAUSED"] = "true"
    watchdog(deployment)
    assert not deployment.api.troubles()
