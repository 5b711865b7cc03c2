"""The checks of a change, and the watchdog over the watch. `make` is a stand-in that says what it was asked."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from tests.support.github_api.server import Job
from tests.workflows.deployment import Deploy, Deployment
from tests.workflows.runs import Run, start

MAKE = """\
#!/bin/sh
echo "make $*"
test "make $1" != "$FAILS"
"""


@pytest.fixture
def here(deploy: Deploy, tmp_path: Path) -> Deployment:
    made = deploy("one", prepared=False)
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "make").write_text(MAKE)
    (tmp_path / "bin" / "make").chmod(0o755)
    path = made.repository.machine["PATH"]
    made.repository.machine |= {"PATH": f"{tmp_path / 'bin'}:{path}", "FAILS": "nothing"}
    return made


def propose(here: Deployment) -> Run:
    return start(
        here.repository, "ci.yml", "pull_request", pull_request={"head": {"repo": {"full_name": "a/fork"}}}
    )


def test_a_change_is_checked_on_every_python_that_is_promised(here: Deployment) -> None:
    run = start(
        here.repository, "ci.yml", "pull_request", pull_request={"head": {"repo": {"full_name": "a/fork"}}}
    )
    assert set(run.results.values()) == {"success"}
    assert [step.log for step in run.steps] == [
        "make check TORCH_INDEX=https://download.pytorch.org/whl/cpu",
        "make test",
        "make test-base PYTHON=python",
        "make test-base PYTHON=python",
    ]
    assert list(run.results)[1:3] == ["without torch on 3.12", "without torch on 3.13"]


@pytest.mark.parametrize("fails", ["make check", "make test", "make test-base"])
def test_all_green_is_not_green_when_anything_failed(here: Deployment, fails: str) -> None:
    here.repository.machine["FAILS"] = fails
    run = propose(here)
    assert run.job("all green").result == "failure"


def watchdog(here: Deployment) -> None:
    run = start(here.repository, "ci.yml", "schedule")
    assert run.results == {"watchdog": "success"}, run.steps[-1].log


def planned(here: Deployment, *, hours_ago: float) -> None:
    then = datetime.now(UTC) - timedelta(hours=hours_ago)
    number = len(here.api.runs) + 1
    here.api.add_run(number, Job(name="plan", completed_at=then), created_at=then)


@pytest.mark.slow
def test_the_watchdog_says_when_nobody_watches_and_when_somebody_does_again(here: Deployment) -> None:
    planned(here, hours_ago=7)
    watchdog(here)
    watchdog(here)
    [issue] = here.api.issues.values()
    assert "no plan" in issue.title + issue.body
    planned(here, hours_ago=0)
    watchdog(here)
    assert issue.state == "closed"
    assert here.api.enabled[:2] == ["watch.yml", "ci.yml"]


def test_a_repository_that_is_minutes_old_is_not_dead(here: Deployment) -> None:
    run = start(here.repository, "ci.yml", "push")
    assert run.job("watchdog").result == "success"
    assert here.api.enabled == ["watch.yml", "ci.yml"]
    assert not here.api.issues


def test_the_watchdog_sleeps_while_the_watch_is_paused(here: Deployment) -> None:
    planned(here, hours_ago=700)
    here.repository.variables["AWQ_BOT_PAUSED"] = "true"
    watchdog(here)
    assert not here.api.issues
