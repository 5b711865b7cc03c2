"""Publishing with Trusted Publishers: it writes content only, and what is incomplete stays private."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import pytest
import stamina
from huggingface_hub import HfApi
from huggingface_hub.utils import _auth

from bot.errors import EnvironmentProblem, PublishError
from bot.hub import upload, verify
from bot.hub.access import request_or_raise
from bot.hub.fetch import remote_sha256
from bot.hub.publish import make_public_note
from bot.hub.session import Hub
from bot.hub.sources import read_sources
from bot.hub.targets import read_targets
from bot.jobs import pipeline
from bot.localhub import Fault, Limits, LocalHub
from tests.support.github_api.id_token import CLAIMS, IdTokens
from tests.support.release import Release
from tests.support.repos import (
    SOURCE,
    TARGET,
    all_requests,
    as_bot,
    forget_requests,
    release_job,
    requests,
    source_files,
    writes,
)
from tests.support.workflow_identity import running_workflow, trust

Result = TypeVar("Result")
CONFIG = '{"model_type": "qwen3"}'


@pytest.fixture
def ours(workflow: IdTokens, hub: LocalHub, api: HfApi, tmp_path: Path) -> Release:
    """A release whose target was created and trusts the workflow."""
    hub.seed(SOURCE, source_files())  # with a licence
    assert workflow.asked == 0
    api.create_repo(TARGET, private=True)
    trust(hub)
    return Release.of(hub, tmp_path, caller=Hub.from_environment())


def opened(ours: Release) -> Release:
    """Published, and made public by `create-target`."""
    ours.publish()
    assert ours.open_target() == ("made public",)
    forget_requests(ours.hub)
    return ours


# --- what it publishes --------------------------------------------------------------------------------------


def test_first_release_is_complete_and_stays_private_and_needs_no_write_token(
    hub: LocalHub, ours: Release, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_WRITE_TOKEN", hub.token("bot"))  # it is not used
    assert ours.caller.trusted_publishing
    forget_requests(hub)
    publication = ours.by(Hub.from_environment()).publish()
    assert {item.user for item in all_requests(hub) if item.host == "hub" and item.authenticated} == {"[OIDC]"}
    assert not [line for line in writes(hub) if "/settings" in line or "/repos/create" in line]
    assert (ours.complete, ours.private, publication.new, publication.private) == (True,) * 4
    assert f"create-target {TARGET}` makes it public" in make_public_note(ours.job, publication)
    assert hub.history(TARGET)[0].author == "[OIDC]"


def test_create_target_makes_it_public_once(hub: LocalHub, ours: Release) -> None:
    assert ours.open_target() == ()
    opened(ours)
    assert not ours.private
    assert ours.open_target() == ()
    assert writes(hub) == []
    assert make_public_note(ours.job, ours.publish()) == ""


@pytest.mark.parametrize(
    ("step", "status", "words"),
    [
        ("/tag/", 403, "not permitted to create the tag"),
        ("/resolve/.*tokenizer.json", 404, r"tokenizer\.json is missing"),
    ],
    ids=["tag", "read back"],
)
def test_interrupted_publication_is_finished_and_never_public(
    hub: LocalHub, ours: Release, step: str, status: int, words: str
) -> None:
    hub.faults.add(Fault(path=step, status=status))
    ours.fails(words)
    assert (ours.open_target(), ours.private) == ((), True)
    assert ours.finish().private
    assert ours.open_target() == ("made public",)


def test_private_entry_needs_no_further_step(hub: LocalHub, ours: Release, tmp_path: Path) -> None:
    secret = Release.of(hub, tmp_path, caller=ours.caller, private=True)
    assert make_public_note(secret.job, secret.publish()) == ""
    assert secret.open_target() == ()
    assert secret.private


def test_gating_of_upstream_is_set_before_the_repo_is_public(hub: LocalHub, ours: Release, tmp_path: Path) -> None:
    hub.seed(SOURCE, {}, gated="manual")
    gated = Release.of(hub, tmp_path, caller=ours.caller)
    gated.publish()
    hub.faults.add(Fault(path="/settings", skip=1, status=403))
    refused = pipeline.create_targets(as_bot(hub), [gated.job.entry])[0]
    assert "not permitted to make it public" in refused.problem
    assert (hub.repo(TARGET).settings().gated, gated.private) == ("manual", True)
    assert gated.open_target() == ("made public",)


def test_release_whose_licence_is_refused_by_now_stays_private(hub: LocalHub, ours: Release) -> None:
    ours.publish()
    hub.seed(SOURCE, {"README.md": "No licence any more."})
    target = pipeline.create_targets(as_bot(hub), [ours.job.entry])[0]
    assert (target.done, target.private) == ((), True)
    assert "no licence: the repo" in target.note


def test_update_of_a_public_repo_is_one_commit_or_reverted(hub: LocalHub, ours: Release, tmp_path: Path) -> None:
    newer = opened(ours).next(tmp_path, config=CONFIG)
    hub.faults.add(Fault(path="/resolve/.*tokenizer.json", method="GET", status=404))
    newer.fails("the previous release was restored as")
    assert hub.history(TARGET)[0].title == f"Restore {ours.job.tag}"
    forget_requests(hub)
    assert (newer.publish().private, newer.private, newer.complete) == (False, False, True)
    assert [line.split("/")[-2] for line in writes(hub) if "uploads" not in line] == ["commit", "tag"]


# --- settings that it cannot change -------------------------------------------------------------------------


def test_empty_public_target_is_refused_until_it_is_private(hub: LocalHub, api: HfApi, ours: Release) -> None:
    api.update_repo_settings(TARGET, private=False)
    forget_requests(hub)
    assert f"awq-bot create-target {TARGET}" in ours.fails("public before anything is published").hint
    assert writes(hub) == []
    assert ours.open_target() == ("made private",)
    assert ours.publish().new


@pytest.mark.parametrize(
    ("gated", "private", "words", "done"),
    [
        (None, True, "should be private", "made private"),
        ("auto", False, "its gating is not upstream's, auto", "gated as upstream (auto)"),
    ],
    ids=["private", "gated"],
)
def test_target_that_is_too_visible_is_refused_before_the_update(
    hub: LocalHub, ours: Release, tmp_path: Path, gated: Any, private: bool, words: str, done: str
) -> None:
    opened(ours)
    hub.seed(SOURCE, {}, gated=gated)
    newer = ours.next(tmp_path, config=CONFIG, private=private)
    newer.fails(words)
    assert writes(hub) == []
    assert newer.open_target() == (done,)
    assert newer.publish().private == private


# --- tokens of one hour -------------------------------------------------------------------------------------


@pytest.fixture
def short(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Release, IdTokens]]:
    """Tokens live as long as the client renews ahead, so every request exchanges the identity again."""
    with (
        LocalHub(tmp_path / "hub", limits=Limits(exchanged_token_s=300)) as hub,
        running_workflow(hub, monkeypatch) as tokens,
    ):
        HfApi(endpoint=hub.endpoint, token=hub.token("bot")).create_repo(TARGET, private=True)
        trust(hub)
        yield Release.of(hub, tmp_path, caller=Hub.from_environment()), tokens


def test_expired_tokens_are_renewed(short: tuple[Release, IdTokens], monkeypatch: pytest.MonkeyPatch) -> None:
    release, tokens = short
    ended: list[int] = []

    def after_all_tokens_ended(request: Callable[..., Result]) -> Callable[..., Result]:
        def send(*args: Any, **kwargs: Any) -> Result:
            release.hub.trust.expire_all()
            ended.append(tokens.asked)
            return request(*args, **kwargs)

        return send

    monkeypatch.setattr(upload, "request_or_raise", after_all_tokens_ended(request_or_raise))
    monkeypatch.setattr(verify, "remote_sha256", after_all_tokens_ended(remote_sha256))
    assert release.publish().new
    assert len(ended) == 2 * (len(release.artifact.files) - 1)  # all but the provenance
    assert ended == sorted(set(ended))  # each time after a new exchange
    assert release.complete


def test_publisher_that_is_removed_meanwhile_is_named(short: tuple[Release, IdTokens]) -> None:
    release, _ = short

    def remove(what: str, done: int, total: int, unit: str) -> None:
        release.hub.trust.remove_publishers(TARGET)

    release.fails("not one of its trusted publishers", progress=remove)
    assert release.private


# --- refusals -----------------------------------------------------------------------------------------------


def test_missing_target_is_to_be_created_first(hub: LocalHub, workflow: IdTokens, tmp_path: Path) -> None:
    release = Release.of(hub, tmp_path, caller=Hub.from_environment())
    assert f"awq-bot create-target {TARGET}" in release.fails("it does not exist").hint
    assert workflow.asked == 1
    assert not hub.store.exists(TARGET)


def test_untrusted_workflow_is_shown_where_to_be_added(hub: LocalHub, workflow: IdTokens, ours: Release) -> None:
    workflow.claims = CLAIMS | {"ref": "refs/heads/experiment"}
    ours.fails("not one of its trusted publishers")
    workflow.claims = CLAIMS
    hub.trust.remove_publishers(TARGET)
    with pytest.raises(PublishError, match="not one of its trusted publishers") as caught:
        ours.finish()
    assert f"{hub.endpoint}/{TARGET}/settings" in caught.value.hint


def test_resource_of_another_job_is_refused_at_once(hub: LocalHub, workflow: IdTokens, ours: Release) -> None:
    other = replace(ours, job=release_job(hub, target="quantized/Other-awq"))
    forget_requests(hub)
    other.fails(f"HF_OIDC_RESOURCE is {TARGET}, and this job publishes quantized/Other")
    assert (workflow.asked, all_requests(hub)) == (0, ())


@pytest.mark.parametrize("missing", ["ACTIONS_ID_TOKEN_REQUEST_TOKEN", "GITHUB_ACTIONS"])
def test_missing_permission_is_named(ours: Release, monkeypatch: pytest.MonkeyPatch, missing: str) -> None:
    monkeypatch.setenv("ACTIONS_ID_TOKEN_REQUEST_TOKEN", "ghs_of_yesterday")
    ours.fails("its issuer answers 401", EnvironmentProblem)
    monkeypatch.delenv(missing)
    assert "id-token: write" in ours.fails("not permitted to request an id-token", EnvironmentProblem).hint


def test_busy_exchange_is_retried_and_an_unknown_answer_is_named(hub: LocalHub, ours: Release) -> None:
    hub.faults.add(Fault(path="/oauth/token", status=403))
    ours.fails("answers 403 to the exchange")
    hub.faults.add(Fault(path="/oauth/token", status=503, times=2))
    with stamina.set_testing(True, attempts=3):
        assert ours.publish().new


def test_identity_reads_the_private_target(hub: LocalHub, ours: Release, monkeypatch: pytest.MonkeyPatch) -> None:
    ours.publish()
    monkeypatch.delenv("HF_TOKEN")
    alone = ours.by(Hub.from_environment())
    assert read_targets(alone.caller, [ours.job.entry])[0].complete
    assert not alone.publish().new
    hub.trust.remove_publishers(TARGET)
    monkeypatch.setattr(_auth, "_OIDC_TOKEN_CACHE", None)
    alone.fails("it does not exist, or HF_TOKEN cannot read it")


def test_account_as_resource_reads_gated_models_and_publishes_nothing(
    hub: LocalHub, workflow: IdTokens, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_OIDC_RESOURCE", "bot")
    monkeypatch.delenv("HF_TOKEN")
    trust(hub, "bot")
    release = Release.of(hub, tmp_path, caller=Hub.from_environment())
    assert read_sources(release.caller, [release.job.entry])[0].problem is None
    assert [item.user for item in requests(hub, "GET", f"/models/{SOURCE}")][-1] == "bot"
    assert workflow.asked == 1
    release.fails("no token to publish with")


@pytest.mark.parametrize("resource", ["datasets/a/b", "a b", "https://huggingface.co/a/b"])
def test_resource_that_is_not_a_model_is_refused(monkeypatch: pytest.MonkeyPatch, resource: str) -> None:
    monkeypatch.setenv("HF_OIDC_RESOURCE", resource)
    with pytest.raises(EnvironmentProblem, match="HF_OIDC_RESOURCE is not a repo"):
        Hub.from_environment()


def test_no_token_is_in_a_message_or_a_log(
    hub: LocalHub, ours: Release, workflow: IdTokens, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    hub.faults.add(Fault(path="/tag/", status=403))
    error = ours.fails("not permitted to create the tag")
    said = f"{error!r} {error.hint} {caplog.text} {ours!r} {ours.publish()!r}"
    assert "/oauth/token" in said
    for secret in ("hf_jwt_", "eyJ", workflow.request_token):
        assert secret not in said
