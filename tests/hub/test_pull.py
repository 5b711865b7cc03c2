"""The pinned files on disk, verified, whatever the connection and the disk do."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import stamina
from huggingface_hub import HfApi, constants
from huggingface_hub.utils._xet_progress_reporting import XetDownloadProgressReporter

from bot.errors import BotError, EnvironmentProblem, UpstreamError
from bot.hub.pull import Pinned, dataset_files, pull_files, pull_source, tqdm_class
from bot.hub.session import WORKER, Hub
from bot.localhub import Fault, LocalHub
from bot.records import HubFile, Job, Progress, Weights, byte_counter, no_progress, to_json
from bot.watch import digests
from tests.support.repos import SOURCE, as_bot, forget_requests, release_job, requests, source_files

DATASET = "lab/Texts"
WEIGHTS = bytes(range(256)) * 2000
PULL = """
import sys; from pathlib import Path; from bot.records import Job, from_json, no_progress
from bot.hub.pull import pull_source; from bot.hub.session import Hub
pull_source(Hub.from_environment(), from_json(Job, sys.argv[1]), Path(sys.argv[2]), no_progress)
"""
RELEASED = set(source_files()) - {"README.md"}


@dataclass(frozen=True)
class Pull:
    """A release job and the folder that its source is downloaded to."""

    hub: LocalHub
    caller: Hub
    job: Job
    folder: Path

    def __call__(self, progress: Progress = no_progress) -> Weights:
        return pull_source(self.caller, self.job, self.folder, progress)

    def fails(self, kind: type[BotError], match: str) -> str:
        """The hint of the error, whose message matches."""
        with pytest.raises(kind, match=match) as caught:
            self()
        return caught.value.hint

    @property
    def found(self) -> dict[str, bytes]:
        return on_disk(self.folder)


@pytest.fixture
def pull(hub: LocalHub, tmp_path: Path) -> Pull:
    hub.seed(SOURCE, source_files(model__safetensors=WEIGHTS))
    job = release_job(hub)
    forget_requests(hub)
    return Pull(hub, as_bot(hub), job, tmp_path / "job" / "source")


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 4096)


def on_disk(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def fetched(hub: LocalHub) -> list[str]:
    """The file of every request that asked for content."""
    return [item.path.rsplit("/", 1)[-1] for item in requests(hub, "GET", "") if "/api/" not in item.path]


def test_only_what_the_job_needs_is_pulled(hub: LocalHub, pull: Pull) -> None:
    """At the pinned commit, although upstream has other files by now."""
    expected = {path: content for path, content in hub.files(SOURCE).items() if path in RELEASED}
    hub.seed(SOURCE, {"pytorch_model.bin": b"3", "model.safetensors": b"newer", "config.json": "{}"})
    weights = pull()
    assert pull.found == expected
    assert (weights.folder, weights.sha) == ("source", pull.job.upstream.sha)
    assert {(file.path, file.size_bytes, file.sha256) for file in weights.files} == {
        (path, len(content), hashlib.sha256(content).hexdigest()) for path, content in expected.items()
    }


def test_files_of_other_formats_are_left_out(hub: LocalHub, pull: Pull) -> None:
    hub.seed(SOURCE, {"original/consolidated.safetensors": b"2", "pytorch_model.bin": b"3", "picture.png": b"4"})
    again = replace(pull, job=release_job(hub))
    again()
    assert set(again.found) == RELEASED
    unnamed = replace(pull, job=replace(again.job, weight_files=()))
    unnamed()
    assert set(unnamed.found) == RELEASED - {"model.safetensors"}


def test_shards_in_a_folder_are_pulled_where_the_index_says(hub: LocalHub, pull: Pull) -> None:
    shard, index = "parts/a.safetensors", json.dumps({"weight_map": {"a": "parts/a.safetensors"}})
    hub.seed(SOURCE, {shard: WEIGHTS, "model.safetensors.index.json": index}, delete=["model.safetensors"])
    job = release_job(hub)
    files = digests.source_files(job.entry, job.upstream, (shard,))
    again = replace(pull, job=replace(job, source_files=files, weight_files=(shard,)))
    again()
    assert set(again.found) == RELEASED - {"model.safetensors"} | {shard, "model.safetensors.index.json"}


def test_every_byte_is_reported_and_a_second_pull_only_checks(hub: LocalHub, pull: Pull) -> None:
    seen: list[tuple[str, int, int, str]] = []
    weights = pull(lambda *report: seen.append(report))
    total = sum(file.size_bytes for file in weights.files)
    for what in (f"pull {SOURCE}", f"check {SOURCE}"):
        done = [report[1] for report in seen if report[0] == what]
        assert (what, done[-1], done) == (what, total, sorted(set(done)))
    assert {report[2:] for report in seen} == {(total, "B")}
    forget_requests(hub)
    seen.clear()
    assert pull(lambda *report: seen.append(report)).files == weights.files
    assert hub.requests == ()
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
            report = dict.fromkeys(("total_bytes_completion_rate", "total_transfer_bytes_completion_rate"), 1.0)
            report |= {"total_bytes": 1000, "total_bytes_completed": on_disk}
            reporter.update_progress(SimpleNamespace(**report, total_transfer_bytes_completed=received))
    assert seen == [400, 1000]


@pytest.mark.usefixtures("small_chunks")
def test_broken_connection_is_resumed_where_it_broke(hub: LocalHub, pull: Pull) -> None:
    hub.faults.add(Fault(path=r"/objects/.*/model", cut_after_bytes=300_000))
    pull()
    assert pull.found["model.safetensors"] == WEIGHTS
    cut, rest = requests(hub, "GET", "/objects/")
    assert (cut.bytes_sent, rest.status) == (300_000, 206)
    assert rest.bytes_sent < 300_000


@pytest.mark.parametrize("method", ["HEAD", "GET"])
def test_busy_hub_is_retried(hub: LocalHub, pull: Pull, method: str) -> None:
    hub.faults.add(Fault(path="tokenizer.json", method=method, status=503, times=1))
    pull()
    assert set(pull.found) == RELEASED


@pytest.mark.parametrize("damage", [WEIGHTS[:-1] + b"\0", WEIGHTS[:-1], b""], ids=["flipped", "short", "empty"])
def test_damaged_file_is_downloaded_again(hub: LocalHub, pull: Pull, damage: bytes) -> None:
    pull()
    (pull.folder / "model.safetensors").write_bytes(damage)
    forget_requests(hub)
    pull()
    assert fetched(hub) == ["model.safetensors"]
    assert pull.found["model.safetensors"] == WEIGHTS


def test_file_that_is_damaged_on_the_hub_is_refused(hub: LocalHub, pull: Pull) -> None:
    stored = hub.repo(SOURCE).object_path(hub.repo(SOURCE).commit_at("main").files["model.safetensors"].sha256)
    stored.write_bytes(WEIGHTS[:-1] + b"\0")
    assert "again" in pull.fails(UpstreamError, r"model\.safetensors: the download is not the planned file")
    stored.write_bytes(WEIGHTS)
    assert pull().files


def test_other_files_and_the_client_s_cache_are_removed(pull: Pull) -> None:
    for path in ("model-00001-of-00002.safetensors", ".cache/huggingface/download/x.1234.incomplete"):
        (pull.folder / path).parent.mkdir(parents=True, exist_ok=True)
        (pull.folder / path).write_bytes(b"old")
    pull()
    assert set(pull.found) == RELEASED


@pytest.mark.parametrize("gone", ["repo", "gate"])
def test_deleted_or_gated_upstream_is_named(hub: LocalHub, api: HfApi, tmp_path: Path, gone: str) -> None:
    hub.seed("bot/Brief", source_files(), gated="auto" if gone == "gate" else None)
    hub.add_token("guest", role="read")
    hub.grant_access("bot/Brief", "guest")
    guest = Hub(hub.endpoint, hub.token("guest" if gone == "repo" else "reader", role="read"))
    pull = Pull(hub, guest, release_job(hub, repo_id="bot/Brief"), tmp_path / "source")
    if gone == "repo":
        api.delete_repo("bot/Brief")
    assert "Plan again" in pull.fails(UpstreamError, r"bot/Brief@.* answers 40")


@pytest.mark.usefixtures("small_chunks")
def test_failure_stops_the_other_downloads(hub: LocalHub, pull: Pull) -> None:
    # A small file turns out to be missing while the large one is being downloaded.
    hub.faults.add(Fault(path="/resolve/.*/tokenizer.json", status=404, delay_s=0.1, times=None))
    hub.faults.add(Fault(path="/objects/", delay_s=0.5))
    pull.fails(UpstreamError, r"tokenizer\.json")
    assert "model.safetensors" not in pull.found


def test_unreachable_hub_is_an_environment_problem(hub: LocalHub, pull: Pull) -> None:
    hub.faults.add(Fault(path="/resolve/", lose_answer=True, times=None))
    with stamina.set_testing(True, attempts=2):
        pull.fails(EnvironmentProblem, "cannot be reached")


def test_small_disk_is_found_at_once(hub: LocalHub, pull: Pull, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=10**9))
    assert "--work" in pull.fails(EnvironmentProblem, r"1\.0 GB free, the job needs 7\.0 GB")
    assert hub.requests == ()


def test_folder_that_cannot_be_made_is_named(pull: Pull) -> None:
    pull.folder.parent.write_text("a file")
    assert "--work" in pull.fails(EnvironmentProblem, "cannot be written: ")


def test_unsafe_names_are_refused_before_any_request(hub: LocalHub, pull: Pull) -> None:
    bad = HubFile(path="../outside", size_bytes=1, content_hash="0" * 40)
    with pytest.raises(UpstreamError, match="unsafe file name"):
        pull_files(pull.caller, Pinned(SOURCE, "0" * 40), [bad], pull.folder, no_progress)
    assert hub.requests == ()


@pytest.mark.parametrize("place", ["", "model.safetensors", "additional_chat_templates", "stale"])
def test_nothing_is_read_written_or_deleted_through_a_link(
    hub: LocalHub, pull: Pull, tmp_path: Path, place: str
) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.txt").write_text("years of work")
    link = pull.folder / place
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to(mine / "thesis.txt" if place == "model.safetensors" else mine)
    assert "Delete the link" in pull.fails(EnvironmentProblem, f"{link}: is a symbolic link")
    assert on_disk(mine) == {"thesis.txt": b"years of work"}
    assert hub.requests == ()
    link.unlink()
    pull()
    assert set(pull.found) == RELEASED


def test_killed_pull_resumes_with_the_missing_files(hub: LocalHub, pull: Pull) -> None:
    hub.faults.add(Fault(path="/objects/", delay_s=30))
    arguments = [sys.executable, "-c", PULL, to_json(pull.job), str(pull.folder)]
    child = subprocess.Popen(arguments, env={"HF_ENDPOINT": hub.endpoint, "PATH": ""})
    deadline = time.monotonic() + 20
    while not set(pull.found) >= RELEASED - {"model.safetensors"} and time.monotonic() < deadline:
        time.sleep(0.02)
    child.send_signal(signal.SIGKILL)
    child.wait()
    hub.faults.clear()
    forget_requests(hub)
    pull()
    assert fetched(hub) == ["model.safetensors"]
    assert set(pull.found) == RELEASED


@pytest.mark.usefixtures("small_chunks")
def test_interrupted_pull_ends_at_once(pull: Pull) -> None:
    before = set(threading.enumerate())

    def interrupt(what: str, done: int, total: int, unit: str) -> None:
        if done > 100_000:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pull(interrupt)
    assert "model.safetensors" not in pull.found
    # The other downloads were not waited for; they end at their next chunk, while the Hub still answers.
    for thread in set(threading.enumerate()) - before:
        if thread.name.startswith(WORKER):
            thread.join()


# --- data sets ----------------------------------------------------------------------------------------------


def test_data_set_is_pulled_at_its_sha(hub: LocalHub, tmp_path: Path) -> None:
    sha = hub.seed(DATASET, {"data/train.jsonl": "old", "README.md": "x"}, repo_type="dataset")
    hub.seed(DATASET, {"data/train.jsonl": "new"}, repo_type="dataset")
    origin = Pinned(DATASET, sha, "dataset")
    wanted = [file for file in dataset_files(as_bot(hub), origin) if file.path.endswith(".jsonl")]
    pulled = pull_files(as_bot(hub), origin, wanted, tmp_path / "texts", no_progress)
    assert on_disk(tmp_path / "texts") == {"data/train.jsonl": b"old"}
    assert [file.sha256 for file in pulled] == [hashlib.sha256(b"old").hexdigest()]


@pytest.mark.parametrize("repo_id", [DATASET, "lab/Nothing"])
def test_missing_data_set_is_named(hub: LocalHub, repo_id: str) -> None:
    hub.seed(DATASET, {"a": "1"}, repo_type="dataset")
    with pytest.raises(UpstreamError, match=f"data set {repo_id}@01234567 answers 404") as caught:
        dataset_files(as_bot(hub), Pinned(repo_id, "0123456789" * 4, "dataset"))
    assert "watchlist" in caught.value.hint
