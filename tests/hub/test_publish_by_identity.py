"""Publishing with a workflow's identity: content only, and nobody sees what is not complete."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest
import stamina
from huggingface_hub import HfApi
from huggingface_hub.utils import _auth

from bot.errors import EnvironmentProblem, PublishError
from bot.hub import client, upload, verify
from bot.hub.fetch import remote_sha256
from bot.hub.publish import Artifact, finish, opening_note, publish
from bot.hub.session import Hub
from bot.hub.target import allowed
from bot.jobs import pipeline
from bot.localhub import Fault, Limits, LocalHub
from bot.records import Job, no_progress
from tests.support.github_api.id_token import CLAIMS, IdTokens
from tests.support.repos import (
    SOURCE,
    TARGET,
    all_requests,
    as_bot,
    forget_requests,
    make_artifact,
    release_job,
    requests,
    source_files,
    writes,
)
from tests.support.workflow_identity import running_workflow, trust

Result = TypeVar("Result")


@pytest.fixture
def job(hub: LocalHub) -> Job:
    """Of a source whose licence is stated."""
    hub.seed(SOURCE, source_files())
    return release_job(hub)


@pytest.fixture
def workflow(hub: LocalHub, monkeypatch: pytest.MonkeyPatch) -> Iterator[IdTokens]:
    with running_workflow(hub, monkeypatch) as tokens:
        yield tokens


@pytest.fixture
def ours(workflow: IdTokens, hub: LocalHub, api: HfApi) -> Hub:
    """The way in, to a target that was created and trusts the workflow."""
    assert workflow.asked == 0
    api.create_repo(TARGET, private=True)
    trust(hub)
    return Hub.from_environment()


def is_private(hub: LocalHub) -> bool:
    return hub.repo(TARGET).settings().private


def is_complete(hub: LocalHub, job: Job) -> bool:
    found = client.published(as_bot(hub), [job.entry])[0]
    return found.complete and found.provenance is not None and found.provenance.tag == job.tag


def open_targets(hub: LocalHub, job: Job) -> tuple[str, ...]:
    """What `create-target` changes."""
    target = pipeline.create_targets(as_bot(hub), [job.entry])[0]
    assert target.problem == ""
    return target.done


def next_release(hub: LocalHub) -> Job:
    hub.seed(SOURCE, {"config.json": '{"model_type": "qwen3"}'})
    return release_job(hub)


# --- what it publishes --------------------------------------------------------------------------------------


def test_first_release_is_complete_and_stays_private(
    hub: LocalHub, ours: Hub, job: Job, artifact: Artifact
) -> None:
    publication = publish(ours, job, artifact, no_progress)
    assert is_complete(hub, job)
    assert is_private(hub)
    assert (publication.new, publication.private) == (True, True)
    assert f"create-target {TARGET}` makes it public" in opening_note(job, publication)
    assert hub.history(TARGET)[0].author == "[OIDC]"
    assert not [line for line in writes(hub)[1:] if "/settings" in line or "/repos/create" in line]


def test_write_token_is_not_looked_at(
    hub: LocalHub, ours: Hub, job: Job, artifact: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_WRITE_TOKEN", hub.token("bot"))
    assert ours.by_identity
    forget_requests(hub)
    publish(Hub.from_environment(), job, artifact, no_progress)
    assert {item.user for item in all_requests(hub) if item.host == "hub" and item.authenticated} == {"[OIDC]"}


def test_create_target_opens_it_once(hub: LocalHub, ours: Hub, job: Job, artifact: Artifact) -> None:
    assert open_targets(hub, job) == ()
    publish(ours, job, artifact, no_progress)
    assert open_targets(hub, job) == ("made public",)
    assert not is_private(hub)
    forget_requests(hub)
    assert open_targets(hub, job) == ()
    assert writes(hub) == []
    assert opening_note(job, publish(ours, job, artifact, no_progress)) == ""


def test_what_was_cut_short_is_finished_and_never_seen(
    hub: LocalHub, ours: Hub, job: Job, artifact: Artifact
) -> None:
    hub.faults.add(Fault(path="/tag/", status=403))
    with pytest.raises(PublishError, match="may not create the tag"):
        publish(ours, job, artifact, no_progress)
    assert open_targets(hub, job) == ()
    assert is_private(hub)
    assert finish(ours, job, no_progress).private
    assert open_targets(hub, job) == ("made public",)


def test_release_that_does_not_read_back_is_not_opened(
    hub: LocalHub, ours: Hub, job: Job, artifact: Artifact
) -> None:
    hub.faults.add(Fault(path="/resolve/.*tokenizer.json", method="GET", status=404, times=None))
    with pytest.raises(PublishError, match=r"tokenizer\.json is missing"):
        publish(ours, job, artifact, no_progress)
    assert open_targets(hub, job) == ()
    assert is_private(hub)


def test_private_entry_waits_for_nobody(hub: LocalHub, ours: Hub, tmp_path: Path) -> None:
    hub.seed(SOURCE, source_files())
    job = release_job(hub, private=True)
    publication = publish(ours, job, make_artifact(tmp_path / "job", job), no_progress)
    assert opening_note(job, publication) == ""
    assert open_targets(hub, job) == ()
    assert is_private(hub)


def test_gate_of_upstream_is_there_before_the_repo_is_public(hub: LocalHub, ours: Hub, tmp_path: Path) -> None:
    hub.seed(SOURCE, source_files(), gated="manual")
    job = release_job(hub)
    publish(ours, job, make_artifact(tmp_path / "job", job), no_progress)
    hub.faults.add(Fault(path="/settings", skip=1, status=403))
    refused = pipeline.create_targets(as_bot(hub), [job.entry])[0]
    assert "may not make it public" in refused.problem
    assert (hub.repo(TARGET).settings().gated, is_private(hub)) == ("manual", True)
    assert open_targets(hub, job) == ("made public",)


def test_release_whose_licence_is_refused_by_now_is_not_opened(
    hub: LocalHub, ours: Hub, job: Job, artifact: Artifact
) -> None:
    publish(ours, job, artifact, no_progress)
    hub.seed(SOURCE, {"README.md": "No licence any more."})
    target = pipeline.create_targets(as_bot(hub), [job.entry])[0]
    assert (target.done, target.private) == ((), True)
    assert "licence absent" in target.note


def test_update_is_one_commit_into_the_open_repo(
    hub: LocalHub, ours: Hub, job: Job, artifact: Artifact, tmp_path: Path
) -> None:
    publish(ours, job, artifact, no_progress)
    open_targets(hub, job)
    newer = next_release(hub)
    forget_requests(hub)
    publication = publish(ours, newer, make_artifact(tmp_path / "newer", newer), no_progress)
    assert (publication.private, is_private(hub)) == (False, False)
    assert is_complete(hub, newer)
    assert [line.rpartition("/")[0].rpartition("/")[2] for line in writes(hub) if "uploads" not in line] == [
        "commit",
        "tag",
    ]


def test_update_that_does_not_read_back_is_reverted(
    hub: LocalHub, ours: Hub, job: Job, artifact: Artifact, tmp_path: Path
) -> None:
    publish(ours, job, artifact, no_progress)
    open_targets(hub, job)
    newer = next_release(hub)
    hub.faults.add(Fault(path="/resolve/.*tokenizer.json", method="GET", status=404))
    with pytest.raises(PublishError, match="the previous release was restored as"):
        publish(ours, newer, make_artifact(tmp_path / "newer", newer), no_progress)
    assert hub.history(TARGET)[0].title == f"Restore {job.tag}"


# --- settings that it may not change ------------------------------------------------------------------------


def test_empty_public_target_is_refused_until_it_is_closed(
    hub: LocalHub, api: HfApi, ours: Hub, job: Job, artifact: Artifact
) -> None:
    api.update_repo_settings(TARGET, private=False)
    forget_requests(hub)
    with pytest.raises(PublishError, match="public before anything is published") as caught:
        publish(ours, job, artifact, no_progress)
    assert f"awq-bot create-target {TARGET}" in caught.value.hint
    assert writes(hub) == []
    assert open_targets(hub, job) == ("made private",)
    assert publish(ours, job, artifact, no_progress).new


def test_open_target_that_should_be_private_is_refused(
    hub: LocalHub, ours: Hub, job: Job, artifact: Artifact, tmp_path: Path
) -> None:
    publish(ours, job, artifact, no_progress)
    open_targets(hub, job)
    hub.seed(SOURCE, {"config.json": '{"secret": 1}'})
    secret = release_job(hub, private=True)
    forget_requests(hub)
    with pytest.raises(PublishError, match="should be private"):
        publish(ours, secret, make_artifact(tmp_path / "secret", secret), no_progress)
    assert writes(hub) == []
    assert open_targets(hub, secret) == ("made private",)
    assert publish(ours, secret, make_artifact(tmp_path / "secret", secret), no_progress).private


def test_gate_that_upstream_closed_is_asked_for_before_the_update(
    hub: LocalHub, ours: Hub, job: Job, artifact: Artifact, tmp_path: Path
) -> None:
    publish(ours, job, artifact, no_progress)
    open_targets(hub, job)
    hub.seed(SOURCE, {"config.json": '{"model_type": "qwen3"}'}, gated="auto")
    gated = release_job(hub)
    forget_requests(hub)
    with pytest.raises(PublishError, match="its gating is not upstream's, auto"):
        publish(ours, gated, make_artifact(tmp_path / "gated", gated), no_progress)
    assert writes(hub) == []
    assert open_targets(hub, gated) == ("gated as upstream (auto)",)
    assert publish(ours, gated, make_artifact(tmp_path / "gated", gated), no_progress).new


# --- the hour -----------------------------------------------------------------------------------------------


def test_token_that_expires_between_files_is_exchanged_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Good for as long as the client renews ahead, so every request renews it; all older ones end half-way."""
    with (
        LocalHub(tmp_path / "hub", limits=Limits(exchanged_token_s=300)) as hub,
        running_workflow(hub, monkeypatch) as tokens,
    ):
        HfApi(endpoint=hub.endpoint, token=hub.token("bot")).create_repo(TARGET, private=True)
        trust(hub)
        job = release_job(hub)
        artifact = make_artifact(tmp_path / "job", job)
        ended: list[int] = []

        def after_all_tokens_ended(request: Callable[..., Result]) -> Callable[..., Result]:
            def send(*args: Any, **kwargs: Any) -> Result:
                hub.trust.expire_all()
                ended.append(tokens.asked)
                return request(*args, **kwargs)

            return send

        monkeypatch.setattr(upload, "allowed", after_all_tokens_ended(allowed))
        monkeypatch.setattr(verify, "remote_sha256", after_all_tokens_ended(remote_sha256))
        assert publish(Hub.from_environment(), job, artifact, no_progress).new
        assert len(ended) == 2 * len(artifact.files) - 1
        assert ended == sorted(set(ended))  # each time after a new exchange
        assert is_complete(hub, job)


