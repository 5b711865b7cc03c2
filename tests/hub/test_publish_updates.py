"""A repo that is published already, killed processes, and several at once."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from huggingface_hub import HfApi

from bot.errors import BotError
from bot.localhub import Fault, LocalHub
from bot.records import Publication, to_json
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
CONFIG = '{"model_type": "qwen3"}'


@pytest.fixture
def old(hub: LocalHub, tmp_path: Path) -> Release:
    """A release that is complete and public."""
    release = Release.of(hub, tmp_path, OLD)
    release.publish()
    return release


@pytest.fixture
def new(old: Release, tmp_path: Path) -> Release:
    """The next one, not published yet."""
    return old.next(tmp_path, NEW, CONFIG)


# --- newer releases -----------------------------------------------------------------------------------------


def test_update_is_one_commit_and_keeps_the_older_tag(hub: LocalHub, old: Release, new: Release) -> None:
    before = hub.files(TARGET)
    new.publish()
    assert len(hub.history(TARGET)) == 3
    assert set(hub.files(TARGET)) == new.paths
    assert hub.files(TARGET, old.job.tag) == before
    assert set(hub.refs(TARGET)) == {"refs/heads/main", *(f"refs/tags/{item.job.tag}" for item in (old, new))}
    assert (new.complete, new.private) == (True, False)


def test_unchanged_files_are_not_sent_again(hub: LocalHub, old: Release, tmp_path: Path) -> None:
    same = old.next(tmp_path, OLD, CONFIG)
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


def test_earlier_release_is_not_published_again(hub: LocalHub, old: Release, new: Release) -> None:
    """A recipe that was changed and changed back asks for a tag that is on an older commit."""
    head = new.publish().sha
    again = dataclasses.replace(old, job=dataclasses.replace(old.job, replaces=new.job.tag))
    again.fails(f"the tag {old.job.tag} is already on")
    assert hub.history(TARGET)[0].sha == head
    assert new.complete


def test_late_release_replaces_no_newer_one(hub: LocalHub, old: Release, new: Release, tmp_path: Path) -> None:
    first = dataclasses.replace(new, job=dataclasses.replace(new.job, replaces=None))
    first.fails("another run has published to it since the plan was made")
    assert old.complete
    newest = old.next(tmp_path, NEW, '{"model_type": "llama"}')
    newest.publish()
    forget_requests(hub)
    assert "again" in new.fails("another run has published to it since the plan was made").hint
    assert writes(hub) == []
    assert newest.complete


# --- settings -----------------------------------------------------------------------------------------------


def test_gating_is_set_before_an_update_is_public(hub: LocalHub, old: Release, tmp_path: Path) -> None:
    hub.seed(SOURCE, {}, gated="manual")
    gated = old.next(tmp_path, NEW, CONFIG)
    hub.faults.add(Fault(path="/settings", status=403))
    assert "Nothing was changed" in gated.fails("gating could not be set").hint
    assert old.complete
    gated.publish()
    settings = [item.path for item in all_requests(hub) if item.path.endswith("/settings") and item.status == 200]
    assert len(settings) == 2  # public at first, the gating now
    assert hub.repo(TARGET).settings().gated == "manual"
    assert gated.complete


def test_gating_of_upstream_is_removed_and_a_persons_kept(hub: LocalHub, api: HfApi, tmp_path: Path) -> None:
    hub.seed(SOURCE, source_files(), gated="auto")
    first = Release.of(hub, tmp_path)
    first.publish()
    hub.seed(SOURCE, {}, gated=False)
    second = first.next(tmp_path)
    second.publish()
    assert hub.repo(TARGET).settings().gated is False
    api.update_repo_settings(TARGET, gated="manual")
    second.next(tmp_path, config=CONFIG).publish()
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
        if what.startswith("read back"):
            weights_of(hub, new).write_bytes(b"?" * len(NEW["model.safetensors"]))

    return new.fails(r"model\.safetensors differs from what was sent", progress=damage)


def weights_of(hub: LocalHub, release: Release) -> Path:
    """Where the Hub stores them."""
    sha256 = next(file.sha256 for file in release.artifact.files if file.path == "model.safetensors")
    return hub.repo(TARGET).object_path(sha256)


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
    assert after | {"provenance.json": before["provenance.json"]} == before
    assert f"refs/tags/{new.job.tag}" not in hub.refs(TARGET)
    assert len(hub.history(TARGET)) == 4
    # The Hub copied the weights itself: they were sent once, and read back when they were published and restored.
    weights = hub.repo(TARGET).commit_at(old.job.tag).files[SHARD].sha256
    assert (len(requests(hub, "GET", weights)), len(requests(hub, "PUT", weights))) == (2, 1)


def test_update_after_a_restored_release_is_published(hub: LocalHub, new: Release) -> None:
    publish_damaged(hub, new)
    weights_of(hub, new).write_bytes(NEW["model.safetensors"])
    assert new.publish().new
    assert hub.files(TARGET)["model.safetensors"] == NEW["model.safetensors"]
    assert new.complete
    assert len(hub.history(TARGET)) == 5


def test_tags_that_people_made_are_not_restored(hub: LocalHub, api: HfApi, old: Release, new: Release) -> None:
    api.create_tag(TARGET, tag="v1", revision=hub.seed(TARGET, {"note.md": "by hand"}))
    publish_damaged(hub, new)
    assert "note.md" not in hub.files(TARGET)
    assert old.state.complete


def test_failed_restoring_is_repeated_the_next_time(hub: LocalHub, old: Release, new: Release) -> None:
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


# --- killed processes, and several at once ------------------------------------------------------------------

PUBLISH = """
import sys
from pathlib import Path
from bot.hub.publish import Artifact, publish
from bot.hub.session import Hub
from bot.records import Job, PublishedFile, from_json, no_progress

