"""pull -> quantize -> evaluate -> (serve) -> card -> publish: one plain function per stage of a job.

Each reads the record of the stage before it, writes its own, and is skipped while its own record is valid.
"""

from __future__ import annotations

import hashlib
import shutil
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import TypeVar

from bot.calibration.sources import local_path, split_files
from bot.card.model_card import render_card
from bot.card.provenance import make_provenance, refreshed, with_file
from bot.checkpoint.repo_files import CARD, PROVENANCE, carry_small_files
from bot.errors import PublishError, QualityGateError, UpstreamError, WatchlistError
from bot.evaluate.gate import judge
from bot.files import describe_file, disk_errors, write_atomic
from bot.hub import publish as hub_publish
from bot.hub.collections import add_to_collections
from bot.hub.pull import Pinned, dataset_files, pull_files, pull_source
from bot.hub.session import Hub
from bot.hub.settings import stays_private
from bot.hub.sources import read_details
from bot.hub.targets import check_not_superseded, has_release_of, read_target
from bot.jobs.folder import (
    JobDir,
    card_inputs,
    evaluate_inputs,
    pull_inputs,
    quantize_inputs,
)
from bot.jobs.handover import TOOL, has_chat_template
from bot.jobs.isolation import require
from bot.jobs.lint import check_before_publishing
from bot.jobs.machine import time_limit_s
from bot.jobs.serving import Serving, check_engines, install_engines, serve_with
from bot.jobs.trial import try_files
from bot.jobs.worker import run_child
from bot.records import (
    Card,
    Job,
    JobKind,
    Progress,
    Provenance,
    Publication,
    PublishedFile,
    QuantizedModel,
    Reference,
    Report,
    Served,
    TextSource,
    Weights,
    WorkflowRun,
    to_json,
)
from bot.watch.stock_tasks import lm_eval_version

Record = TypeVar("Record")


@dataclass(frozen=True, slots=True, kw_only=True)
class JobContext:
    """What a job needs to run.

    files: the folder that `file:` sources of the watchlist are relative to. require_isolation: start no child
    process that this machine cannot isolate.
    """

    hub: Hub
    work: Path
    files: Path
    progress: Progress
    child_options: tuple[str, ...] = ()
    require_isolation: bool = False


def already_published(hub: Hub, job: Job) -> Publication | None:
    """The publication of exactly this content, if another run made it after the plan.

    Raises PublishError when different content was published since then, which this job must not replace.
    """
    state = read_target(hub, job.entry)
    check_not_superseded(state, job)
    if not (has_release_of(state, job) and state.complete):
        return None
    return Publication(
        repo_id=job.entry.target,
        sha=state.head,
        tag=job.tag,
        url=f"{hub.endpoint}/{job.entry.target}",
        private=stays_private(job.entry, job.upstream),
        new=False,
        duration_s=0.0,
    )


def is_evaluated(jobdir: JobDir) -> bool:
    """Whether the stages that need the source are done; `prepare_job` deletes it then."""
    job = jobdir.job
    weights = jobdir.load(Weights, inputs=pull_inputs(job))
    quantized = jobdir.load(QuantizedModel, inputs=quantize_inputs(job, weights)) if weights else None
    return quantized is not None and _measured(jobdir, quantized) is not None


def _measured(jobdir: JobDir, quantized: QuantizedModel) -> Report | None:
    """The valid report, with what serving needs if there is something to serve yet."""
    job, inputs = jobdir.job, evaluate_inputs(jobdir.job, quantized)
    report = jobdir.load(Report, inputs=inputs)
    if (
        report is None
        or not job.engines
        or is_served(job, report)
        or jobdir.load(Reference, inputs=inputs) is not None
    ):
        return report
    return None


def is_served(job: Job, report: Report) -> bool:
    """Whether it was loaded in each engine that the entry asks for, and in no other."""
    return [(served.engine, served.version) for served in report.served] == [
        (engine.name, engine.version) for engine in job.engines
    ]


def pull(context: JobContext, jobdir: JobDir) -> Weights:
    """The source at its pinned commit, and the pinned text to calibrate and measure on."""
    job = jobdir.job
    if context.require_isolation:
        require()  # before anything is downloaded
    if job.tasks:
        lm_eval_version()  # raises where it is not installed, before anything is downloaded
    check_engines(job.engines)
    install_engines(job.engines, context.progress)
    weights = jobdir.load(Weights, inputs=pull_inputs(job))
    if weights is None or not _is_pulled(jobdir, weights):
        for source in job.texts:
            _pull_text(context, source, jobdir.calibration)
        weights = pull_source(
            context.hub,
            job,
            jobdir.source,
            context.progress,
            before_weights=lambda: _try(context, jobdir),
        )
        jobdir.store(weights, inputs=pull_inputs(job))
    return weights


