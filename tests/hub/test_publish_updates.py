"""A repo that is published already: newer releases, small files, and the way back."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from huggingface_hub import HfApi

from bot.errors import PublishError
from bot.hub import client
from bot.hub.publish import Artifact, publish
from bot.localhub import Fault, LocalHub
from bot.records import Job, Published, no_progress
from tests.support.repos import (
    SOURCE,
    TARGET,
    all_requests,
    as_bot,
    described,
    forget_requests,
    make_artifact,
    release_job,
    requests,
    seal,
    source_files,
    writes,
)

OLD = {"config.json": b"{}", "model-00001-of-00002.safetensors": b"a" * 9000, "tokenizer.json": b"{}"}
NEW = {"config.json": b'{"new": 1}', "model.safetensors": b"b" * 9000, "tokenizer.json": b"{}"}


@pytest.fixture
def old(hub: LocalHub, tmp_path: Path) -> Job:
    """A release that is complete and public."""
    job = release_job(hub)
    publish(as_bot(hub), job, make_artifact(tmp_path / "old", job, OLD), no_progress)
    return job


@pytest.fixture
def new(hub: LocalHub, old: Job) -> Job:
    """The next one, not published yet."""
    assert old.tag
    hub.seed(SOURCE, {"config.json": '{"model_type": "qwen3"}'})
    return release_job(hub)


@pytest.fixture
def artifact(new: Job, tmp_path: Path) -> Artifact:
    return make_artifact(tmp_path / "new", new, NEW)


def state(hub: LocalHub, job: Job) -> Published:
    return client.published(as_bot(hub), [job.entry])[0]


def content(hub: LocalHub, revision: str = "main") -> dict[str, bytes]:
    """Without what differs by design: the proof, and the picture that holds the tag."""
    files = hub.files(TARGET, revision)
    return {path: files[path] for path in files if path not in ("provenance.json", "assets/error.png")}


def rot(hub: LocalHub, path: str, revision: str = "main") -> None:
    """The Hub's disk damages a file."""
    repo = hub.repo(TARGET)
    stored = repo.object_path(repo.commit_at(revision).files[path].sha256)
    stored.write_bytes(stored.read_bytes()[:-1] + b"?")


# --- newer releases -----------------------------------------------------------------------------------------


def test_update_is_one_commit_that_deletes_what_is_stale(
    hub: LocalHub, old: Job, new: Job, artifact: Artifact
) -> None:
    publish(as_bot(hub), new, artifact, no_progress)
    assert len(hub.history(TARGET)) == 3
    assert set(hub.files(TARGET)) == {file.path for file in artifact.files} | {".gitattributes"}
    assert state(hub, new).complete
    assert not hub.repo(TARGET).settings().private


def test_older_release_stays_under_its_tag(hub: LocalHub, old: Job, new: Job, artifact: Artifact) -> None:
    before = hub.files(TARGET)
    publish(as_bot(hub), new, artifact, no_progress)
    assert hub.files(TARGET, old.tag) == before
    assert set(hub.refs(TARGET)) == {"refs/heads/main", f"refs/tags/{old.tag}", f"refs/tags/{new.tag}"}


def test_unchanged_files_are_not_sent_again(hub: LocalHub, old: Job, new: Job, tmp_path: Path) -> None:
    forget_requests(hub)
    publish(as_bot(hub), new, make_artifact(tmp_path / "same", new, OLD), no_progress)
    sent = requests(hub, "PUT", "/uploads/")
    assert len(sent) == 1  # the picture
    assert hub.files(TARGET)["model-00001-of-00002.safetensors"] == b"a" * 9000


def test_small_files_alone_keep_the_weights(hub: LocalHub, old: Job, new: Job, tmp_path: Path) -> None:
    weights = "model-00001-of-00002.safetensors"
    small = make_artifact(tmp_path / "refresh", new, {"config.json": b'{"new": 1}', "tokenizer.json": b"{}"})
    files = [file for file in small.files if file.path != "provenance.json"]
    refreshed = seal(tmp_path / "refresh", new, [*files, described(weights, OLD[weights])])
    publish(as_bot(hub), new, refreshed, no_progress)
    assert hub.files(TARGET)[weights] == OLD[weights]
    assert hub.files(TARGET)["config.json"] == b'{"new": 1}'
    assert state(hub, new).complete


