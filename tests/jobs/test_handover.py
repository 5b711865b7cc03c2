"""Artifacts that are complete and match their own records, but are not what the plan asks for."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bot.checkpoint.config import artifact_config
from bot.errors import PublishError
from bot.files import describe_file
from bot.jobs import stages
from bot.jobs.folder import JobDir
from bot.jobs.handover import checked_artifact
from bot.records import Card, Job
from tests.support import factories

PICTURE = "assets/error-by-layer.png"
CONFIG = json.dumps(factories.CONFIG)
# What an artifact takes over as upstream has it.
CARRIED = {"LICENSE": "MIT", "generation_config.json": "{}", "tokenizer.json": "{}", "tokenizer_config.json": "{}"}

Make = Callable[..., JobDir]


@pytest.fixture
def job() -> Job:
    contents = CARRIED | {"config.json": CONFIG, "model.safetensors": "bf16"}
    files = tuple(factories.hub_file(path, content) for path, content in sorted(contents.items()))
    return factories.job(None, factories.upstream(files=files))


@pytest.fixture
def originals(tmp_path: Path) -> Path:
    """Upstream's files that are published with our edits, as the plan's own machine pulled them."""
    folder = tmp_path / "originals"
    folder.mkdir()
    (folder / "config.json").write_text(CONFIG)
    (folder / "tokenizer_config.json").write_text(CARRIED["tokenizer_config.json"])
    return folder


@pytest.fixture
def make(job: Job, tmp_path: Path) -> Make:
    """The artifact of a runner. calibration: how it differs from the plan."""

    def made(**calibration: Any) -> JobDir:
        jobdir = JobDir(tmp_path / job.job_id)
        (jobdir.card / "assets").mkdir(parents=True)
        (jobdir.card / PICTURE).write_bytes(b"\x89PNG")
        jobdir.quantized.mkdir()
        for path, content in CARRIED.items():
            (jobdir.quantized / path).write_text(content)
        config = artifact_config(CONFIG.encode(), recipe=job.entry.recipe, artifact_dtype="float16")
        (jobdir.quantized / "config.json").write_bytes(config)
        (jobdir.quantized / "model.safetensors").write_bytes(b"int4")
        jobdir.store(job)
        there = sorted(path.name for path in jobdir.quantized.iterdir())
        jobdir.store(
            factories.quantized(
                files=tuple(describe_file(jobdir.quantized, path) for path in there),
                calibration=factories.calibration_set(**calibration),
            )
        )
        jobdir.store(factories.report(pictures=(PICTURE,)))
        stages.card(jobdir)
        return jobdir

    return made


def test_the_planned_artifact_is_accepted(job: Job, make: Make, originals: Path) -> None:
    jobdir = make()
    assert checked_artifact(job, jobdir.path, originals).path == jobdir.path


@pytest.mark.parametrize(
    "calibration", [{"samples": 15}, {"seq_len": 128}, {"seed": 1}], ids=["samples", "length", "seed"]
)
def test_another_calibration_than_planned_is_refused(
    job: Job, make: Make, originals: Path, calibration: dict[str, int]
) -> None:
    jobdir = make(**calibration)
    with pytest.raises(PublishError, match="its calibration is not the planned one"):
        checked_artifact(job, jobdir.path, originals)


@pytest.mark.parametrize("path", ["README.md", "config.json", "provenance.json"])
def test_a_required_file_is_missed_even_if_no_record_names_it(
    job: Job, make: Make, originals: Path, path: str
) -> None:
    jobdir = make()
    made = jobdir.load(Card)
    assert made is not None
    folder = next(one for one in (jobdir.card, jobdir.quantized) if (one / path).exists())
    (folder / path).unlink()
    jobdir.store(Card(files=tuple(file for file in made.files if file.path != path)))
    with pytest.raises(PublishError, match=f"'{path}' is missing"):
        checked_artifact(job, jobdir.path, originals)
