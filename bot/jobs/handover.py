"""Check an artifact built on another machine, before it is published.

Untrusted files were loaded where it was made. So target, source and recipe come from the plan, and everything in
the folder must follow from the plan and from its own records, byte for byte.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import bot
from bot.card.model_card import render_card
from bot.card.provenance import make_provenance
from bot.checkpoint import small_files
from bot.checkpoint.config import artifact_config
from bot.checkpoint.repo_files import (
    CARD,
    CHAT_TEMPLATE,
    CONFIG,
    EDITED,
    PROVENANCE,
    WEIGHT_INDEX,
    edited,
    is_carried,
    is_safe_path,
)
from bot.checkpoint.small_files import TEMPLATE_SETTINGS
from bot.checkpoint.weight_files import read_weight_headers
from bot.errors import PublishError, UpstreamError
from bot.evaluate.gate import judge
from bot.files import describe_file, found_as_listed
from bot.hub.provenance import ProvenanceError, read_provenance
from bot.jobs.folder import JobDir
from bot.jobs.listed import listing_problem
from bot.records import (
    Card,
    ExpertTokens,
    HubFile,
    Job,
    Provenance,
    PublishedFile,
    QuantizedModel,
    Report,
    WorkflowRun,
    to_json,
)
from bot.serve.comparison import beyond

Record = TypeVar("Record")

TOOL = f"awq-bot {bot.__version__}"

_FOLDERS = {"quantized", "card"}
_RECORDS = {"job.json", "weights.json", "quantized.json", "report.json", "card.json", ".lock"}
_SHARD = re.compile(r"model(-\d{5}-of-\d{5})?\.safetensors")
_PICTURE = re.compile(r"assets/[a-z0-9-]+\.png")
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Handover:
    """The folder and its own records. job: the plan's; run: the workflow run that publishes it."""

    job: Job
    jobdir: JobDir
    card: Card
    quantized: QuantizedModel
    report: Report
    run: WorkflowRun | None


def edited_files(job: Job) -> tuple[HubFile, ...]:
    """Upstream's files that an artifact has with our edits, and the files that the edits use."""
    named = (CONFIG, CHAT_TEMPLATE, *EDITED)
    return tuple(file for file in (*job.source_files, *job.refresh_files) if file.path in named)


def check_job_dir(job: Job, folder: Path, originals: Path, run: WorkflowRun | None = None) -> JobDir:
    """The folder of a release job, after checking that it is what the plan's `job` asks for.

    originals: a folder with upstream's `edited_files`. run: that publishes. Raises PublishError naming the first
    difference.
    """
    jobdir = JobDir(folder)
    on_disk = _files_on_disk(job, folder)
    if jobdir.load(Job) != job:
        raise _refused(job, "it was made for a different job than the plan's")
    handover = _Handover(
        job=job,
        jobdir=jobdir,
        card=_record(job, jobdir, Card),
        quantized=_record(job, jobdir, QuantizedModel),
        report=_record(job, jobdir, Report),
        run=run,
    )
    _check_files(handover, on_disk)
    _check_quoted(handover)
    _check_recipe(handover)
    _check_modules(handover)
    _check_origin(handover, originals)
    _check_texts(handover)
    _check_served(handover)
    verdict = judge(handover.report, job.entry.gate)
    if not verdict.passed:
        raise _refused(job, f"its own figures miss the gate: {'; '.join(verdict.reasons)}")
    return jobdir


def has_chat_template(folder: Path) -> bool:
    """Whether a model's folder has one."""
    paths = [path for name in (CHAT_TEMPLATE, *TEMPLATE_SETTINGS) if (path := folder / name).is_file()]
    return small_files.has_chat_template({path.name: path.read_bytes() for path in paths})


def _files_on_disk(job: Job, folder: Path) -> dict[str, Path]:
    """Every file below quantized/ and card/ by its path in the repo. Nothing else may be there, and no link."""
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
    """Files, without following any link."""
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