def test_publishing_what_was_published_before_is_refused_before_anything_is_sent(
    hub: LocalHub, old: Job, new: Job, artifact: Artifact, tmp_path: Path
) -> None:
    """A recipe that was changed and changed back asks for a tag that is on an older commit."""
    publish(as_bot(hub), new, artifact, no_progress)
    head = hub.history(TARGET)[0].sha
    again = dataclasses.replace(old, replaces=new.tag)
    with pytest.raises(PublishError, match=f"the tag {old.tag} is already on"):
        publish(as_bot(hub), again, make_artifact(tmp_path / "again", old, OLD), no_progress)
    assert hub.history(TARGET)[0].sha == head
    assert state(hub, new).complete


def test_release_that_is_done_after_a_newer_one_does_not_replace_it(
    hub: LocalHub, old: Job, new: Job, artifact: Artifact, tmp_path: Path
) -> None:
    hub.seed(SOURCE, {"config.json": '{"model_type": "llama"}'})
    newest = release_job(hub)
    publish(as_bot(hub), newest, make_artifact(tmp_path / "newest", newest, NEW), no_progress)
    forget_requests(hub)
    with pytest.raises(PublishError, match="another run published there meanwhile") as caught:
        publish(as_bot(hub), new, artifact, no_progress)
    assert "again" in caught.value.hint
    assert writes(hub) == []
    assert state(hub, newest).complete


def test_first_release_does_not_replace_one_that_came_first(
    hub: LocalHub, old: Job, new: Job, artifact: Artifact
) -> None:
    with pytest.raises(PublishError, match="another run published there meanwhile"):
        publish(as_bot(hub), dataclasses.replace(new, replaces=None), artifact, no_progress)
    assert state(hub, old).complete


# --- settings -----------------------------------------------------------------------------------------------


def test_gate_is_closed_before_an_update_is_there(
    hub: LocalHub, old: Job, new: Job, artifact: Artifact, tmp_path: Path
) -> None:
    hub.seed(SOURCE, {}, gated="manual")
    gated = release_job(hub)
    hub.faults.add(Fault(path="/settings", status=403))
    with pytest.raises(PublishError, match="gating could not be set") as caught:
        publish(as_bot(hub), gated, make_artifact(tmp_path / "gated", gated, NEW), no_progress)
    assert "Nothing was changed" in caught.value.hint
    assert state(hub, old).complete
    publish(as_bot(hub), gated, make_artifact(tmp_path / "gated", gated, NEW), no_progress)
    settings = [item.path for item in all_requests(hub) if item.path.endswith("/settings") and item.status == 200]
    assert len(settings) == 2  # public at first, the gate now
    assert hub.repo(TARGET).settings().gated == "manual"
    assert state(hub, gated).complete


def test_gate_that_upstream_dropped_is_opened(hub: LocalHub, tmp_path: Path) -> None:
    hub.seed(SOURCE, source_files(), gated="auto")
    first = release_job(hub)
    publish(as_bot(hub), first, make_artifact(tmp_path / "first", first), no_progress)
    hub.seed(SOURCE, {}, gated=False)
    second = release_job(hub)
    publish(as_bot(hub), second, make_artifact(tmp_path / "second", second), no_progress)
    assert hub.repo(TARGET).settings().gated is False


def test_gate_that_a_person_set_is_left_alone(
    hub: LocalHub, api: HfApi, old: Job, new: Job, artifact: Artifact
) -> None:
    api.update_repo_settings(TARGET, gated="manual")
    publish(as_bot(hub), new, artifact, no_progress)
    assert hub.repo(TARGET).settings().gated == "manual"


def test_repo_is_closed_before_a_private_update_is_there(hub: LocalHub, old: Job, tmp_path: Path) -> None:
    hub.seed(SOURCE, {"config.json": '{"secret": 1}'})
    job = release_job(hub, private=True)
    seen: list[bool] = []

    def look(what: str, done: int, total: int, unit: str) -> None:
        seen.append(hub.repo(TARGET).settings().private)

    assert publish(as_bot(hub), job, make_artifact(tmp_path / "secret", job, NEW), look).private
    assert set(seen) == {True}
    assert hub.repo(TARGET).settings().private


