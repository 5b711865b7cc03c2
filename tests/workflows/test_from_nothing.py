"""What the other tests have ready, done for once: the installation, and quantizing."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.workflows.deployment import PIP, Deploy, fresh_python, publish_job, quantize_job
from tests.workflows.interpreter.documents import ROOT
from tests.workflows.interpreter.repository import NAME
from tests.workflows.interpreter.runs import start


@pytest.mark.slow
def test_a_run_with_nothing_prepared_quantizes_and_publishes(deploy: Deploy) -> None:
    deployment = deploy("one", prepared=False)
    run = deployment.watch()
    assert run.results == {
        "plan": "success",
        quantize_job("one"): "success",
        publish_job("one"): "success",
        "report": "success",
    }
    assert deployment.is_published("one")
    assert "quantizing: 4 of 4 layers" in run.job(quantize_job("one")).steps[-1].log


@pytest.mark.slow
def test_setup_installs_what_the_verbs_of_a_hosted_job_need_and_no_torch(deploy: Deploy, tmp_path: Path) -> None:
    deployment = deploy("one", prepared=False)
    for folder in ("bot", "templates"):
        shutil.copytree(
            ROOT / folder, deployment.repository.checkout / folder, ignore=shutil.ignore_patterns("__pycache__")
        )
    for name in ("pyproject.toml", "constraints.txt", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, deployment.repository.checkout)
    deployment.repository.tools = ()
    deployment.repository.machine |= PIP | {"PATH": fresh_python(tmp_path / "python")}
    number = deployment.api.open_issue("maintainer", "Watch it", "", labels=[], is_pull=True).number
    pull = {"number": number, "head": {"repo": {"full_name": NAME}}}
    run = start(deployment.repository, "pull-request.yml", "pull_request", number=number, pull_request=pull)
    assert run.results == {"plan": "success"}, run.steps[-1].log
    assert [step.name for step in run.steps] == ["Set up / Install the bot", "Check and plan"]
    assert len(deployment.api.comments_on(number)) == 1
    installed = {path.name for path in (tmp_path / "python").glob("lib/*/site-packages/*")}
    assert {"github", "huggingface_hub"} <= installed
    assert not {"torch", "awq", "starlette"} & installed