def _check_files(handover: _Handover, on_disk: dict[str, Path]) -> None:
    """Exactly the files that the record lists, each as it was recorded."""
    recorded = {file.path: file for file in handover.card.files}
    if off := sorted(recorded.keys() ^ on_disk.keys()):
        where = "is listed in card.json but missing" if off[0] in recorded else "is not listed in card.json"
        raise _refused(handover.job, f"{off[0]!r} {where}")
    for path, file in recorded.items():
        found = on_disk[path]
        if describe_file(found.parent, found.name) != replace(file, path=found.name):
            raise _refused(handover.job, f"{path!r} is not the file that was recorded")
    if absent := {PROVENANCE, CARD, CONFIG} - recorded.keys():
        raise _refused(handover.job, f"{min(absent)!r} is missing")
    if left_out := _carried(handover.job) - recorded.keys():
        raise _refused(handover.job, f"upstream's {min(left_out)!r} is missing")


def _carried(job: Job) -> set[str]:
    """The paths of upstream's files that the artifact must have."""
    trusted = job.entry.trust_remote_code
    sources = (
        file.path
        for file in job.source_files
        if is_carried(file.path, size_bytes=file.size_bytes, trust_remote_code=trusted)
    )
    return {*sources, *(file.path for file in job.refresh_files)}


def _check_quoted(handover: _Handover) -> None:
    """Text that the card quotes from the records unescaped, and that could therefore add content to it."""
    hashes = {"calibration": handover.quantized.calibration.sha256, "text": handover.report.text_sha256}
    for name, value in hashes.items():
        if not _SHA256.fullmatch(value):
            raise _refused(handover.job, f"the sha256 of its {name} is not a sha256")
    recorded = {file.path for file in handover.card.files}
    for path in handover.report.pictures:
        if not _PICTURE.fullmatch(path) or path not in recorded:
            raise _refused(handover.job, f"{path!r} is not one of its pictures")


def _check_recipe(handover: _Handover) -> None:
    """Recipe, calibration and the texts that were measured on as in the plan."""
    planned, used = handover.job.entry.calibration, handover.quantized.calibration
    if handover.quantized.recipe != handover.job.entry.recipe:
        raise _refused(handover.job, "its recipe is not the planned one")
    if (used.samples, used.seq_len, used.seed) != (planned.samples, planned.seq_len, planned.seed):
        raise _refused(handover.job, "its calibration is not the planned one")
    measured = tuple(source.label for source in handover.report.sources)
    if measured != tuple(source.evaluation_label for source in handover.job.entry.evaluation.sources):
        raise _refused(handover.job, "it was not measured on the planned text")
    tasks = dict.fromkeys(figures.task for figures in handover.report.tasks)
    if [*tasks] != [task.name for task in handover.job.tasks]:
        raise _refused(handover.job, "it was not measured on the planned tasks")


def _check_served(handover: _Handover) -> None:
    """By the planned engines, within the bounds."""
    planned = [(engine.name, engine.version) for engine in handover.job.engines]
    if [(served.engine, served.version) for served in handover.report.served] != planned:
        raise _refused(handover.job, "it was not loaded in the planned engines")
    for served in handover.report.served:
        if reasons := beyond(served, artifact_dtype=handover.quantized.artifact_dtype):
            raise _refused(handover.job, f"served with {served.engine} {served.version}: {'; '.join(reasons)}")


def _check_modules(handover: _Handover) -> None:
    """What config.json lists as not quantized, and what the report says about experts, against the weights."""
    try:
        tensors = read_weight_headers(handover.jobdir.quantized).tensors
    except UpstreamError as error:
        raise _refused(handover.job, f"its weights cannot be read: {error.message}") from None
    if problem := listing_problem(handover.quantized.modules_to_not_convert, tensors):
        raise _refused(handover.job, problem)
    experts = handover.report.experts
    if experts != handover.quantized.experts or not all(map(_is_count, experts)):
        raise _refused(handover.job, "its figures of experts do not follow from its records")