# --- the way back -------------------------------------------------------------------------------------------


def publish_rotten(hub: LocalHub, new: Job, artifact: Artifact) -> PublishError:
    """The update's weights rot once they are committed, before they are read back."""

    def damage(what: str, done: int, total: int, unit: str) -> None:
        if what.startswith("read back") and not damaged:
            damaged.append(True)
            rot(hub, "model.safetensors")

    damaged: list[bool] = []
    with pytest.raises(PublishError, match=r"model\.safetensors differs from what was sent") as caught:
        publish(as_bot(hub), new, artifact, damage)
    return caught.value


def test_update_that_does_not_read_back_is_reverted(hub: LocalHub, old: Job, new: Job, artifact: Artifact) -> None:
    before = hub.files(TARGET)
    error = publish_rotten(hub, new, artifact)
    found = state(hub, old)
    assert found.provenance is not None
    assert found.provenance.tag.startswith(f"{old.tag}-restored-")
    assert found.complete
    assert f"the previous release was restored as {found.provenance.tag}" in error.message
    assert "again" in error.hint
    after = hub.files(TARGET)
    assert {path: after[path] for path in after if path != "provenance.json"} == {
        path: before[path] for path in before if path != "provenance.json"
    }
    assert f"refs/tags/{new.tag}" not in hub.refs(TARGET)
    assert len(hub.history(TARGET)) == 4


def test_weights_do_not_pass_through_us_on_the_way_back(
    hub: LocalHub, old: Job, new: Job, artifact: Artifact
) -> None:
    publish_rotten(hub, new, artifact)
    weights = hub.repo(TARGET).commit_at(old.tag).files["model-00001-of-00002.safetensors"].sha256
    # Read back once, when they were published; sent once.
    assert len(requests(hub, "GET", weights)) == 1
    assert len(requests(hub, "PUT", weights)) == 1


def test_update_after_a_way_back_is_published(hub: LocalHub, old: Job, new: Job, artifact: Artifact) -> None:
    publish_rotten(hub, new, artifact)
    weights = hub.repo(TARGET).object_path(next(f.sha256 for f in artifact.files if f.path == "model.safetensors"))
    weights.write_bytes(NEW["model.safetensors"])
    assert publish(as_bot(hub), new, artifact, no_progress).new
    assert content(hub)["model.safetensors"] == NEW["model.safetensors"]
    assert state(hub, new).complete
    assert len(hub.history(TARGET)) == 5


def test_way_back_skips_tags_that_people_made(
    hub: LocalHub, api: HfApi, old: Job, new: Job, artifact: Artifact
) -> None:
    api.create_tag(TARGET, tag="v1", revision=hub.seed(TARGET, {"note.md": "by hand"}))
    publish_rotten(hub, new, artifact)
    assert "note.md" not in hub.files(TARGET)
    assert state(hub, old).complete


def test_way_back_that_fails_too_is_said_and_done_the_next_time(
    hub: LocalHub, old: Job, new: Job, artifact: Artifact
) -> None:
    hub.faults.add(Fault(path="/commit/", status=403, skip=1, times=1))
    error = publish_rotten(hub, new, artifact)
    assert "restoring the previous release failed too (403)" in error.message
    assert not state(hub, new).complete
    with pytest.raises(PublishError, match="the previous release was restored as"):
        publish(as_bot(hub), new, artifact, no_progress)
    assert state(hub, old).complete


def test_access_lost_while_reading_back_reverts_nothing(
    hub: LocalHub, old: Job, new: Job, artifact: Artifact
) -> None:
    hub.faults.add(Fault(path="/resolve/.*tokenizer.json", status=403))
    with pytest.raises(PublishError, match="may not read back"):
        publish(as_bot(hub), new, artifact, no_progress)
    assert len(hub.history(TARGET)) == 3
    assert publish(as_bot(hub), new, artifact, no_progress).new
