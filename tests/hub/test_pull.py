"""The pinned files on disk, verified, whatever the line and the disk do."""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import logging
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import pytest
import stamina
from huggingface_hub import HfApi, constants
from huggingface_hub.utils._xet_progress_reporting import XetDownloadProgressReporter

from bot.errors import EnvironmentProblem, UpstreamError
from bot.hub.pull import Pinned, dataset_files, pull_files, pull_source, tqdm_class
from bot.hub.session import WORKER, Hub
from bot.localhub import Fault, LocalHub
from bot.records import HubFile, byte_counter, no_progress, to_json
from tests.support.repos import SOURCE, as_bot, forget_requests, release_job, requests, source_files

DATASET = "lab/Texts"
WEIGHTS = bytes(range(256)) * 2000
RELEASED = {
    "LICENSE",
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
}


class Usage(NamedTuple):
    total: int
    used: int
    free: int


@pytest.fixture
def source(hub: LocalHub) -> Hub:
    hub.seed(SOURCE, source_files(model__safetensors=WEIGHTS))
    return as_bot(hub)


def on_disk(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def fetched(hub: LocalHub) -> list[str]:
    """The file of every request that asked for content."""
    return [
        item.path.rsplit("/", 1)[-1] for item in hub.requests if item.method == "GET" and "/api/" not in item.path
    ]


def test_only_what_the_job_needs_is_pulled(hub: LocalHub, source: Hub, tmp_path: Path) -> None:
    hub.seed(SOURCE, {"original/consolidated.safetensors": b"2", "pytorch_model.bin": b"3", "picture.png": b"4"})
    job = release_job(hub)
    weights = pull_source(source, job, tmp_path / "job" / "source", no_progress)
    assert on_disk(tmp_path / "job" / "source") == {
        path: content for path, content in hub.files(SOURCE).items() if path in RELEASED
    }
    assert (weights.folder, weights.sha) == ("source", job.upstream.sha)
    assert {(file.path, file.size_bytes, file.sha256) for file in weights.files} == {
        (path, len(content), hashlib.sha256(content).hexdigest())
        for path, content in hub.files(SOURCE).items()
        if path in RELEASED
    }


def test_pinned_commit_is_pulled_although_upstream_went_on(hub: LocalHub, source: Hub, tmp_path: Path) -> None:
    job = release_job(hub)
    hub.seed(SOURCE, {"model.safetensors": b"newer", "config.json": "{}"})
    pull_source(source, job, tmp_path / "source", no_progress)
    assert on_disk(tmp_path / "source")["model.safetensors"] == WEIGHTS


def test_weights_that_nothing_names_are_left_out(hub: LocalHub, source: Hub, tmp_path: Path) -> None:
    job = dataclasses.replace(release_job(hub), weight_files=())
    pull_source(source, job, tmp_path / "source", no_progress)
    assert set(on_disk(tmp_path / "source")) == RELEASED - {"model.safetensors"}


def test_second_pull_asks_for_nothing(hub: LocalHub, source: Hub, tmp_path: Path) -> None:
    job = release_job(hub)
    first = pull_source(source, job, tmp_path / "source", no_progress)
    forget_requests(hub)
    second = pull_source(source, job, tmp_path / "source", no_progress)
    assert hub.requests == ()
    assert second.files == first.files


def test_downloading_and_checking_report_every_byte(hub: LocalHub, source: Hub, tmp_path: Path) -> None:
    job = release_job(hub)
    seen: list[tuple[str, int, int, str]] = []
    weights = pull_source(source, job, tmp_path / "source", lambda *report: seen.append(report))
    total = sum(file.size_bytes for file in weights.files)
    for what in (f"pull {SOURCE}", f"check {SOURCE}"):
        done = [report[1] for report in seen if report[0] == what]
        assert (what, done[-1], done) == (what, total, sorted(set(done)))
    assert {report[2:] for report in seen} == {(total, "B")}


def test_checking_what_is_on_disk_is_reported_too(hub: LocalHub, source: Hub, tmp_path: Path) -> None:
    job = release_job(hub)
    weights = pull_source(source, job, tmp_path / "source", no_progress)
    seen: list[tuple[str, int, int, str]] = []
    pull_source(source, job, tmp_path / "source", lambda *report: seen.append(report))
    total = sum(file.size_bytes for file in weights.files)
    assert {what for what, *_ in seen} == {f"check {SOURCE}"}
    assert seen[-1][1:] == (total, total, "B")


def test_file_that_comes_by_xet_is_counted_once() -> None:
    """The client's own reporter with the reports of hf_xet; the local Hub does not speak Xet."""
    seen: list[int] = []
    count = byte_counter(lambda what, done, total, unit: seen.append(done), "pull", 1000)
    bar = tqdm_class(count, lambda: False)
    with XetDownloadProgressReporter(
        reconstruction_desc="on disk", total=1000, log_level=logging.INFO, name="xet", tqdm_class=bar
    ) as reporter:
        for on_disk, received in ((0, 300), (400, 700), (1000, 800)):
            reporter.update_progress(
                SimpleNamespace(
                    total_bytes=1000,
                    total_bytes_completed=on_disk,
                    total_bytes_completion_rate=1.0,
                    total_transfer_bytes_completed=received,
                    total_transfer_bytes_completion_rate=1.0,
                )
            )
    assert seen == [400, 1000]


def test_cut_line_is_taken_up_where_it_broke(
    hub: LocalHub, source: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 4096)
    job = release_job(hub)
    hub.faults.add(Fault(path=r"/objects/.*/model", cut_after_bytes=300_000))
    pull_source(source, job, tmp_path / "source", no_progress)
    assert on_disk(tmp_path / "source")["model.safetensors"] == WEIGHTS
    cut, rest = requests(hub, "GET", "/objects/")
    assert (cut.bytes_sent, rest.status) == (300_000, 206)
    assert rest.bytes_sent < 300_000


@pytest.mark.parametrize("method", ["HEAD", "GET"])
def test_busy_hub_is_asked_again(hub: LocalHub, source: Hub, tmp_path: Path, method: str) -> None:
    job = release_job(hub)
    hub.faults.add(Fault(path="tokenizer.json", method=method, status=503, times=1))
    pull_source(source, job, tmp_path / "source", no_progress)
    assert set(on_disk(tmp_path / "source")) == RELEASED


def test_rotten_bytes_are_found_and_fetched_anew(hub: LocalHub, source: Hub, tmp_path: Path) -> None:
    job = release_job(hub)
    entry = hub.repo(SOURCE).commit_at("main").files["model.safetensors"]
    stored = hub.repo(SOURCE).object_path(entry.sha256)
    stored.write_bytes(WEIGHTS[:-1] + b"\0")
    with pytest.raises(UpstreamError, match=r"model\.safetensors: the download is not the planned file") as caught:
        pull_source(source, job, tmp_path / "source", no_progress)
    assert "again" in caught.value.hint
    stored.write_bytes(WEIGHTS)
    forget_requests(hub)
    pull_source(source, job, tmp_path / "source", no_progress)
    assert fetched(hub) == ["model.safetensors"] * 1
    assert on_disk(tmp_path / "source")["model.safetensors"] == WEIGHTS


@pytest.mark.parametrize("damage", [WEIGHTS[:-1] + b"\0", WEIGHTS[:-1], b""], ids=["flipped", "short", "empty"])
def test_file_damaged_on_disk_is_fetched_anew(hub: LocalHub, source: Hub, tmp_path: Path, damage: bytes) -> None:
    job = release_job(hub)
    pull_source(source, job, tmp_path / "source", no_progress)
    (tmp_path / "source" / "model.safetensors").write_bytes(damage)
    forget_requests(hub)
    pull_source(source, job, tmp_path / "source", no_progress)
    assert fetched(hub) == ["model.safetensors"]
    assert on_disk(tmp_path / "source")["model.safetensors"] == WEIGHTS


def test_strays_and_the_client_s_notes_are_removed(hub: LocalHub, source: Hub, tmp_path: Path) -> None:
    stray = tmp_path / "source" / "model-00001-of-00002.safetensors"
    half = tmp_path / "source" / ".cache" / "huggingface" / "download" / "x.1234.incomplete"
    for path in (stray, half):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"old")
    pull_source(source, release_job(hub), tmp_path / "source", no_progress)
    assert set(on_disk(tmp_path / "source")) == RELEASED