def _is_count(tokens: ExpertTokens) -> bool:
    """Whether the figures can be of the experts of one layer."""
    experts_fit = tokens.layer >= 0 and 0 <= tokens.unseen <= tokens.experts
    return experts_fit and 0 <= tokens.lowest <= tokens.median < float("inf")


def _check_origin(handover: _Handover, originals: Path) -> None:
    """Every file is weights, written by us, or upstream's as the plan lists it."""
    for file in handover.card.files:
        if not _has_known_origin(handover, file.path, originals):
            raise _refused(handover.job, f"{file.path!r} is not what upstream has")


def _has_known_origin(handover: _Handover, path: str, originals: Path) -> bool:
    in_card, in_model = handover.jobdir.card / path, handover.jobdir.quantized / path
    if path in (CARD, PROVENANCE):
        return in_card.is_file()  # rendered again and compared
    if path in handover.report.pictures:
        return in_card.is_file()
    if path == WEIGHT_INDEX or _SHARD.fullmatch(path):
        return in_model.is_file()
    if not in_model.is_file():
        return False
    if path == CONFIG or path in EDITED:
        return in_model.read_bytes() == _edited(handover, path, originals)
    listed = (file for file in _upstream_files(handover.job) if file.path == path)
    return any(found_as_listed(handover.jobdir.quantized, file) for file in listed)


def _upstream_files(job: Job) -> tuple[HubFile, ...]:
    return (*job.source_files, *job.refresh_files)


def _edited(handover: _Handover, path: str, originals: Path) -> bytes | None:
    """Upstream's file with our edit applied again; None where upstream has no such file."""
    trusted = handover.job.entry.trust_remote_code
    if not (originals / path).is_file():
        return None
    if path != CONFIG:
        return edited(originals, path, trust_remote_code=trusted)
    return artifact_config(
        (originals / path).read_bytes(),
        recipe=handover.job.entry.recipe,
        modules_to_not_convert=handover.quantized.modules_to_not_convert,
        artifact_dtype=handover.quantized.artifact_dtype,
        trust_remote_code=trusted,
    )


def _check_texts(handover: _Handover) -> None:
    """Provenance and card, rendered again from the plan's job and the records."""
    job, jobdir, files = handover.job, handover.jobdir, handover.card.files
    without_card = tuple(file for file in files if file.path not in (CARD, PROVENANCE))
    chat = has_chat_template(jobdir.quantized)
    run = _claimed_run(handover)
    text = render_card(job, _provenance(handover, without_card, run), chat=chat)
    if (jobdir.card / CARD).read_bytes() != text.encode():
        raise _refused(job, "its card does not follow from its records")
    provenance = _provenance(handover, tuple(file for file in files if file.path != PROVENANCE), run)
    if (jobdir.card / PROVENANCE).read_bytes() != to_json(provenance).encode():
        raise _refused(job, "its provenance does not follow from the plan and its records")


def _claimed_run(handover: _Handover) -> WorkflowRun | None:
    """In which it was built. Not always the one that publishes: a job goes on where it was stopped."""
    try:
        claimed = read_provenance((handover.jobdir.card / PROVENANCE).read_bytes()).built_by
    except ProvenanceError as error:
        raise _refused(handover.job, f"its provenance {error}") from None
    if claimed and handover.run and claimed.repository != handover.run.repository:
        raise _refused(handover.job, f"it claims to be built in {claimed.repository}")
    return claimed


def _provenance(handover: _Handover, files: tuple[PublishedFile, ...], run: WorkflowRun | None) -> Provenance:
    return make_provenance(handover.job, handover.quantized, handover.report, tool=TOOL, files=files, run=run)


def _refused(job: Job, what: str) -> PublishError:
    return PublishError(
        f"{job.entry.target}: the quantized artifact is rejected: {what}",
        hint="Nothing was published. Check the runner that made it, then run the workflow again.",
    )