def _try(context: JobContext, jobdir: JobDir) -> None:
    """Try the small files and, for a release, the model that its headers show, in a child process.

    Pulling alone needs no transformers; quantizing and refreshing do.
    """
    job = jobdir.job
    if find_spec("transformers") is None:
        return
    tensors = None
    if job.kind is JobKind.RELEASE:
        [details] = read_details(context.hub, [job.upstream])
        if details.problem:
            raise UpstreamError(f"{job.entry.repo_id}: {details.problem}", hint="Plan again.")
        tensors = details.tensors
    try_files(jobdir, tensors, options=context.child_options, require_isolation=context.require_isolation)


def _is_pulled(jobdir: JobDir, weights: Weights) -> bool:
    """Compares names and sizes only: files may have been deleted to free space."""
    texts = [path for source in jobdir.job.texts if (path := local_path(source))]
    sizes = {jobdir.source / file.path: file.size_bytes for file in weights.files}
    return all((jobdir.calibration / path).exists() for path in texts) and all(
        path.is_file() and path.stat().st_size == size_bytes for path, size_bytes in sizes.items()
    )


def _pull_text(context: JobContext, source: TextSource, folder: Path) -> None:
    path = local_path(source)
    if path is None:
        return
    if source.dataset is not None:
        origin = Pinned(source.dataset, source.revision or "", "dataset")
        listed = dataset_files(context.hub, origin)
        wanted = split_files((file.path for file in listed), source.split)
        if not wanted:
            raise WatchlistError(
                f"data set {source.dataset}: no parquet or jsonl file of split {source.split!r}",
                hint="Look at the data set's files on the Hub and name the split as its files do.",
            )
        # lm-eval's tasks name a configuration, which the card's metadata leads to files.
        files = [file for file in listed if file.path in wanted or file.path == CARD]
        pull_files(context.hub, origin, files, folder / path, context.progress)
        return
    try:
        content = (context.files / str(source.file)).read_bytes()
    except OSError as error:
        hint = "Pass the watchlist that the job was planned with: --watchlist."
        raise WatchlistError(f"{source.file}: cannot be read: {error.strerror}", hint=hint) from None
    if hashlib.sha256(content).hexdigest() != source.sha256:
        raise WatchlistError(f"{source.file} was edited since the plan was made", hint="Plan again.")
    write_atomic(folder / path, content)


def quantize(context: JobContext, jobdir: JobDir) -> QuantizedModel:
    """Calibrate and quantize, in a child process."""
    job, weights = jobdir.job, _needed(jobdir, Weights, "pull")
    inputs = quantize_inputs(job, weights)
    if jobdir.load(QuantizedModel, inputs=inputs) is None:
        _run_child(context, "quantize", jobdir)
    return _needed(jobdir, QuantizedModel, "quantize")


def _run_child(context: JobContext, verb: str, jobdir: JobDir) -> None:
    run_child(
        verb,
        jobdir,
        limit_s=time_limit_s(jobdir.job.estimate),
        options=context.child_options,
        require_isolation=context.require_isolation,
    )


def evaluate(context: JobContext, jobdir: JobDir) -> Report:
    """Measure the loss in a child process, and check it against the entry's gate.

    Raises QualityGateError naming each figure that misses.
    """
    quantized = _needed(jobdir, QuantizedModel, "quantize")
    if _measured(jobdir, quantized) is None:
        _run_child(context, "evaluate", jobdir)
    report = _needed(jobdir, Report, "evaluate")
    verdict = judge(report, jobdir.job.entry.gate)
    if not verdict.passed:
        raise QualityGateError(
            f"{jobdir.job.entry.repo_id}: not published: {'; '.join(verdict.reasons)}",
            hint="Use more calibration samples or a smaller group_size, or loosen `gate` for this model.",
        )
    return report


def serve(context: JobContext, jobdir: JobDir) -> Report:
    """Load the artifact in the engines that the entry asks for; the report with how they compare.

    Raises QualityGateError when one cannot load it, or reads something else than the evaluation did.
    """
    job = jobdir.job
    quantized, report = _needed(jobdir, QuantizedModel, "quantize"), _needed(jobdir, Report, "evaluate")
    if is_served(job, report):
        return report
    report = replace(report, served=_served(context, jobdir, quantized) if job.engines else ())
    jobdir.store(report, inputs=evaluate_inputs(job, quantized))
    return report


def _served(context: JobContext, jobdir: JobDir, quantized: QuantizedModel) -> tuple[Served, ...]:
    job, reference = jobdir.job, _needed(jobdir, Reference, "evaluate")
    check_engines(job.engines)
    how = Serving(
        limit_s=time_limit_s(job.estimate),
        progress=context.progress,
        require_isolation=context.require_isolation,
    )
    return tuple(serve_with(engine, jobdir, quantized, reference, how) for engine in job.engines)


