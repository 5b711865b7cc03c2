"""A repo that is published already: newer releases, small files, and restoring the previous release."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from huggingface_hub import HfApi

from bot.errors import BotError
from bot.localhub import Fault, LocalHub
from tests.support.release import Release
from tests.support.repos import (
    SOURCE,
    TARGET,
    all_requests,
    described,
    forget_requests,
    make_artifact,
    requests,
    seal,
    source_files,
    writes,
)

SHARD = "model-00001-of-00002.safetensors"
OLD = {"config.json": b"{}", SHARD: b"a" * 9000, "tokenizer.json": b"{}"}
NEW = {"config.json": b'{"new": 1}', "model.safetensors": b"b" * 9000, "tokenizer.json": b"{}"}


@pytest.fixture
def old(hub: LocalHub, tmp_path: Path) -> Release:
    """A release that is complete and public."""
    release = Release.of(hub, tmp_path, OLD)
    release.publish()
    return release


@pytest.fixture
def new(old: Release, tmp_path: Path) -> Release:
    """The next one, not published yet."""
    return old.next(tmp_path, NEW, '{"model_type": "qwen3"}')


# --- newer releases -----------------------------------------------------------------------------------------


def test_update_is_one_commit_and_the_older_release_keeps_its_tag(
    hub: LocalHub, old: Release, new: Release
) -> None:
    before = hub.files(TARGET)
    new.publish()
    assert len(hub.history(TARGET)) == 3
    assert set(hub.files(TARGET)) == new.paths
    assert hub.files(TARGET, old.job.tag) == before
    assert set(hub.refs(TARGET)) == {"refs/heads/main", *(f"refs/tags/{item.job.tag}" for item in (old, new))}
    assert (new.complete, new.private) == (True, False)


def test_unchanged_files_are_not_sent_again(hub: LocalHub, old: Release, tmp_path: Path) -> None:
    same = old.next(tmp_path, OLD, '{"model_type": "qwen3"}')
    forget_requests(hub)
    same.publish()
    assert len(requests(hub, "PUT", "/uploads/")) == 1  # the picture
    assert hub.files(TARGET)[SHARD] == OLD[SHARD]


def test_refresh_of_small_files_keeps_the_weights(hub: LocalHub, new: Release, tmp_path: Path) -> None:
    small = make_artifact(tmp_path / "refresh", new.job, {"config.json": b'{"new": 1}', "tokenizer.json": b"{}"})
    files = [file for file in small.files if file.path != "provenance.json"]
    sealed = seal(tmp_path / "refresh", new.job, [*files, described(SHARD, OLD[SHARD])])
    dataclasses.replace(new, artifact=sealed).publish()
    assert hub.files(TARGET)[SHARD] == OLD[SHARD]
    assert hub.files(TARGET)["config.json"] == b'{"new": 1}'
    assert new.complete


def test_publishing_an_earlier_release_again_is_refused_before_anything_is_sent(
    hub: LocalHub, old: Release, new: Release
) -> None:
    """A recipe that was changed and changed back asks for a tag that is on an older commit."""
    head = new.publish().sha
    again = dataclasses.replace(old, job=dataclasses.replace(old.job, replaces=new.job.tag))
    again.fails(f"the tag {old.job.tag} is already on")
    assert hub.history(TARGET)[0].sha == head
    assert new.complete


def test_late_release_does_not_replace_a_newer_one(
    hub: LocalHub, old: Release, new: Release, tmp_path: Path
) -> None:
    newest = old.next(tmp_path, NEW, '{"model_type": "llama"}')
    newest.publish()
    forget_requests(hub)
    assert "again" in new.fails("another run has published to it since the plan was made").hint
    assert writes(hub) == []
    assert newest.complete


def test_first_release_does_not_replace_an_earlier_one(old: Release, new: Release) -> None:
    first = dataclasses.replace(new, job=dataclasses.replace(new.job, replaces=None))
    first.fails("another run has published to it since the plan was made")
    assert old.complete


# --- settings -----------------------------------------------------------------------------------------------


def test_gating_is_set_before_an_update_is_public(hub: LocalHub, old: Release, tmp_path: Path) -> None:
    hub.seed(SOURCE, {}, gated="manual")
    gated = old.next(tmp_path, NEW, '{"model_type": "qwen3"}')
    hub.faults.add(Fault(path="/settings", status=403))
    assert "Nothing was changed" in gated.fails("gating could not be set").hint
    assert old.complete
    gated.publish()
    settings = [item.path for item in all_requests(hub) if item.path.endswith("/settings") and item.status == 200]
    assert len(settings) == 2  # public at first, the gating now
    assert hub.repo(TARGET).settings().gated == "manual"
    assert gated.complete


def test_gating_that_upstream_removed_is_removed(hub: LocalHub, tmp_path: Path) -> None:
    hub.seed(SOURCE, source_files(), gated="auto")
    first = Release.of(hub, tmp_path)
    first.publish()
    hub.seed(SOURCE, {}, gated=False)
    first.next(tmp_path).publish()
    assert hub.repo(TARGET).settings().gated is False


def test_gating_that_a_person_set_is_kept(hub: LocalHub, api: HfApi, new: Release) -> None:
    api.update_repo_settings(TARGET, gated="manual")
    new.publish()
    assert hub.repo(TARGET).settings().gated == "manual"


def test_repo_is_private_before_a_private_update_is_there(old: Release, tmp_path: Path) -> None:
    secret = old.next(tmp_path, NEW, '{"secret": 1}', private=True)
    seen: list[bool] = []
    assert secret.publish(lambda *_: seen.append(secret.private)).private
    assert set(seen) == {True}
    assert secret.private


# --- restoring the previous release -------------------------------------------------------------------------


def publish_damaged(hub: LocalHub, new: Release) -> BotError:
    """The Hub's disk damages the update's weights after the commit, before they are read back."""

    def damage(what: str, done: int, total: int, unit: str) -> None:
        if what.startswith("read back") and not damaged:
            damaged.append(True)
            stored = hub.repo(TARGET).object_path(
                hub.repo(TARGET).commit_at("main").files["model.safetensors"].sha256
            )
            stored.write_bytes(stored.read_bytes()[:-1] + b"?")

    damaged: list[bool] = []
    return new.fails(r"model\.safetensors differs from what was sent", progress=damage)


def test_update_that_is_damaged_is_reverted(hub: LocalHub, old: Release, new: Release) -> None:
    before = hub.files(TARGET)
    error = publish_damaged(hub, new)
    found = old.state
    assert found.provenance is not None
    assert found.provenance.tag.startswith(f"{old.job.tag}-restored-")
    assert found.complete
    assert f"the previous release was restored as {found.provenance.tag}" in error.message
    assert "again" in error.hint
    after = hub.files(TARGET)
    assert {path: after[path] for path in after if path != "provenance.json"} == {
        path: before[path] for path in before if path != "provenance.json"
    }
    assert f"refs/tags/{new.job.tag}" not in hub.refs(TARGET)
    assert len(hub.history(TARGET)) == 4
    # The Hub copied the weights itself: they were sent once, and read back once, when they were published.
    weights = hub.repo(TARGET).commit_at(old.job.tag).files[SHARD].sha256
    assert (len(requests(hub, "GET", weights)), len(requests(hub, "PUT", weights))) == (1, 1)


def test_update_after_a_restored_release_is_published(hub: LocalHub, new: Release) -> None:
    publish_damaged(hub, new)
    sha256 = next(file.sha256 for file in new.artifact.files if file.path == "model.safetensors")
    hub.repo(TARGET).object_path(sha256).write_bytes(NEW["model.safetensors"])
    assert new.publish().new
    assert hub.files(TARGET)["model.safetensors"] == NEW["model.safetensors"]
    assert new.complete
    assert len(hub.history(TARGET)) == 5


def test_tags_that_people_made_are_not_restored(hub: LocalHub, api: HfApi, old: Release, new: Release) -> None:
    api.create_tag(TARGET, tag="v1", revision=hub.seed(TARGET, {"note.md": "by hand"}))
    publish_damaged(hub, new)
    assert "note.md" not in hub.files(TARGET)
    assert old.state.complete


def test_restoring_that_fails_is_named_and_repeated_the_next_time(
    hub: LocalHub, old: Release, new: Release
) -> None:
    hub.faults.add(Fault(path="/commit/", status=403, skip=1, times=1))
    assert "restoring the previous release failed too (403)" in publish_damaged(hub, new).message
    assert not new.state.complete
    new.fails("the previous release was restored as")
    assert old.state.complete


def test_access_lost_while_reading_back_reverts_nothing(hub: LocalHub, new: Release) -> None:
    hub.faults.add(Fault(path="/resolve/.*tokenizer.json", status=403))
    new.fails("not permitted to read back")
    assert len(hub.history(TARGET)) == 3
    assert new.publish().new
