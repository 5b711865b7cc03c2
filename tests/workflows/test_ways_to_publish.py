"""Publishing with the workflow's own identity, and on the GPU runner: the two ways that an operator can choose."""

from __future__ import annotations

import hashlib

import pytest

from bot.checkpoint.repo_files import PROVENANCE
from bot.hub.session import Hub
from bot.jobs import pipeline
from bot.watch import watchlist as watchlists
from tests.support.github_api.id_token import ISSUER, public_key
from tests.support.workflow_identity import trust
from tests.workflows.deployment import Deploy, Deployment, publish_job, quantize_job, target
from tests.workflows.interpreter.runs import steps_with_value


def create_targets(deployment: Deployment) -> list[tuple[str, ...]]:
    """As `awq-bot create-target` does, typed by a person with a token of their own."""
    entries = watchlists.load(deployment.repository.checkout / "watchlist.yaml")
    hub = Hub(deployment.hub.endpoint, deployment.write_token, deployment.write_token)
    return [made.done for made in pipeline.create_targets(hub, entries)]


def published_digest(deployment: Deployment) -> str:
    """Of the provenance on the target's head, as actions/attest takes it."""
    return f"sha256:{hashlib.sha256(deployment.hub.files(target('one'))[PROVENANCE]).hexdigest()}"


@pytest.fixture
def trusted(deploy: Deploy) -> Deployment:
    """A target that exists and trusts watch.yml, and no write token anywhere."""
    deployment = deploy("one")
    deployment.repository.variables |= {"AWQ_BOT_OIDC": "true", "AWQ_BOT_ATTEST": "true"}
    deployment.repository.environments.clear()
    deployment.repository.secrets["HF_TOKEN"] = deployment.hub.token("bot", role="read")
    create_targets(deployment)
    deployment.hub.trust_issuer(ISSUER, public_key())
    trust(deployment.hub, target("one"))
    return deployment


def test_a_workflow_publishes_with_its_identity_and_no_write_token(trusted: Deployment) -> None:
    run = trusted.watch()
    publish = run.job(publish_job("one"))
    assert publish.result == "success", publish.steps[-1].log
    assert trusted.is_published("one")
    assert trusted.hub.history(target("one"))[0].author == "[OIDC]"
    [step] = publish.steps
    assert (step.env["HF_WRITE_TOKEN"], step.env["HF_OIDC_RESOURCE"]) == ("", target("one"))
    assert steps_with_value(run.steps, trusted.write_token) == set()
    assert steps_with_value(run.steps, trusted.api.identities.request_token) == {(publish.name, step.name)}
    [(subject, digest)] = run.artifacts.attested.items()
    assert subject.startswith(f"{target('one')}@upstream-")
    assert digest == published_digest(trusted)
    assert create_targets(trusted) == [("made public",)]
    assert trusted.watch().results == {"plan": "success"}


@pytest.mark.slow
def test_small_files_are_republished_with_the_workflows_identity(trusted: Deployment) -> None:
    trusted.watch()
    create_targets(trusted)
    trusted.hub.seed("lab/one", {"generation_config.json": b'{"do_sample": true, "temperature": 0.25}'})
    run = trusted.watch()
    assert run.results == {"plan": "success", f"refresh {target('one')}": "success", "report": "success"}
    assert trusted.hub.history(target("one"))[0].author == "[OIDC]"
    assert steps_with_value(run.steps, trusted.write_token) == set()
    assert list(run.artifacts.attested.values()) == [published_digest(trusted)]


@pytest.mark.slow
def test_publishing_on_the_runner_shows_the_write_credential_to_the_last_step_only(deploy: Deploy) -> None:
    deployment = deploy("one")
    deployment.repository.variables["AWQ_BOT_PUBLISH_ON"] = "runner"
    run = deployment.watch()
    quantize = quantize_job("one")
    assert run.results == {"plan": "success", quantize: "success", "report": "success"}
    assert deployment.is_published("one")
    assert run.job(quantize).environment == "publish"
    assert steps_with_value(run.steps, deployment.write_token) == {(quantize, "Publish / Publish")}
    assert not [name for name in run.artifacts.names() if name.startswith("quantized")]
    assert "1 published" in run.job("report").summary
