"""What one machine made and another publishes, checked against the plan: strangers' code ran where it was made.

Nothing in the folder says where it goes or what it was made of: that is the plan's job. What the folder says of
itself must follow from the plan and from its own records, byte for byte.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import bot
from bot.card.model_card import render_card
from bot.card.provenance import make_provenance
from bot.checkpoint.config import artifact_config, with_chat_template
from bot.checkpoint.repo_files import (
    CARD,
    CHAT_TEMPLATE,
    CONFIG,
    PROVENANCE,
    TOKENIZER_CONFIG,
    WEIGHT_INDEX,
    is_code,
    is_companion,
    is_safe_path,
    is_vocabulary,
)
from bot.errors import PublishError
from bot.evaluate.gate import judge
from bot.files import describe_file, found_as_listed
from bot.jobs.folder import JobDir
from bot.records import Card, HubFile, Job, Provenance, PublishedFile, QuantizedModel, Report, to_json
from bot.watch.release import QUANTIZER_VERSION

Record = TypeVar("Record")

TOOL = f"awq-bot {bot.__version__}"

_FOLDERS = {"quantized", "card"}
_RECORDS = {"job.json", "weights.json", "quantized.json", "report.json", "card.json", ".lock"}
_SHARD = re.compile(r"model(-\d{5}-of-\d{5})?\.safetensors")
_PICTURE = re.compile(r"assets/[a-z0-9-]+\.png")
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Handed:
    """The folder and what it says of itself; job: the plan's."""

    job: Job
    jobdir: JobDir
    made: Card
    quantized: QuantizedModel
    report: Report


def edited_files(job: Job) -> tuple[HubFile, ...]:
    """Upstream's files that an artifact holds with our edits, and what these are made from."""
    named = (CONFIG, TOKENIZER_CONFIG, CHAT_TEMPLATE)
    return tuple(file for file in (*job.source_files, *job.refresh_files) if file.path in named)


def accepted(job: Job, folder: Path, originals: Path) -> JobDir:
    """The folder of a release job that may be published as `job`, the plan's.

    originals: a folder with upstream's `edited_files`. Raises PublishError with what is off.
    """
    jobdir = JobDir(folder)
    on_disk = _files_on_disk(job, folder)
    if jobdir.load(Job) != job:
        raise _refused(job, "it was made for another job than the plan's")
    handed = _Handed(
        job=job,
        jobdir=jobdir,
        made=_record(job, jobdir, Card),
        quantized=_record(job, jobdir, QuantizedModel),
        report=_record(job, jobdir, Report),
    )
    _check_files(handed, on_disk)
    _check_words(handed)
    _check_asked(handed)
    _check_origin(handed, originals)
    _check_texts(handed)
    verdict = judge(handed.report, job.entry.gate)
    if not verdict.passed:
        raise _refused(job, f"its own figures miss the gate: {'; '.join(verdict.reasons)}")
    return jobdir


def has_chat_template(folder: Path) -> bool:
    """Whether a model's folder carries one, in either of its two places."""
    if (folder / CHAT_TEMPLATE).is_file():
        return True
    path = folder / TOKENIZER_CONFIG
    return path.is_file() and bool(json.loads(path.read_bytes()).get("chat_template"))


def _files_on_disk(job: Job, folder: Path) -> dict[str, Path]:
    """Every file below quantized/ and card/ by the path it will have. Nothing else may be there, and no link."""
    found: dict[str, Path] = {}
    for path in _walk(job, folder):
        parts = path.relative_to(folder).parts
        if len(parts) == 1 and parts[0] in _RECORDS:
            continue
        name = "/".join(parts[1:])
        if parts[0] not in _FOLDERS or not is_safe_path(name) or name in found:
            raise _refused(job, f"{'/'.join(parts)!r} does not belong there")
        found[name] = path
    return found


def _walk(job: Job, folder: Path) -> Iterator[Path]:
    """Files, without ever following a link."""
    for path in sorted(folder.iterdir()):
        if path.is_symlink() or not (path.is_dir() or path.is_file()):
            raise _refused(job, f"{path.name!r} is neither a file nor a folder")
        if path.is_dir():
            yield from _walk(job, path)
        else:
            yield path


def _record(job: Job, jobdir: JobDir, kind: type[Record]) -> Record:
    record = jobdir.load(kind)
    if record is None:
        raise _refused(job, f"its record {kind.__name__} is missing or damaged")
    return record


def _check_files(handed: _Handed, on_disk: dict[str, Path]) -> None:
    """Just the files that the record names, each as it was recorded."""
    recorded = {file.path: file for file in handed.made.files}
    if off := sorted(recorded.keys() ^ on_disk.keys()):
        where = "recorded and not there" if off[0] in recorded else "there and not recorded"
        raise _refused(handed.job, f"{off[0]!r} is {where}")
    for path, file in recorded.items():
        there = on_disk[path]
        if describe_file(there.parent, there.name) != replace(file, path=there.name):
            raise _refused(handed.job, f"{path!r} is not the file that was recorded")
    if absent := {PROVENANCE, CARD, CONFIG} - recorded.keys():
        raise _refused(handed.job, f"{min(absent)!r} is missing")
    if left_out := _carried(handed.job) - recorded.keys():
        raise _refused(handed.job, f"upstream's {min(left_out)!r} is missing")