def test_publisher_that_is_removed_on_the_way_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with (
        LocalHub(tmp_path / "hub", limits=Limits(exchanged_token_s=300)) as hub,
        running_workflow(hub, monkeypatch),
    ):
        HfApi(endpoint=hub.endpoint, token=hub.token("bot")).create_repo(TARGET, private=True)
        trust(hub)
        job = release_job(hub)

        def remove(what: str, done: int, total: int, unit: str) -> None:
            hub.trust.remove_publishers(TARGET)

        with pytest.raises(PublishError, match="not one of its trusted publishers"):
            publish(Hub.from_environment(), job, make_artifact(tmp_path / "job", job), remove)
        assert is_private(hub)


# --- refusals -----------------------------------------------------------------------------------------------


def test_target_that_is_not_there_is_to_be_created_first(
    hub: LocalHub, workflow: IdTokens, job: Job, artifact: Artifact
) -> None:
    with pytest.raises(PublishError, match="it does not exist") as caught:
        publish(Hub.from_environment(), job, artifact, no_progress)
    assert f"awq-bot create-target {TARGET}" in caught.value.hint
    assert workflow.asked == 1
    assert not hub.store.exists(TARGET)


def test_target_without_a_publisher_says_where_to_add_it(hub: LocalHub, ours: Hub, job: Job) -> None:
    hub.trust.remove_publishers(TARGET)
    with pytest.raises(PublishError, match="not one of its trusted publishers") as caught:
        finish(ours, job, no_progress)
    assert f"{hub.endpoint}/{TARGET}/settings" in caught.value.hint