@pytest.mark.parametrize("gone", ["repo", "gate"])
def test_upstream_that_goes_away_while_pulling_is_named(
    hub: LocalHub, api: HfApi, tmp_path: Path, gone: str
) -> None:
    hub.seed("bot/Brief", source_files(), gated="auto" if gone == "gate" else None)
    hub.add_token("guest", role="read")
    hub.grant_access("bot/Brief", "guest")
    job = release_job(hub, repo_id="bot/Brief")
    guest = Hub(hub.endpoint, hub.token("guest" if gone == "repo" else "reader", role="read"))
    if gone == "repo":
        api.delete_repo("bot/Brief")
    with pytest.raises(UpstreamError, match=r"bot/Brief@.* answers 40") as caught:
        pull_source(guest, job, tmp_path / "source", no_progress)
    assert "Plan again" in caught.value.hint


def test_failure_stops_the_other_downloads(
    hub: LocalHub, source: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 4096)
    job = release_job(hub)
    # The large file is on its way when a small one turns out to be gone.
    hub.faults.add(Fault(path="/resolve/.*/tokenizer.json", status=404, delay_s=0.1, times=None))
    hub.faults.add(Fault(path="/objects/", delay_s=0.5))
    with pytest.raises(UpstreamError, match=r"tokenizer\.json"):
        pull_source(source, job, tmp_path / "source", no_progress)
    assert "model.safetensors" not in on_disk(tmp_path / "source")