def _carried(job: Job) -> set[str]:
    """Upstream's files that every artifact takes over: vocabulary, templates, licence; code if it is trusted."""
    paths = {file.path for file in _upstream_files(job)}
    code = {path for path in paths if is_code(path)} if job.entry.trust_remote_code else set[str]()
    return code | {path for path in paths if is_vocabulary(path) or is_companion(path)}


def _check_words(handed: _Handed) -> None:
    """What the card quotes of the records as it stands, and what could hence be a page of its own."""
    hashes = {"calibration": handed.quantized.calibration.sha256, "text": handed.report.text_sha256}
    for name, said in hashes.items():
        if not _SHA256.fullmatch(said):
            raise _refused(handed.job, f"the sha256 of its {name} is none")
    recorded = {file.path for file in handed.made.files}
    for path in handed.report.pictures:
        if not _PICTURE.fullmatch(path) or path not in recorded:
            raise _refused(handed.job, f"{path!r} is no picture that it holds")


def _check_asked(handed: _Handed) -> None:
    """Recipe and calibration as the watchlist asks for them."""
    asked, used = handed.job.entry.calibration, handed.quantized.calibration
    if handed.quantized.recipe != handed.job.entry.recipe:
        raise _refused(handed.job, "its recipe is not the one that was asked for")
    if (used.samples, used.seq_len, used.seed) != (asked.samples, asked.seq_len, asked.seed):
        raise _refused(handed.job, "its calibration is not the one that was asked for")


def _check_origin(handed: _Handed, originals: Path) -> None:
    """Every file is weights, ours, or upstream's own as the plan lists it."""
    for file in handed.made.files:
        if not _is_where_it_comes_from(handed, file.path, originals):
            raise _refused(handed.job, f"{file.path!r} is not what upstream has")


def _is_where_it_comes_from(handed: _Handed, path: str, originals: Path) -> bool:
    in_card, in_model = handed.jobdir.card / path, handed.jobdir.quantized / path
    if path in (CARD, PROVENANCE):
        return in_card.is_file()  # made again and compared
    if path in handed.report.pictures:
        return in_card.is_file()
    if path == WEIGHT_INDEX or _SHARD.fullmatch(path):
        return in_model.is_file()
    if not in_model.is_file():
        return False
    if path in (CONFIG, TOKENIZER_CONFIG):
        return in_model.read_bytes() == _edited(handed, path, originals)
    listed = (file for file in _upstream_files(handed.job) if file.path == path)
    return any(found_as_listed(handed.jobdir.quantized, file) for file in listed)


def _upstream_files(job: Job) -> tuple[HubFile, ...]:
    return (*job.source_files, *job.refresh_files)


def _edited(handed: _Handed, path: str, originals: Path) -> bytes | None:
    """What our own edit makes of upstream's file; None where upstream has none."""
    original, template = originals / path, originals / CHAT_TEMPLATE
    if not original.is_file():
        return None
    content = original.read_bytes()
    if path == CONFIG:
        dtype = handed.quantized.artifact_dtype
        return artifact_config(content, recipe=handed.job.entry.recipe, artifact_dtype=dtype)
    return with_chat_template(content, template.read_bytes(), where=path) if template.is_file() else content


def _check_texts(handed: _Handed) -> None:
    """Provenance and card, made again here from the plan's job and the records."""
    job, jobdir, files = handed.job, handed.jobdir, handed.made.files
    without_card = tuple(file for file in files if file.path not in (CARD, PROVENANCE))
    chat = has_chat_template(jobdir.quantized)
    text = render_card(job, _provenance(handed, without_card), chat=chat)
    if (jobdir.card / CARD).read_bytes() != text.encode():
        raise _refused(job, "its card does not follow from its records")
    provenance = _provenance(handed, tuple(file for file in files if file.path != PROVENANCE))
    if (jobdir.card / PROVENANCE).read_bytes() != to_json(provenance).encode():
        raise _refused(job, "its provenance does not follow from the plan and its records")


def _provenance(handed: _Handed, files: tuple[PublishedFile, ...]) -> Provenance:
    return make_provenance(
        handed.job, handed.quantized, handed.report, tool=TOOL, quantizer=QUANTIZER_VERSION, files=files
    )


def _refused(job: Job, what: str) -> PublishError:
    return PublishError(
        f"{job.entry.target}: the handed-over artifact is refused: {what}",
        hint="Nothing was published. Look at the runner that made it; run the workflow again to make it anew.",
    )
