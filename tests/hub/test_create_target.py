"""Targets that are created before their first release: private, once, and only where awq-bot publishes."""

from __future__ import annotations

from pathlib import Path

import pytest
from huggingface_hub import HfApi

from bot.errors import EnvironmentProblem, PublishError
from bot.hub import client
from bot.hub.session import Hub
from bot.hub.settings import PreparedTarget
from bot.jobs import pipeline
from bot.localhub import Fault, LocalHub
from bot.records import TargetState
from tests.support import factories
from tests.support.release import Release
from tests.support.repos import SOURCE, TARGET, all_requests, as_bot, forget_requests, source_files, writes

ENTRY = factories.entry()


def create(hub: LocalHub, **entry: str) -> PreparedTarget:
    return pipeline.create_targets(as_bot(hub), [factories.entry(**entry)])[0]


@pytest.fixture(autouse=True)
def source(hub: LocalHub) -> None:
    hub.seed(SOURCE, source_files())


def test_missing_target_is_created_private_and_once(hub: LocalHub) -> None:
    created = create(hub)
    assert (created.done, created.private, created.url) == (
        ("created, private",),
        True,
        f"{hub.endpoint}/{TARGET}",
    )
    assert f"{hub.endpoint}/{TARGET}/settings" in created.note
    assert client.published(as_bot(hub), [ENTRY])[0].state is TargetState.EMPTY
    forget_requests(hub)
    assert create(hub).done == ()
    assert writes(hub) == []


def test_created_target_can_be_published_to_with_a_token(hub: LocalHub, tmp_path: Path) -> None:
    create(hub)
    release = Release.of(hub, tmp_path)
    assert release.publish().new
    assert not release.private
    assert release.open_target() == ()


def test_refused_target_does_not_stop_the_others(hub: LocalHub) -> None:
    refused, created = pipeline.create_targets(as_bot(hub), [factories.entry(target="lab/Tiny-awq"), ENTRY])
    assert (refused.done, refused.private, refused.exit_code) == ((), None, 7)
    assert "not permitted to create the repo" in refused.problem
    assert "HF_CREATE_TOKEN needs write access to 'lab'" in refused.hint
    assert created.done == ("created, private",)


def test_no_target_is_created_for_a_missing_source(hub: LocalHub) -> None:
    refused = create(hub, repo_id="lab/Tinny")
    assert (refused.done, refused.exit_code) == ((), 7)
    assert "lab/Tinny: " in refused.problem
    assert "no target was created" in refused.problem
    assert not hub.store.exists(TARGET)


def test_create_token_is_the_one_that_is_used(hub: LocalHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
    monkeypatch.setenv("HF_TOKEN", hub.token("reader", role="read"))
    monkeypatch.setenv("HF_CREATE_TOKEN", hub.add_token("opener", orgs=["quantized"]))
    assert pipeline.create_targets(Hub.from_environment(), [ENTRY])[0].private
    assert {item.user for item in all_requests(hub) if item.path.endswith("/repos/create")} == {"opener"}


def test_without_a_token_nothing_is_requested(hub: LocalHub) -> None:
    forget_requests(hub)
    with pytest.raises(PublishError, match="no token that can create") as caught:
        pipeline.create_targets(Hub(hub.endpoint), [ENTRY])
    assert "HF_CREATE_TOKEN" in caught.value.hint
    assert all_requests(hub) == ()


def test_revoked_token_stops_everything(hub: LocalHub) -> None:
    caller = as_bot(hub)
    hub.revoke_token(str(caller.write_token))
    with pytest.raises(EnvironmentProblem, match="refuses the token"):
        pipeline.create_targets(caller, [ENTRY])


def test_foreign_repo_is_not_changed(hub: LocalHub) -> None:
    hub.seed(TARGET, {"model.safetensors": b"theirs"}, private=True)
    forget_requests(hub)
    assert "content that awq-bot did not publish" in create(hub).problem
    assert writes(hub) == []


def test_target_of_another_source_or_of_a_deleted_one_is_not_made_public(hub: LocalHub, tmp_path: Path) -> None:
    release = Release.of(hub, tmp_path, private=True)
    release.publish()
    hub.seed("lab/Other", source_files())
    assert "made from lab/Tiny, not from lab/Other" in create(hub, repo_id="lab/Other").problem
    hub.store.delete(hub.repo(SOURCE))
    target = create(hub)
    assert (target.done, target.private) == ((), True)
    assert "unchanged: missing" in target.note
    assert release.private


def test_entry_on_hold_is_skipped(hub: LocalHub) -> None:
    assert "on hold: a fix is coming" in create(hub, hold="a fix is coming").note
    assert not hub.store.exists(TARGET)


def test_repo_that_the_token_cannot_read_is_named(hub: LocalHub, api: HfApi) -> None:
    headers = {"X-Error-Code": "RepoNotFound"}
    hub.faults.add(Fault(path=f"/models/{TARGET}/refs", status=404, headers=headers, times=None))
    assert "it exists, but the token cannot read it" in create(hub).problem
