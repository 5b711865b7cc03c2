"""What someone on the GPU runner could do to the folder that it uploads: change files, and records with them."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from bot.card.model_card import render_card
from bot.card.provenance import make_provenance
from bot.files import describe_file
from bot.jobs.folder import JobDir
from bot.jobs.handover import TOOL, has_chat_template
from bot.records import Card, QuantizedModel, Report, WorkflowRun, to_json


def replace_file(folder: Path, path: str, content: bytes) -> None:
    """Write a file of the artifact and update the record that lists its hash."""
    jobdir = JobDir(folder)
    card, target = jobdir.load(Card), jobdir.quantized / path
    assert card is not None
    target.write_bytes(content)
    files = {file.path: file for file in card.files} | {path: describe_file(jobdir.quantized, path)}
    jobdir.store(Card(files=tuple(sorted(files.values(), key=lambda file: file.path))))


def change_report(folder: Path, **fields: Any) -> JobDir:
    jobdir = JobDir(folder)
    report = jobdir.load(Report)
    assert report is not None
    jobdir.store(replace(report, **fields))
    return jobdir


def render_card_again(jobdir: JobDir, run: WorkflowRun | None = None) -> Path:
    """Card and provenance from what the records say now. run: that they claim to be built in."""
    report, quantized, card = jobdir.load(Report), jobdir.load(QuantizedModel), jobdir.load(Card)
    assert report is not None
    assert quantized is not None
    assert card is not None
    kept = tuple(file for file in card.files if file.path not in ("README.md", "provenance.json"))
    job = jobdir.job
    describe = partial(make_provenance, job, quantized, report, tool=TOOL, run=run)
    provenance = describe(files=kept)
    (jobdir.card / "README.md").write_text(render_card(job, provenance, chat=has_chat_template(jobdir.quantized)))
    provenance = describe(files=(*kept, describe_file(jobdir.card, "README.md")))
    (jobdir.card / "provenance.json").write_text(to_json(provenance))
    jobdir.store(Card(files=(*provenance.files, describe_file(jobdir.card, "provenance.json"))))
    return jobdir.path
