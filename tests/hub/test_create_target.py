"""Targets that are created ahead of their first release: private, once, and only where they are ours."""

from __future__ import annotations

from pathlib import Path

import pytest
from huggingface_hub import HfApi

from bot.errors import EnvironmentProblem, PublishError
from bot.hub import client
from bot.hub.publish import publish
from bot.hub.session import Hub
from bot.hub.settings import PreparedTarget
from bot.jobs import pipeline
from bot.localhub import Fault, HubError, LocalHub
from bot.records import TargetState, WatchEntry, no_progress
from tests.support import factories
from tests.support.repos import (
    SOURCE,
    TARGET,
    all_requests,
    as_bot,
    forget_requests,
    make_artifact,
    release_job,
    source_files,
    writes,
)


def create(hub: LocalHub, *entries: WatchEntry) -> tuple[PreparedTarget, ...]:
    return pipeline.create_targets(as_bot(hub), entries)


@pytest.fixture(autouse=True)
def source(hub: LocalHub) -> None:
    hub.seed(SOURCE, source_files())


def test_missing_target_is_created_private_and_once(hub: LocalHub) -> None:
    created = create(hub, factories.entry())[0]
    assert (created.done, created.private, created.url) == (
        ("created, private",),
        True,
        f"{hub.endpoint}/{TARGET}",
    )
    assert f"{hub.endpoint}/{TARGET}/settings" in created.note
    assert client.published(as_bot(hub), [factories.entry()])[0].state is TargetState.EMPTY
    forget_requests(hub)
    assert create(hub, factories.entry())[0].done == ()
    assert writes(hub) == []


def test_it_is_ours_to_fill_by_a_token_too(hub: LocalHub, tmp_path: Path) -> None:
    job = release_job(hub)
    create(hub, job.entry)
    assert publish(as_bot(hub), job, make_artifact(tmp_path / "job", job), no_progress).new
    assert not hub.repo(TARGET).settings().private
    assert create(hub, job.entry)[0].done == ()


def test_one_that_is_refused_does_not_stop_the_others(hub: LocalHub) -> None:
    foreign = factories.entry(target="lab/Tiny-awq")
    refused, created = create(hub, foreign, factories.entry())
    assert (refused.done, refused.private, refused.exit_code) == ((), None, 7)
    assert "may not create the repo" in refused.problem
    assert "HF_CREATE_TOKEN needs write access to 'lab'" in refused.hint
    assert created.done == ("created, private",)


def test_none_is_created_for_a_source_that_is_not_there(hub: LocalHub) -> None:
    refused = create(hub, factories.entry(repo_id="lab/Tinny"))[0]
    assert (refused.done, refused.exit_code) == ((), 7)
    assert "lab/Tinny: " in refused.problem
    assert "no target was created" in refused.problem
    with pytest.raises(HubError):
        hub.refs(refused.target)


def test_its_own_token_is_the_one_that_is_used(hub: LocalHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
    monkeypatch.setenv("HF_TOKEN", hub.token("reader", role="read"))
    monkeypatch.setenv("HF_CREATE_TOKEN", hub.add_token("opener", orgs=["quantized"]))
    forget_requests(hub)
    assert pipeline.create_targets(Hub.from_environment(), [factories.entry()])[0].private
    users = {item.user for item in all_requests(hub) if item.path.endswith("/repos/create")}
    assert users == {"opener"}


def test_without_any_token_nothing_is_asked(hub: LocalHub) -> None:
    forget_requests(hub)
    with pytest.raises(PublishError, match="no token to create") as caught:
        pipeline.create_targets(Hub(hub.endpoint), [factories.entry()])
    assert "HF_CREATE_TOKEN" in caught.value.hint
    assert all_requests(hub) == ()


def test_token_that_was_revoked_stops_everything(hub: LocalHub) -> None:
    caller = as_bot(hub)
    hub.revoke_token(str(caller.write_token))
    with pytest.raises(EnvironmentProblem, match="refuses the token"):
        pipeline.create_targets(caller, [factories.entry()])


def test_what_is_not_ours_is_left_alone(hub: LocalHub) -> None:
    hub.seed(TARGET, {"model.safetensors": b"theirs"}, private=True)
    forget_requests(hub)
    target = create(hub, factories.entry())[0]
    assert "content that awq-bot did not publish" in target.problem
    assert writes(hub) == []


def test_target_made_from_another_source_is_not_opened(hub: LocalHub, tmp_path: Path) -> None:
    job = release_job(hub, private=True)
    publish(as_bot(hub), job, make_artifact(tmp_path / "job", job), no_progress)
    hub.seed("lab/Other", source_files())
    target = create(hub, factories.entry(repo_id="lab/Other"))[0]
    assert "made from lab/Tiny, not from lab/Other" in target.problem
    assert hub.repo(TARGET).settings().private


def test_source_that_cannot_be_read_opens_nothing(hub: LocalHub, api: HfApi, tmp_path: Path) -> None:
    job = release_job(hub, private=True)
    publish(as_bot(hub), job, make_artifact(tmp_path / "job", job), no_progress)
    hub.store.delete(hub.repo(SOURCE))
    target = create(hub, factories.entry())[0]
    assert (target.done, target.private) == ((), True)
    assert "unchanged: missing" in target.note
    assert api.model_info(TARGET).private


def test_entry_on_hold_is_left_alone(hub: LocalHub) -> None:
    target = create(hub, factories.entry(hold="a fix is coming"))[0]
    assert "on hold: a fix is coming" in target.note
    assert not hub.store.exists(TARGET)


def test_repo_that_the_token_cannot_read_is_named(hub: LocalHub) -> None:
    hub.faults.add(
        Fault(path=f"/models/{TARGET}/refs", status=404, headers={"X-Error-Code": "RepoNotFound"}, times=None)
    )
    target = create(hub, factories.entry())[0]
    assert "it exists, and the token may not read it" in target.problem
