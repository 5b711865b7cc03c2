"""Killed processes, and two at once: the tree comes out the same, and nothing half-done is ever public."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from bot.errors import PublishError
from bot.hub import client
from bot.hub.publish import Artifact, publish
from bot.localhub import Fault, LocalHub
from bot.records import Job, Publication, no_progress, to_json
from tests.support.repos import SOURCE, TARGET, as_bot, make_artifact, release_job, requests

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


def start(hub: LocalHub, job: Job, artifact: Artifact) -> subprocess.Popen[bytes]:
    arguments = [to_json(job), to_json(artifact.files), str(artifact.folders[0].parent)]
    environment = {"HF_ENDPOINT": hub.endpoint, "HF_TOKEN": hub.token("bot"), "PATH": os.environ["PATH"]}
    return subprocess.Popen([sys.executable, "-c", PUBLISH, *arguments], env=environment)


def wait_until_taken(hub: LocalHub) -> None:
    """Until a request has run into every fault."""
    deadline = time.monotonic() + 30
    while hub.faults.pending and time.monotonic() < deadline:
        time.sleep(0.01)
    assert hub.faults.pending == ()


def expect_complete(hub: LocalHub, job: Job, artifact: Artifact) -> None:
    assert client.published(as_bot(hub), [job.entry])[0].complete
    assert not hub.repo(TARGET).settings().private
    assert set(hub.files(TARGET)) == {file.path for file in artifact.files} | {".gitattributes"}


@pytest.mark.parametrize(
    "step", ["/preupload/", "/uploads/", "/commit/", "/resolve/.*/model.safetensors", "/settings", "/tag/"]
)
def test_killed_publisher_leaves_nothing_half_done_in_public(
    hub: LocalHub, job: Job, artifact: Artifact, step: str
) -> None:
    """Killed while the Hub is at this step, which it then carries out or not; and published again."""
    hub.faults.add(Fault(path=step, delay_s=0.3))
    child = start(hub, job, artifact)
    wait_until_taken(hub)
    child.send_signal(signal.SIGKILL)
    child.wait()
    found = client.published(as_bot(hub), [job.entry])[0]
    assert hub.repo(TARGET).settings().private or found.provenance is not None
    publish(as_bot(hub), job, artifact, no_progress)
    expect_complete(hub, job, artifact)
    assert len(hub.history(TARGET)) == 2


def test_update_killed_before_its_commit_leaves_the_old_release_complete(
    hub: LocalHub, job: Job, artifact: Artifact, tmp_path: Path
) -> None:
    publish(as_bot(hub), job, artifact, no_progress)
    hub.seed(SOURCE, {"config.json": "{}"})
    newer = release_job(hub)
    update = make_artifact(tmp_path / "newer", newer, {"config.json": b"{}", "model.safetensors": b"new" * 999})
    hub.faults.add(Fault(path="/uploads/", delay_s=0.3))
    child = start(hub, newer, update)
    wait_until_taken(hub)
    child.send_signal(signal.SIGKILL)
    child.wait()
    expect_complete(hub, job, artifact)
    publish(as_bot(hub), newer, update, no_progress)
    expect_complete(hub, newer, update)


def race(hub: LocalHub, job: Job, artifacts: list[Artifact]) -> list[Publication | PublishError]:
    """All at once in threads, each started when the others are too."""
    together = threading.Barrier(len(artifacts))
    results: list[Publication | PublishError] = []

    def run(artifact: Artifact) -> None:
        together.wait()
        try:
            results.append(publish(as_bot(hub), job, artifact, no_progress))
        except PublishError as error:
            results.append(error)

    threads = [threading.Thread(target=run, args=(artifact,)) for artifact in artifacts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def test_two_publishers_of_one_release_make_one_commit(hub: LocalHub, job: Job, artifact: Artifact) -> None:
    # Both have sent their blobs before either commits.
    hub.faults.add(Fault(path="/commit/", delay_s=0.3, times=2))
    results = race(hub, job, [artifact, artifact])
    assert [type(result) for result in results] == [Publication, Publication]
    assert len({result.sha for result in results if isinstance(result, Publication)}) == 1
    expect_complete(hub, job, artifact)
    assert len(hub.history(TARGET)) == 2
    assert sorted(item.status for item in requests(hub, "POST", "/commit/")) == [200, 412]


def test_publishers_whose_bytes_differ_end_with_one_tree(hub: LocalHub, job: Job, tmp_path: Path) -> None:
    """Another GPU rounds another way: whoever commits first is right."""
    artifacts = [
        make_artifact(
            tmp_path / str(number), job, {"config.json": b"{}", "model.safetensors": bytes([number]) * 9000}
        )
        for number in range(3)
    ]
    hub.faults.add(Fault(path="/commit/", delay_s=0.2, times=3))
    results = race(hub, job, artifacts)
    assert [type(result) for result in results] == [Publication] * 3
    expect_complete(hub, job, artifacts[0])
    assert len(hub.history(TARGET)) == 2


def test_publishers_in_processes_of_their_own_end_well(hub: LocalHub, job: Job, artifact: Artifact) -> None:
    children = [start(hub, job, artifact) for _ in range(2)]
    assert [child.wait(60) for child in children] == [0, 0]
    expect_complete(hub, job, artifact)
    assert len(hub.history(TARGET)) == 2
