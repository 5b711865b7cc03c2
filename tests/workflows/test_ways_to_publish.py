"""Publishing with the workflow's own identity, and on the GPU runner: the two ways that an operator can choose."""

from __future__ import annotations

import pytest

from bot.hub.session import Hub
from bot.jobs import pipeline
from bot.watch import watchlist as watchlists
from tests.support.github_api.id_token import ISSUER, public_key
from tests.support.workflow_identity import trust
from tests.workflows.deployment import Deploy, Deployment, leg, target
from tests.workflows.runs import seeing

# Quantizing for once takes its time on a busy machine.
pytestmark = pytest.mark.timeout(900)


def create_targets(here: Deployment) -> list[tuple[str, ...]]:
    """As `awq-bot create-target` does, typed by a person with a token of their own."""
    entries = watchlists.load(here.repository.checkout / "watchlist.yaml")
    hub = Hub(here.hub.endpoint, here.write_token, here.write_token)
    return [made.done for made in pipeline.create_targets(hub, entries)]


@pytest.fixture
def trusted(deploy: Deploy) -> Deployment:
    """A target that exists and trusts watch.yml, and no write token anywhere."""
    here = deploy("one")
    here.repository.variables["AWQ_BOT_OIDC"] = "true"
    here.repository.environments.clear()
    here.repository.secrets["HF_TOKEN"] = here.hub.token("bot", role="read")
    create_targets(here)
    here.hub.trust_issuer(ISSUER, public_key())
    trust(here.hub, target("one"))
    return here


def test_a_workflow_publishes_with_its_identity_and_no_write_token(trusted: Deployment) -> None:
    run = trusted.watch()
    publish = run.job(leg("publish", "one"))
    assert publish.result == "success", publish.steps[-1].log
    assert trusted.is_published("one")
    assert trusted.hub.history(target("one"))[0].author == "[OIDC]"
    [step] = publish.steps
    assert (step.env["HF_WRITE_TOKEN"], step.env["HF_OIDC_RESOURCE"]) == ("", target("one"))
    assert seeing(run.steps, trusted.write_token) == set()
    assert seeing(run.steps, trusted.api.identities.request_token) == {(publish.name, step.name)}
    assert create_targets(trusted) == [("made public",)]
    assert trusted.watch().results == {"plan": "success"}


@pytest.mark.slow
def test_small_files_are_republished_with_the_identity_too(trusted: Deployment) -> None:
    trusted.watch()
    create_targets(trusted)
    trusted.hub.seed("lab/one", {"generation_config.json": b'{"do_sample": true, "temperature": 0.25}'})
    run = trusted.watch()
    assert run.results == {"plan": "success", f"refresh {target('one')}": "success", "report": "success"}
    assert trusted.hub.history(target("one"))[0].author == "[OIDC]"
    assert seeing(run.steps, trusted.write_token) == set()


@pytest.mark.slow
def test_who_is_not_trusted_publishes_nothing_and_learns_what_to_do(trusted: Deployment) -> None:
    trusted.api.identities.claims["workflow_ref"] = "someone/awq-bot/.github/workflows/other.yml@refs/heads/main"
    run = trusted.watch()
    assert run.job(leg("publish", "one")).result == "failure"
    assert not trusted.is_published("one")
    [issue] = trusted.api.issues.values()
    assert "trusted publishers" in issue.body


@pytest.mark.slow
def test_on_the_runner_only_the_last_step_sees_the_write_credential(deploy: Deploy) -> None:
    here = deploy("one")
    here.repository.variables["AWQ_BOT_PUBLISH_ON"] = "runner"
    run = here.watch()
    quantize = leg("quantize", "one")
    assert run.results == {"plan": "success", quantize: "success", "report": "success"}
    assert here.is_published("one")
    assert run.job(quantize).environment == "publish"
    assert seeing(run.steps, here.write_token) == {(quantize, "Publish / Publish")}
    assert not [name for name in run.artifacts.names() if name.startswith("quantized")]
    assert "1 published" in run.job("report").summary


def test_on_the_runner_and_by_identity_together_is_refused(deploy: Deploy) -> None:
    here = deploy("one", prepared=False)
    here.repository.variables |= {"AWQ_BOT_PUBLISH_ON": "runner", "AWQ_BOT_OIDC": "true"}
    run = here.watch()
    assert run.results == {"plan": "failure"}
    assert "Trusted Publishers" in run.job("plan").annotations[0]
