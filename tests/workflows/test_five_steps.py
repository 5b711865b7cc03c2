"""README's five steps, each done as it is written there: from the template to the first published model."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from bot.localhub import LocalHub
from tests.support.github_api.jit_runners import JitRunners
from tests.support.github_api.server import REPOSITORY
from tests.support.github_api.settings import Settings
from tests.support.sandbox import ASSETS
from tests.workflows.deployment import (
    ASSET,
    NVIDIA_SMI,
    PIP,
    Deployment,
    fresh_python,
    hosted_machine,
    publish_job,
    quantize_job,
)
from tests.workflows.interpreter.api import RunsApi
from tests.workflows.interpreter.documents import ROOT
from tests.workflows.interpreter.parser import WorkflowParser
from tests.workflows.interpreter.repository import Repository
from tests.workflows.interpreter.runs import Run, start
from tests.workflows.operator import GpuMachine, Pages

STEPS = (
    "Choose *Use this template*, create a **private** repository, and list your models and `publish_to` in"
    " `watchlist.yaml`.",
    "Under *Settings*, add a secret `HF_TOKEN` (read access), and an environment `publish`, restricted to branch"
    " `main`, with the secret `HF_WRITE_TOKEN`.",
    "Register a GPU machine as a [self-hosted runner](.github/runner/README.md), labelled `self-hosted`, `gpu`,"
    " `gpu-16gb`, `gpu-24gb`.",
    "Open *Actions* → *watch* → *Run workflow* and tick *dry run*: the run's summary shows what would be done, and"
    " why.",
    "Run it again without *dry run*. It publishes the first model; from then on it looks for new releases every"
    " hour.",
)
OWNER = REPOSITORY.split("/", maxsplit=1)[0]
QUANTIZE = quantize_job("one")


@dataclass
class Beginning:
    """What there is before the first step: accounts, a Hub with a model, and a machine with a GPU."""

    deployment: Deployment
    settings: Settings
    runners: JitRunners
    machine: GpuMachine
    pages: Pages

    @property
    def as_github_shows_it(self) -> dict[str, bool | None]:
        return {"private": self.settings.private}

    def started(self) -> Run:
        """The run that was just asked for."""
        file, inputs = self.settings.dispatched.pop()
        payload = {"inputs": inputs, "repository": self.as_github_shows_it}
        return start(self.deployment.repository, file, "workflow_dispatch", **payload)


@pytest.fixture
def beginning(parser: WorkflowParser, tmp_path: Path) -> Iterator[Beginning]:
    settings = Settings(template=ROOT, files=tmp_path / "repository")
    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / "nvidia-smi").write_text(NVIDIA_SMI)
    (tools / "nvidia-smi").chmod(0o755)
    runners = JitRunners()
    with LocalHub(tmp_path / "hub") as hub, RunsApi((*settings.routes, *runners.routes)) as api:
        path = f"{tools}:{Path(sys.executable).parent}:/usr/bin:/bin"
        machine = GpuMachine(tmp_path / "gpu", path, hub.endpoint)
        runners.token = api.token(OWNER)
        hub.seed("lab/one", ASSETS / ASSET)
        hosted = hosted_machine(hub, tmp_path) | PIP | {"PATH": fresh_python(tmp_path / "python")}
        repository = Repository(
            parser=parser,
            api=api,
            root=tmp_path / "runs",
            checkout=settings.files,
            source=settings.files,
            machine=hosted,
            gpu_machine=machine.environment,
            secrets=settings.secrets,
            environments=settings.environments,
            tools=(),
        )
        deployment = Deployment(hub=hub, api=api, repository=repository, volume=machine.work)
        with Pages(api.url, api.token(OWNER)) as pages:
            yield Beginning(deployment, settings, runners, machine, pages)


def test_the_readme_lists_these_five_steps() -> None:
    section = (
        (ROOT / "README.md")
        .read_text()
        .split("## On GitHub Actions", maxsplit=1)[1]
        .split("\n\n##", maxsplit=1)[0]
    )
    assert tuple(re.findall(r"^\d\. (.+)$", section, re.MULTILINE)) == STEPS


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_five_steps_lead_from_the_template_to_the_first_published_model(beginning: Beginning) -> None:
    deployment, pages = beginning.deployment, beginning.pages

    # 1. Until the watchlist is written nothing is watched, and nothing fails.
    pages.use_this_template(private=True)
    run = deployment.watch()
    assert run.results == {"plan": "success"}
    assert "the watchlist names no models" in run.job("plan").summary
    deployment.write_watchlist("one")

    # 2.
    pages.repository.create_secret("HF_TOKEN", deployment.read_token)
    pages.create_environment("publish", {"HF_WRITE_TOKEN": deployment.write_token}, branch="main")

    # 3.
    labels = ("self-hosted", "gpu", "gpu-16gb", "gpu-24gb")
    with beginning.machine.waiting_for_one_job(deployment.api.url, beginning.runners.token, labels):
        # 4.
        pages.run_workflow("watch.yml", dry_run=True)
        dry = beginning.started()
        assert dry.results == {"plan": "success"}
        assert "**1 to quantize**" in dry.job("plan").summary
        assert "first release" in dry.job("plan").summary

        # 5.
        pages.run_workflow("watch.yml", dry_run=False)
        first = beginning.started()
    assert first.results == dict.fromkeys(("plan", QUANTIZE, publish_job("one"), "report"), "success")
    assert deployment.is_published("one")
    assert {*first.job(QUANTIZE).labels} <= {*beginning.runners.registered[0]["labels"]}
    assert list((beginning.machine.work / "job").iterdir()) == []

    # Every hour from now on.
    assert deployment.watch(repository=beginning.as_github_shows_it).results == {"plan": "success"}