folder, files = Path(sys.argv[3]), from_json(tuple[PublishedFile, ...], sys.argv[2])
artifact = Artifact(folders=(folder / "quantized", folder / "card"), files=files, summary="release")
publish(Hub.from_environment(), from_json(Job, sys.argv[1]), artifact, no_progress)
"""


def start(release: Release) -> subprocess.Popen[bytes]:
    folder = str(release.artifact.folders[0].parent)
    code = [sys.executable, "-c", PUBLISH, to_json(release.job), to_json(release.artifact.files), folder]
    environment = {"HF_ENDPOINT": release.hub.endpoint, "HF_TOKEN": release.hub.token("bot")}
    return subprocess.Popen(code, env=environment | {"PATH": os.environ["PATH"]})


def kill_at(release: Release, step: str) -> None:
    """Killed while the Hub is at this step, which it then carries out or not."""
    faults = release.hub.faults
    faults.add(Fault(path=step, delay_s=0.3))
    child = start(release)
    deadline = time.monotonic() + 30
    while faults.pending and time.monotonic() < deadline:
        time.sleep(0.01)
    assert faults.pending == ()
    child.send_signal(signal.SIGKILL)
    child.wait()


def expect_complete(release: Release) -> None:
    assert release.state.complete
    assert not release.private
    assert set(release.hub.files(TARGET)) == release.paths


@pytest.mark.parametrize(
    "step", ["/preupload/", "/uploads/", "/commit/", "/resolve/.*/model.safetensors", "/settings", "/tag/"]
)
def test_killed_publisher_leaves_nothing_incomplete_in_public(hub: LocalHub, release: Release, step: str) -> None:
    kill_at(release, step)
    assert release.private or release.state.provenance is not None
    release.publish()
    expect_complete(release)
    assert len(hub.history(TARGET)) == 2


def test_update_killed_before_its_commit_leaves_the_old_release_complete(release: Release, tmp_path: Path) -> None:
    release.publish()
    update = release.next(tmp_path, {"config.json": b"{}", "model.safetensors": b"new" * 999})
    kill_at(update, "/uploads/")
    expect_complete(release)
    update.publish()
    expect_complete(update)


def race(releases: list[Release]) -> list[Publication]:
    """All at once in threads that start together."""
    together = threading.Barrier(len(releases))

    def run(release: Release) -> Publication:
        together.wait()
        return release.publish()

    with ThreadPoolExecutor(len(releases)) as pool:
        return list(pool.map(run, releases))


@pytest.mark.parametrize("same", [True, False], ids=["equal bytes", "different bytes"])
def test_parallel_publishers_of_one_release_make_one_commit(
    hub: LocalHub, release: Release, tmp_path: Path, same: bool
) -> None:
    """Another GPU rounds differently; the first commit counts. All blobs are sent before the first commit."""
    releases = [release] * 3
    if not same:
        files = [{"config.json": b"{}", "model.safetensors": bytes([number]) * 9000} for number in range(3)]
        artifacts = [make_artifact(tmp_path / str(n), release.job, item) for n, item in enumerate(files)]
        releases = [Release(hub, release.job, artifact, release.caller) for artifact in artifacts]
    hub.faults.add(Fault(path="/commit/", delay_s=0.3, times=3))
    assert len({publication.sha for publication in race(releases)}) == 1
    expect_complete(releases[0])
    assert len(hub.history(TARGET)) == 2
    assert sorted(item.status for item in requests(hub, "POST", "/commit/")) == [200, 412, 412]