def test_unreachable_hub_is_an_environment_problem(hub: LocalHub, source: Hub, tmp_path: Path) -> None:
    job = release_job(hub)
    hub.faults.add(Fault(path="/resolve/", lose_answer=True, times=None))
    with stamina.set_testing(True, attempts=2), pytest.raises(EnvironmentProblem, match="cannot be reached"):
        pull_source(source, job, tmp_path / "source", no_progress)


def test_disk_that_is_too_small_is_found_before_anything_is_asked_for(
    hub: LocalHub, source: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = release_job(hub)
    forget_requests(hub)
    # Nothing here has a disk of just this size.
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(10**12, 10**12 - 10**9, 10**9))
    with pytest.raises(EnvironmentProblem, match=r"1\.0 GB free, the job needs 7\.0 GB") as caught:
        pull_source(source, job, tmp_path / "source", no_progress)
    assert "--work" in caught.value.hint
    assert hub.requests == ()


def test_folder_that_cannot_be_made_is_named(hub: LocalHub, source: Hub, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(EnvironmentProblem, match=f"cannot be written: {'Not a directory'}") as caught:
        pull_source(source, release_job(hub), tmp_path / "file" / "source", no_progress)
    assert "--work" in caught.value.hint


def test_disk_that_fills_up_is_named(
    hub: LocalHub, source: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("huggingface_hub.file_download._chmod_and_move", full)
    with pytest.raises(EnvironmentProblem, match="No space left on device"):
        pull_source(source, release_job(hub), tmp_path / "source", no_progress)


def test_unsafe_names_are_refused_before_anything_is_asked_for(hub: LocalHub, source: Hub, tmp_path: Path) -> None:
    bad = HubFile(path="../outside", size_bytes=1, content_hash="0" * 40)
    with pytest.raises(UpstreamError, match="unsafe file name"):
        pull_files(source, Pinned(SOURCE, "0" * 40), [bad], tmp_path / "source", no_progress)
    assert hub.requests == ()


def test_killed_pull_goes_on_with_the_files_it_lacks(hub: LocalHub, source: Hub, tmp_path: Path) -> None:
    job = release_job(hub)
    folder = tmp_path / "source"
    hub.faults.add(Fault(path="/objects/", delay_s=30))
    code = (
        "import sys; from pathlib import Path; from bot.records import Job, from_json, no_progress\n"
        "from bot.hub.pull import pull_source; from bot.hub.session import Hub\n"
        "pull_source(Hub.from_environment(), from_json(Job, sys.argv[1]), Path(sys.argv[2]), no_progress)\n"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", code, to_json(job), str(folder)],
        env={"HF_ENDPOINT": hub.endpoint, "PATH": ""},
    )
    small = RELEASED - {"model.safetensors"}
    deadline = time.monotonic() + 20
    while not all((folder / path).exists() for path in small) and time.monotonic() < deadline:
        time.sleep(0.02)
    child.send_signal(signal.SIGKILL)
    child.wait()
    hub.faults.clear()
    forget_requests(hub)
    pull_source(source, job, folder, no_progress)
    assert fetched(hub) == ["model.safetensors"] * 1
    assert set(on_disk(folder)) == RELEASED


def test_interrupted_pull_ends_at_once(
    hub: LocalHub, source: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 4096)
    job = release_job(hub)
    before = set(threading.enumerate())
    started = threading.Event()

    def interrupt(what: str, done: int, total: int, unit: str) -> None:
        if done > 100_000:
            started.set()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pull_source(source, job, tmp_path / "source", interrupt)
    assert started.is_set()
    assert "model.safetensors" not in on_disk(tmp_path / "source")
    # Nobody waited for the other downloads; they end at their next chunk, while a Hub is still there to answer.
    for thread in set(threading.enumerate()) - before:
        if thread.name.startswith(WORKER):
            thread.join()


# --- data sets ----------------------------------------------------------------------------------------------


def test_data_set_is_pulled_at_its_sha(hub: LocalHub, source: Hub, tmp_path: Path) -> None:
    sha = hub.seed(DATASET, {"data/train.jsonl": "old", "README.md": "x"}, repo_type="dataset")
    hub.seed(DATASET, {"data/train.jsonl": "new"}, repo_type="dataset")
    origin = Pinned(DATASET, sha, "dataset")
    wanted = [file for file in dataset_files(source, origin) if file.path.endswith(".jsonl")]
    pulled = pull_files(source, origin, wanted, tmp_path / "texts", no_progress)
    assert on_disk(tmp_path / "texts") == {"data/train.jsonl": b"old"}
    assert [file.sha256 for file in pulled] == [hashlib.sha256(b"old").hexdigest()]


@pytest.mark.parametrize("repo_id", [DATASET, "lab/Nothing"])
def test_data_set_that_is_not_there_is_named(hub: LocalHub, source: Hub, repo_id: str) -> None:
    hub.seed(DATASET, {"a": "1"}, repo_type="dataset")
    with pytest.raises(UpstreamError, match=f"data set {repo_id}@01234567 answers 404") as caught:
        dataset_files(source, Pinned(repo_id, "0123456789" * 4, "dataset"))
    assert "watchlist" in caught.value.hint