def test_another_branch_is_no_publisher(workflow: IdTokens, ours: Hub, job: Job, artifact: Artifact) -> None:
    workflow.claims = CLAIMS | {"ref": "refs/heads/experiment"}
    with pytest.raises(PublishError, match="not one of its trusted publishers"):
        publish(ours, job, artifact, no_progress)


def test_resource_of_another_job_is_refused_before_anything_is_asked(
    hub: LocalHub, workflow: IdTokens, ours: Hub, tmp_path: Path
) -> None:
    job = release_job(hub, target="quantized/Other-awq")
    forget_requests(hub)
    with pytest.raises(
        PublishError, match=f"HF_OIDC_RESOURCE is {TARGET}, and this job publishes quantized/Other"
    ):
        publish(ours, job, make_artifact(tmp_path / "job", job), no_progress)
    assert (workflow.asked, all_requests(hub)) == (0, ())


@pytest.mark.parametrize("missing", ["ACTIONS_ID_TOKEN_REQUEST_TOKEN", "GITHUB_ACTIONS"])
def test_job_without_the_permission_is_told_which(
    ours: Hub, job: Job, artifact: Artifact, monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    monkeypatch.delenv(missing)
    with pytest.raises(EnvironmentProblem, match="may not request an id-token") as caught:
        publish(ours, job, artifact, no_progress)
    assert "id-token: write" in caught.value.hint


def test_issuer_that_refuses_is_named(
    ours: Hub, job: Job, artifact: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ACTIONS_ID_TOKEN_REQUEST_TOKEN", "ghs_of_yesterday")
    with pytest.raises(EnvironmentProblem, match="its issuer answers 401"):
        publish(ours, job, artifact, no_progress)


def test_busy_exchange_is_tried_again_and_a_strange_answer_is_named(
    hub: LocalHub, ours: Hub, job: Job, artifact: Artifact
) -> None:
    hub.faults.add(Fault(path="/oauth/token", status=403))
    with pytest.raises(PublishError, match="answers 403 to the exchange"):
        publish(ours, job, artifact, no_progress)
    hub.faults.add(Fault(path="/oauth/token", status=503, times=2))
    with stamina.set_testing(True, attempts=3):
        assert publish(ours, job, artifact, no_progress).new


def test_without_a_read_token_the_identity_reads_the_private_target(
    hub: LocalHub, ours: Hub, job: Job, artifact: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(ours, job, artifact, no_progress)
    monkeypatch.delenv("HF_TOKEN")
    alone = Hub.from_environment()
    assert client.published(alone, [job.entry])[0].complete
    assert not publish(alone, job, artifact, no_progress).new
    hub.trust.remove_publishers(TARGET)
    monkeypatch.setattr(_auth, "_OIDC_TOKEN_CACHE", None)
    with pytest.raises(PublishError, match="it does not exist, or HF_TOKEN cannot read it"):
        publish(alone, job, artifact, no_progress)


def test_account_as_resource_reads_gated_models_and_publishes_nothing(
    hub: LocalHub, workflow: IdTokens, job: Job, artifact: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_OIDC_RESOURCE", "bot")
    monkeypatch.delenv("HF_TOKEN")
    trust(hub, "bot")
    caller = Hub.from_environment()
    assert client.upstream(caller, [job.entry])[0].problem is None
    assert [item.user for item in requests(hub, "GET", f"/models/{SOURCE}")][-1] == "bot"
    assert workflow.asked == 1
    with pytest.raises(PublishError, match="no token to publish with"):
        publish(caller, job, artifact, no_progress)


@pytest.mark.parametrize("resource", ["quantized/Tiny-awq ", "datasets/a/b", "a b", "https://huggingface.co/a/b"])
def test_resource_that_names_no_model_is_refused(monkeypatch: pytest.MonkeyPatch, resource: str) -> None:
    monkeypatch.setenv("HF_OIDC_RESOURCE", resource)
    with pytest.raises(EnvironmentProblem, match="HF_OIDC_RESOURCE is not a repo"):
        Hub.from_environment()


def test_no_token_is_in_a_message_or_a_log(
    hub: LocalHub,
    ours: Hub,
    workflow: IdTokens,
    job: Job,
    artifact: Artifact,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    hub.faults.add(Fault(path="/tag/", status=403))
    with pytest.raises(PublishError) as caught:
        publish(ours, job, artifact, no_progress)
    publication = publish(ours, job, artifact, no_progress)
    said = f"{caught.value!r} {caught.value.hint} {caplog.text} {ours!r} {publication!r}"
    assert "/oauth/token" in said
    for secret in ("hf_jwt_", "eyJ", workflow.request_token):
        assert secret not in said
