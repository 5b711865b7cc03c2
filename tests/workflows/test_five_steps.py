"""README's five steps, each done as it is written there: from the template to the first published model.

What the other tests have ready is done here: installing on an empty Python, and quantizing.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import venv
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.small_sandbox import small_model
from tests.workflows.deployment import PIP, Deploy, Deployment, fresh_python, publish_job, quantize_job
from tests.workflows.interpreter.documents import ROOT
from tests.workflows.interpreter.repository import NAME
from tests.workflows.interpreter.runs import start


def use_template(deployment: Deployment) -> None:
    """What git has of this checkout, and nothing that merely lies there; no secrets yet."""
    repository = deployment.repository
    command = ["git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    for name in filter(
        None, subprocess.run(command, check=True, capture_output=True, text=True).stdout.split("\0")
    ):
        (repository.checkout / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, repository.checkout / name)
    # This machine's torch is the CPU build, to which CUDA's libraries are no use: several GB.
    lock = repository.checkout / "requirements" / "quantize.txt"
    lock.write_text(re.sub(r"^(cuda|nvidia)-.*\n(    --hash.*\n)+", "", lock.read_text(), flags=re.MULTILINE))
    repository.source, repository.tools = repository.checkout, ()
    repository.secrets.clear()
    repository.environments.clear()


def use_empty_pythons(deployment: Deployment, root: Path) -> None:
    """The GPU machine's finds what is installed here, and installs beside it, as the runner's image has it."""
    repository = deployment.repository
    repository.machine |= PIP | {"PATH": fresh_python(root / "hosted")}
    venv.create(root / "gpu", symlinks=True, with_pip=True)
    [packages] = root.glob("gpu/lib/*/site-packages")
    (packages / "image.pth").write_text(f"{Path(torch.__file__).parent.parent}\n")
    repository.gpu_machine["PATH"] = f"{root / 'gpu' / 'bin'}:{repository.gpu_machine['PATH']}"


def readme_steps() -> list[str]:
    section = (ROOT / "README.md").read_text().partition("## On GitHub Actions")[2].partition("\n\n##")[0]
    return re.findall(r"^\d\. (.+)$", section, re.MULTILINE)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_five_steps_lead_from_the_template_to_the_first_published_model(deploy: Deploy, tmp_path: Path) -> None:
    deployment = deploy(prepared=False)
    deployment.hub.seed("lab/one", small_model())
    use_empty_pythons(deployment, tmp_path)

    # 1. Until the watchlist is written nothing is watched, and nothing fails.
    use_template(deployment)
    run = deployment.watch()
    assert run.results == {"plan": "success"}, run.steps[-1].log
    assert "the watchlist names no models" in run.job("plan").summary
    deployment.write_watchlist("one", gate="{max_kl: 100, min_top1: 0, max_perplexity_ratio: 100}")

    # 2.
    deployment.repository.secrets["HF_TOKEN"] = deployment.read_token
    deployment.repository.environments["publish"] = {"HF_WRITE_TOKEN": deployment.write_token}

    # 3. What a runner does with its labels is tested in tests/runner.
    [_, _, register, _, _] = readme_steps()
    labels = set(re.findall(r"`([\w-]+)`", register))

    # 4.
    shown: dict[str, Any] = {"repository": {"private": True}}
    dry = deployment.watch("workflow_dispatch", inputs={"dry_run": True}, **shown)
    assert dry.results == {"plan": "success"}
    assert "**1 to quantize**" in dry.job("plan").summary
    assert "first release" in dry.job("plan").summary

    # 5.
    first, quantize = (
        deployment.watch("workflow_dispatch", inputs={"dry_run": False}, **shown),
        quantize_job("one"),
    )
    assert first.results == dict.fromkeys(("plan", quantize, publish_job("one"), "report"), "success")
    assert {*first.job(quantize).labels} <= labels
    assert "quantizing: 2 of 2 layers" in first.job(quantize).steps[-1].log
    assert deployment.is_published("one")
    for verb, package in (("quantize", "torch"), ("publish", "model-signing")):
        [name] = [name for name in first.artifacts.names() if name.startswith(f"sbom-{verb}-")]
        listed = json.loads((first.artifacts.named(name).folder / "awq-bot.cdx.json").read_bytes())
        assert listed["bomFormat"] == "CycloneDX"
        assert {package, "huggingface_hub"} <= {each["name"].lower() for each in listed["components"]}

    # Every hour from now on, and for each change of the watchlist.
    assert deployment.watch(**shown).results == {"plan": "success"}
    number = deployment.api.open_issue("maintainer", "Watch it", "", labels=[], is_pull=True).number
    pull = {"number": number, "head": {"repo": {"full_name": NAME}}}
    run = start(deployment.repository, "pull-request.yml", "pull_request", number=number, pull_request=pull)
    assert run.results == {"plan": "success"}, run.steps[-1].log
    assert len(deployment.api.comments_on(number)) == 1
    installed = {path.name for path in tmp_path.glob("hosted/lib/*/site-packages/*")}
    assert {"github", "huggingface_hub"} <= installed
    assert not {"torch", "awq", "starlette"} & installed
