"""A job's folder: records are complete or missing, and valid only for the inputs that they were made from."""

from __future__ import annotations

import errno
import math
import os
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bot.checkpoint.constants import tool_versions
from bot.errors import EnvironmentProblem, QuantizationError, WatchlistError
from bot.hub.session import Hub
from bot.jobs.folder import JobDir, card_inputs, evaluate_inputs, pull_inputs, quantize_inputs
from bot.jobs.pipeline import run_job
from bot.jobs.stages import JobContext
from bot.records import (
    Calibration,
    Card,
    Evaluation,
    Job,
    Publication,
    Recipe,
    Report,
    Status,
    TextSource,
    Weights,
    job_result,
    no_progress,
)
from tests.support.factories import entry, job, published_file, quantized, report, upstream, weights, with_file

PUBLICATION = Publication(
    repo_id="quantized/Tiny-awq", sha="ab" * 20, tag="t", url="http://x", private=False, new=True, duration_s=1.5
)
FAILED = job_result(
    job(), stage="quantize", status=Status.FAILED, error=QuantizationError("layer 3: «NaN»", hint="h")
)
CARD = Card(files=(published_file("README.md"),))
RECORDS = [job(), weights(), quantized(), report(), report(kl_p99=math.inf), CARD, PUBLICATION, FAILED]


@pytest.fixture
def jobdir(tmp_path: Path) -> JobDir:
    return JobDir(tmp_path / "work" / job().job_id)


# --- records ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: type(record).__name__)
def test_every_record_comes_back_as_it_was_stored(jobdir: JobDir, record: object) -> None:
    jobdir.store(record)
    assert jobdir.load(type(record)) == record


def test_a_record_holds_for_the_inputs_it_was_made_from_and_no_others(jobdir: JobDir) -> None:
    jobdir.store(report(), inputs=["a", 1])
    assert jobdir.load(Report, inputs=["a", 1]) == report()
    assert jobdir.load(Report, inputs=["a", 2]) is None
    assert jobdir.load(Report) == report()


@pytest.mark.parametrize("name", ["", "source", "quantized", "card/assets", ".lock", "layers/0.safetensors"])
def test_a_link_in_a_job_s_folder_is_refused_before_anything_is_written(
    jobdir: JobDir, tmp_path: Path, name: str
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "mine").write_text("mine")
    link = jobdir.path / name
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to(elsewhere)
    context = JobContext(
        hub=Hub("http://127.0.0.1:9"), work=jobdir.path.parent, files=tmp_path, progress=no_progress
    )
    ended = run_job(context, job(), dry_run=True)
    assert (ended.message, ended.exit_code) == (f"{link}: is a symbolic link", 8)
    with pytest.raises(EnvironmentProblem, match="is a symbolic link"):  # as the command of each stage does
        jobdir.job  # noqa: B018 - reading it is what is tried
    assert [path.name for path in elsewhere.iterdir()] == ["mine"]


def test_the_folder_of_all_jobs_may_be_a_link(tmp_path: Path) -> None:
    (tmp_path / "volume").mkdir()
    (tmp_path / "work").symlink_to("volume")
    linked = JobDir(tmp_path / "work" / job().job_id)
    with linked.locked():
        linked.store(job())
    assert linked.job == job()
    assert (tmp_path / "volume" / job().job_id / "job.json").is_file()


@pytest.mark.parametrize(
    "content",
    [
        *(b"", b"{", b"\xff\xfe\x00", b"null", b"[]", b'"text"', b"{}", b'{"record": null}'),
        b'{"inputs": "x", "record": {"perplexity_source": "many"}}',
        b'{"inputs": "x", "record": {"perplexity_source": 1.0}}',  # of a version without the other fields
    ],
)
def test_a_damaged_record_counts_as_missing(jobdir: JobDir, content: bytes) -> None:
    jobdir.path.mkdir(parents=True)
    (jobdir.path / "report.json").write_bytes(content)
    assert jobdir.load(Report) is None


