"""Killed processes, and several at once: the tree comes out the same, and nothing incomplete is ever public."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from bot.errors import BotError
from bot.localhub import Fault, LocalHub
from bot.records import Publication, to_json
from tests.support.release import Release
from tests.support.repos import TARGET, make_artifact, requests

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
    folder = release.artifact.folders[0].parent
    arguments = [to_json(release.job), to_json(release.artifact.files), str(folder)]
    token = release.hub.token("bot")
    environment = {"HF_ENDPOINT": release.hub.endpoint, "HF_TOKEN": token, "PATH": os.environ["PATH"]}
    return subprocess.Popen([sys.executable, "-c", PUBLISH, *arguments], env=environment)


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


def race(releases: list[Release]) -> list[Publication | BotError]:
    """All at once in threads that start together."""
    together = threading.Barrier(len(releases))
    results: list[Publication | BotError] = []

    def run(release: Release) -> None:
        together.wait()
        try:
            results.append(release.publish())
        except BotError as error:
            results.append(error)

    threads = [threading.Thread(target=run, args=(release,)) for release in releases]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


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
    results = race(releases)
    assert [type(result) for result in results] == [Publication] * 3
    assert len({result.sha for result in results if isinstance(result, Publication)}) == 1
    expect_complete(releases[0])
    assert len(hub.history(TARGET)) == 2
    assert sorted(item.status for item in requests(hub, "POST", "/commit/")) == [200, 412, 412]


def test_parallel_processes_end_with_one_release(hub: LocalHub, release: Release) -> None:
    children = [start(release) for _ in range(2)]
    assert [child.wait(60) for child in children] == [0, 0]
    expect_complete(release)
    assert len(hub.history(TARGET)) == 2
