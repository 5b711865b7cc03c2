"""provenance.json: what was made, from which files, with which tools."""

from __future__ import annotations

from dataclasses import replace

from bot.checkpoint.constants import QUANTIZER_VERSIONS
from bot.records import (
    CARD_VERSION,
    Job,
    Provenance,
    PublishedFile,
    QuantizedModel,
    Report,
    SourceProvenance,
    WorkflowRun,
)


def make_provenance(
    job: Job,
    quantized: QuantizedModel,
    report: Report,
    *,
    tool: str,
    files: tuple[PublishedFile, ...],
    run: WorkflowRun | None = None,
) -> Provenance:
    """files: all files of the repo except provenance.json itself. run: in which it is built."""
    return Provenance(
        tool=tool,
        quantizer=QUANTIZER_VERSIONS[quantized.recipe.method],
        tag=job.tag,
        source=source_provenance(job),
        recipe_digest=job.digests.recipe,
        recipe=quantized.recipe,
        calibration_asked=job.entry.calibration,
        calibration=quantized.calibration,
        evaluation_asked=job.entry.evaluation,
        tasks_asked=job.tasks,
        # Two equal jobs give equal bytes, so durations are left out. Of tokens and predictions, one is enough.
        report=replace(report, duration_s=0.0, predictions=0),
        artifact_dtype=quantized.artifact_dtype,
        tensor_parallel=job.tensor_parallel,
        device=quantized.device,
        versions=quantized.versions,
        files=tuple(sorted(files, key=lambda file: file.path)),
        modules_to_not_convert=quantized.modules_to_not_convert,
        built_by=run,
        kv_cache=job.kv_cache,
        earlier=job.earlier,
        card=CARD_VERSION,
    )


def refreshed(before: Provenance, job: Job, *, tool: str, files: tuple[PublishedFile, ...]) -> Provenance:
    """The same weights with newer small files: what was measured does not change."""
    return replace(
        before,
        tool=tool,
        tag=job.tag,
        source=source_provenance(job),
        files=tuple(sorted(files, key=lambda file: file.path)),
        log=None,
        published_by=None,
        earlier=job.earlier,
        card=CARD_VERSION,
    )


def with_file(provenance: Provenance, file: PublishedFile) -> Provenance:
    """The provenance with the card added, which is rendered from the rest of it."""
    files = sorted((*provenance.files, file), key=lambda file: file.path)
    return replace(provenance, files=tuple(files))


def source_provenance(job: Job) -> SourceProvenance:
    return SourceProvenance(
        repo_id=job.upstream.repo_id,
        revision=job.entry.revision,
        sha=job.upstream.sha,
        gated=job.upstream.gated,
        source_files=job.source_files,
        refresh_files=job.refresh_files,
        source_digest=job.digests.source,
        refresh_digest=job.digests.refresh,
    )