def test_a_folder_without_a_job_and_a_file_in_its_place_are_named(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("text")
    jobdir = JobDir(tmp_path / "README.md")
    for folder in (tmp_path, jobdir.path):
        with pytest.raises(WatchlistError, match=r"no job\.json") as caught:
            _ = JobDir(folder).job
        assert "--work" in caught.value.hint
    with pytest.raises(EnvironmentProblem, match="cannot be written"):
        jobdir.store(job())
    with pytest.raises(EnvironmentProblem, match="cannot be written"), jobdir.locked():
        pass


def test_a_folder_that_cannot_be_synced_still_takes_records(
    jobdir: JobDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    sync = os.fsync

    def of_files_only(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "Invalid argument")
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", of_files_only)
    jobdir.store(job())
    assert jobdir.load(Job) == job()


def test_a_record_that_cannot_be_read_is_an_error_unlike_a_missing_one(jobdir: JobDir) -> None:
    (jobdir.path / "report.json").mkdir(parents=True)
    with pytest.raises(EnvironmentProblem, match=r"report\.json: cannot be read"):
        jobdir.load(Report)


# --- writing ------------------------------------------------------------------------------------------------


def test_a_write_that_fails_or_is_interrupted_leaves_the_old_record_alone(
    jobdir: JobDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobdir.store(report())

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    def interrupted(path: Path, other: Path) -> None:
        assert path.parent == other.parent
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(EnvironmentProblem, match="No space left on device") as caught:
            jobdir.store(report(kl_mean=9.0))
        assert "space" in caught.value.hint
    with monkeypatch.context() as patched:
        patched.setattr(Path, "replace", interrupted)
        with pytest.raises(KeyboardInterrupt):
            jobdir.store(report(kl_mean=9.0))
    assert jobdir.load(Report) == report()
    assert [path.name for path in jobdir.path.iterdir()] == ["report.json"]
    assert (jobdir.path / "report.json").stat().st_mode & 0o777 == 0o644


KILLED_WRITER = """
import os, signal, sys
from pathlib import Path
from bot.files import write_atomic
os.fsync = lambda descriptor: os.kill(os.getpid(), signal.SIGKILL)
write_atomic(Path(sys.argv[1]), b"half")
"""


def test_a_killed_writer_leaves_the_old_record_whole(jobdir: JobDir) -> None:
    jobdir.store(report())
    command = [sys.executable, "-c", KILLED_WRITER, str(jobdir.path / "report.json")]
    assert subprocess.run(command, check=False, timeout=200).returncode == -9
    assert jobdir.load(Report) == report()


# --- the lock -----------------------------------------------------------------------------------------------

HOLDER = """
import sys
from pathlib import Path
from bot.jobs.folder import JobDir
with JobDir(Path(sys.argv[1])).locked():
    print("held", flush=True)
    sys.stdin.read()
"""


def holder(jobdir: JobDir) -> subprocess.Popen[str]:
    """A process that works on the folder until its stdin ends."""
    command = [sys.executable, "-c", HOLDER, str(jobdir.path)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


@pytest.mark.parametrize("ending", ["done", "killed"])
def test_a_second_process_waits_until_the_first_is_done(jobdir: JobDir, ending: str) -> None:
    with holder(jobdir) as first:
        assert first.stdout is not None
        assert first.stdin is not None
        assert first.stdout.readline() == "held\n"
        with holder(jobdir) as second:
            with pytest.raises(subprocess.TimeoutExpired):
                second.wait(timeout=0.7)
            if ending == "done":
                first.stdin.close()
            else:
                first.kill()
            assert second.communicate(input="", timeout=200)[0] == "held\n"
            assert second.returncode == 0


# --- space --------------------------------------------------------------------------------------------------


def test_clearing_frees_the_space_and_keeps_the_results(jobdir: JobDir) -> None:
    for record in RECORDS:
        jobdir.store(record)
    jobdir.used_text.write_bytes(b"x")
    large = (jobdir.source, jobdir.calibration, jobdir.layers, jobdir.quantized, jobdir.card, jobdir.hf_home)
    for folder in large:
        folder.mkdir()
        (folder / "large").write_bytes(b"x")
    jobdir.clear()
    jobdir.clear()  # what is missing can be forgotten
    kept = {"card", "card.json", "job.json", "publication.json", "report.json", "result.json"}
    assert {path.name for path in jobdir.path.iterdir()} == kept


# --- inputs -------------------------------------------------------------------------------------------------


def stored(jobdir: JobDir, record: object, before: object, after: object) -> bool:
    """Whether a record made from `before` still holds for `after`."""
    jobdir.store(record, inputs=before)
    return jobdir.load(type(record), inputs=after) is not None


@pytest.mark.parametrize(
    ("changed", "holds"),
    [
        (job(reason="another reason"), True),
        (job(entry(priority=5)), True),
        (job(entry(recipe=Recipe(group_size=64))), True),
        (job(entry(), upstream(sha="ff" * 20)), False),
        (job(entry(), with_file(upstream(), "config.json", "v2")), False),
        (job(entry(), with_file(upstream(), "LICENSE", "v2")), False),
        (job(weight_files=("a.safetensors",)), False),
    ],
)
def test_pull_is_repeated_when_the_files_change(jobdir: JobDir, changed: Job, holds: bool) -> None:
    assert stored(jobdir, weights(), pull_inputs(job()), pull_inputs(changed)) == holds


@pytest.mark.parametrize(
    ("asked", "pulled", "holds"),
    [
        (entry(priority=5, private=True), weights(), True),
        (entry(), weights(duration_s=1.0), True),
        (entry(recipe=Recipe(group_size=64)), weights(), False),
        (entry(calibration=Calibration(samples=32, seq_len=256)), weights(), False),
        (entry(trust_remote_code=True), weights(), False),
        (entry(), weights(files=(published_file("model.safetensors", 7),)), False),
    ],
)
def test_quantize_is_repeated_when_recipe_or_source_change(
    jobdir: JobDir, asked: Any, pulled: Weights, holds: bool
) -> None:
    before = quantize_inputs(job(), weights())
    assert stored(jobdir, quantized(), before, quantize_inputs(job(asked), pulled)) == holds


def test_a_model_is_measured_again_and_not_quantized_again_when_the_text_changes() -> None:
    one, other = job(), job(entry(evaluation=Evaluation(tokens=8192)))
    assert evaluate_inputs(one, quantized()) != evaluate_inputs(other, quantized())
    assert quantize_inputs(one, weights()) == quantize_inputs(other, weights())
    moved = job(entry(evaluation=Evaluation(sources=(TextSource(file="a.txt", sha256="0" * 64),))))
    assert pull_inputs(one) == pull_inputs(other) != pull_inputs(moved)


def test_later_stages_are_repeated_when_the_artifact_changes(jobdir: JobDir) -> None:
    other = quantized(files=(published_file("model.safetensors", 7),))
    before = evaluate_inputs(job(), quantized())
    assert stored(jobdir, report(), before, evaluate_inputs(job(), quantized(duration_s=1.0)))
    assert not stored(jobdir, report(), before, evaluate_inputs(job(), other))
    before = card_inputs(job(), quantized(), report())
    assert stored(jobdir, CARD, before, card_inputs(job(), quantized(), report()))
    for changed in (
        (job(), other, report()),
        (job(), quantized(), report(kl_mean=0.5)),
        (job(tag="another"), quantized(), report()),
    ):
        assert not stored(jobdir, CARD, before, card_inputs(*changed))


def test_records_are_valid_for_the_tool_versions_that_made_them(monkeypatch: pytest.MonkeyPatch) -> None:
    installed = tool_versions()
    assert {"torch", "transformers", "autoawq"} <= set(installed)
    before = quantize_inputs(job(), weights()), evaluate_inputs(job(), quantized())
    monkeypatch.setattr("bot.jobs.folder.tool_versions", lambda: installed | {"torch": "0.0.1"})
    assert quantize_inputs(job(), weights()) != before[0]
    assert evaluate_inputs(job(), quantized()) != before[1]