def card(jobdir: JobDir, run: WorkflowRun | None = None) -> Card:
    """README.md and provenance.json, beside the pictures from the evaluation. run: in which this is."""
    job = jobdir.job
    quantized, report = _needed(jobdir, QuantizedModel, "quantize"), _needed(jobdir, Report, "evaluate")
    inputs = card_inputs(job, quantized, report)
    record = jobdir.load(Card, inputs=inputs)
    if record is not None:
        return record
    pictures = [describe_file(jobdir.card, path) for path in report.pictures]
    record = _write_card(
        jobdir,
        make_provenance(
            job,
            quantized,
            report,
            tool=TOOL,
            files=(*quantized.files, *pictures),
            run=run,
        ),
    )
    jobdir.store(record, inputs=inputs)
    return record


def _write_card(jobdir: JobDir, provenance: Provenance) -> Card:
    """Write to card/: the card, then the provenance with its hash. The record lists all files to publish."""
    text = render_card(jobdir.job, provenance, chat=has_chat_template(jobdir.quantized))
    write_atomic(jobdir.card / CARD, text.encode())
    provenance = with_file(provenance, describe_file(jobdir.card, CARD))
    write_atomic(jobdir.card / PROVENANCE, to_json(provenance).encode())
    return Card(files=(*provenance.files, describe_file(jobdir.card, PROVENANCE)))


def refresh(context: JobContext, jobdir: JobDir) -> Card:
    """Upstream's new small files for the published weights, which `pull` has tried."""
    job = jobdir.job
    before = read_target(context.hub, job.entry).provenance
    if before is None or before.source.source_digest != job.digests.source:
        raise PublishError(f"{job.entry.target} changed since the plan was made", hint="Plan again.")
    _needed(jobdir, Weights, "pull")
    shutil.rmtree(jobdir.quantized, ignore_errors=True)
    with disk_errors(jobdir.quantized):
        jobdir.quantized.mkdir(parents=True)
    paths = carry_small_files(
        jobdir.source,
        jobdir.quantized,
        trust_remote_code=job.entry.trust_remote_code,
        planned=[file.path for file in job.refresh_files],
    )
    small = tuple(describe_file(jobdir.quantized, path) for path in paths)
    earlier = (file.path for file in before.source.refresh_files)
    replaced = {CARD, *earlier, *(file.path for file in small)}
    kept = [file for file in before.files if file.path not in replaced]
    record = _write_card(jobdir, refreshed(before, job, tool=TOOL, files=(*kept, *small)))
    jobdir.store(record)
    return record


def publish(context: JobContext, jobdir: JobDir) -> Publication:
    """Upload the artifact and its card; for a finish job, complete what is on the Hub.

    An already published job needs no folder; it was cleared after publishing.
    """
    job = jobdir.job
    if job.kind is not JobKind.FINISH and (published := already_published(context.hub, job)) is not None:
        return published
    if job.kind is JobKind.FINISH:
        publication = hub_publish.finish(context.hub, job, context.progress)
    else:
        artifact = artifact_of(jobdir)
        check_before_publishing(context.hub, job, jobdir, artifact.files)
        publication = hub_publish.publish(context.hub, job, artifact, context.progress)
    return replace(publication, notes=add_to_collections(context.hub, job, publication))


def to_be_published(jobdir: JobDir) -> tuple[PublishedFile, ...]:
    """The files that `publish` would upload; none when it is published and the job's folder was cleared."""
    published = jobdir.load(Publication) is not None and not jobdir.quantized.exists()
    return () if published else artifact_of(jobdir).files


def artifact_of(jobdir: JobDir) -> hub_publish.Artifact:
    """What will be published, every file checked against its record. Raises PublishError."""
    job, record = jobdir.job, _needed(jobdir, Card, "card")
    for file in record.files:
        folder = next((path for path in (jobdir.card, jobdir.quantized) if (path / file.path).is_file()), None)
        if folder is None and job.kind is JobKind.REFRESH:
            continue  # stays as it is on the Hub
        if folder is None or describe_file(folder, file.path) != file:
            raise PublishError(
                f"{jobdir.path}: {file.path} is not the file that was recorded",
                hint="Delete the job's folder and run it again.",
            )
    return hub_publish.Artifact(
        folders=(jobdir.quantized, jobdir.card),
        files=record.files,
        summary=f"AWQ INT4 of {job.entry.repo_id} at {job.upstream.sha[:8]}",
    )


def _needed(jobdir: JobDir, kind: type[Record], stage: str) -> Record:
    record = jobdir.load(kind)
    if record is None:
        raise WatchlistError(
            f"{jobdir.path}: `{stage}` has not run yet", hint=f"Run `awq-bot {stage} --job {jobdir.path}` first."
        )
    return record
