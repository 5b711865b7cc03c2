"""Two hundred publications by four workers of one process: memory and file descriptors do not grow."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from bot.localhub import LocalHub
from bot.records import to_json
from tests.support.repos import make_artifact, release_job

COUNT, BATCH, WORKERS = 200, 50, 4
MOST_GROWTH = 1.05
# Reports after each batch, when nothing is under way.
PUBLISH = """
import gc, json, os, sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from bot.hub.publish import Artifact, publish
from bot.hub.session import Hub
from bot.records import Job, PublishedFile, from_json, no_progress

hub, batch, workers = Hub.from_environment(), int(sys.argv[2]), int(sys.argv[3])

def one(line):
    job, files, folder = json.loads(line)
    folders = (Path(folder) / "quantized", Path(folder) / "card")
    artifact = Artifact(folders=folders, files=from_json(tuple[PublishedFile, ...], files), summary="release")
    publish(hub, from_json(Job, job), artifact, no_progress)

lines = Path(sys.argv[1]).read_text().splitlines()
with ThreadPoolExecutor(workers) as pool:
    for start in range(0, len(lines), batch):
        for done in pool.map(one, lines[start : start + batch]):
            pass
        gc.collect()
        resident = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        print(resident, len(os.listdir("/proc/self/fd")), flush=True)
"""


class Used(NamedTuple):
    """Of the process that publishes. memory: resident, in bytes."""

    memory: int
    descriptors: int


@pytest.mark.slow
def test_many_publications_take_no_more_memory_than_some(hub: LocalHub, tmp_path: Path) -> None:
    lines = []
    for number in range(COUNT):
        job = release_job(hub, target=f"quantized/Tiny-{number}-awq")
        folder = tmp_path / "made" / str(number)
        artifact = make_artifact(folder, job)
        lines.append(json.dumps([to_json(job), to_json(artifact.files), str(folder)]))
    listed = tmp_path / "jobs"
    listed.write_text("\n".join(lines))

    first, *_, last = _published(hub, listed)

    complete = [name for name in range(COUNT) if len(hub.refs(f"quantized/Tiny-{name}-awq")) == 2]
    assert len(complete) == COUNT
    assert last.memory <= MOST_GROWTH * first.memory, (first, last)
    assert last.descriptors <= first.descriptors


def _published(hub: LocalHub, listed: Path) -> list[Used]:
    """What is used after each batch."""
    command = [sys.executable, "-c", PUBLISH, str(listed), str(BATCH), str(WORKERS)]
    environment = {"HF_ENDPOINT": hub.endpoint, "HF_TOKEN": hub.token("bot"), "PATH": os.environ["PATH"]}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return [Used(*map(int, line.split())) for line in done.stdout.splitlines()]
