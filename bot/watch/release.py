"""Upstream and Published in, a decision with its reason out. Compares content, never commits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import partial

from bot.checkpoint.constants import QUANTIZER_VERSIONS
from bot.checkpoint.kv_cache import kv_cache
from bot.checkpoint.repo_files import code_left_out
from bot.checkpoint.small_files import template_warnings
from bot.errors import UnsupportedModelError
from bot.records import (
    Details,
    Digests,
    EarlierRelease,
    Estimate,
    HubFile,
    Job,
    JobKind,
    Plan,
    Provenance,
    Published,
    Recipe,
    Skip,
    TargetState,
    Upstream,
    WatchEntry,
)
from bot.text import one_line
from bot.watch.digests import (
    files_digest,
    job_id,
    recipe_digest,
    refresh_digest,
    refresh_files,
    source_files,
    tag_name,
)
from bot.watch.identity import rename_warnings, repo_refusal
from bot.watch.licenses import license_refusal, link_warnings
from bot.watch.refusals import (
    chosen_or_refusal,
    missing_target_refusal,
    refusal_of_names,
    refuse,
    seq_len_refusal,
    small_files_refusal,
    visibility_refusal,
    weights_refusal,
)
from bot.watch.sizing import (
    RUNNER_VRAM_GB,
    calibration_warnings,
    estimate,
    gpu_class,
    legal_tensor_parallel,
)
from bot.watch.texts import measurable

UP_TO_DATE = "up to date"
# Of models that rules found by themselves: a rule that finds more than was meant must not fill all runners.
MAX_FOUND_RELEASES = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A new release as the listing shows it. It becomes a job, or is refused, when its details have been read.

    existing_tags: the tags of the target, which never move. replaces, earlier: as in
    the job.
    """

    entry: WatchEntry
    upstream: Upstream
    reason: str
    quantizer_outdated: bool = False
    existing_tags: tuple[str, ...] = ()
    replaces: str | None = None
    earlier: tuple[EarlierRelease, ...] = ()


def triage(
    entry: WatchEntry, upstream: Upstream, published: Published, *, must_exist: bool = False
) -> Skip | Job | Candidate:
    """What the two listings show: nothing to do, a job without a GPU, or a new release.

    must_exist: the publisher cannot create the target.
    """
    if refusal := repo_refusal(entry, upstream, published):
        return refusal
    found = _compare(entry, upstream, published)
    if isinstance(found, Skip):
        return found
    # Every kind of job publishes, so the licence must allow that now.
    if refusal := license_refusal(entry, upstream):
        return refusal
    return missing_target_refusal(entry) if must_exist and published.state is TargetState.ABSENT else found


def _compare(entry: WatchEntry, upstream: Upstream, published: Published) -> Skip | Job | Candidate:
    existing_tags = tuple(tag.name for tag in published.tags)
    provenance = published.provenance
    if provenance is None:
        return Candidate(entry=entry, upstream=upstream, reason="first release", existing_tags=existing_tags)
    new_release = partial(
        Candidate,
        entry=entry,
        upstream=upstream,
        existing_tags=existing_tags,
        replaces=provenance.tag,
        earlier=provenance.releases,
    )
    change = _change(entry, upstream, provenance)
    if change is not None:
        return new_release(reason=change)
    current = QUANTIZER_VERSIONS[entry.recipe.method]
    if entry.requantize == "outdated" and provenance.quantizer < current:
        reason = f"made by quantizer {provenance.quantizer}, now {current} (requantize: outdated)"
        return new_release(reason=reason, quantizer_outdated=True)
    if provenance.tag not in existing_tags:
        return _finish_job(entry, upstream, provenance)
    is_renamed = provenance.source.repo_id.lower() != upstream.repo_id.lower()
    if is_renamed or provenance.source.refresh_digest != refresh_digest(upstream):
        return refusal_of_names(entry, refresh_files(upstream)) or _refresh_job(
            entry, upstream, provenance, existing_tags=existing_tags
        )
    if refusal := visibility_refusal(entry, upstream, published):
        return refusal
    if not published.complete:
        reason = f"main of {entry.target} was changed by hand after {provenance.tag}"
        hint = "The release stands under its tag. Revert that commit to have main match it."
        return Skip(entry=entry, reason=reason, hint=hint, blocked=True)
    return up_to_date(entry)


def up_to_date(entry: WatchEntry) -> Skip:
    return Skip(entry=entry, reason=UP_TO_DATE)


def hold_skip(entry: WatchEntry) -> Skip:
    return Skip(entry=entry, reason=f"on hold: {entry.hold}", blocked=True)


def decide(candidate: Candidate, details: Details) -> Skip | Job:
    """A release job, or the reason why there is none. Decided before any download."""
    entry, upstream = candidate.entry, candidate.upstream
    if refusal := weights_refusal(entry, upstream, details):
        return refusal
    chosen = chosen_or_refusal(entry, details)
    if isinstance(chosen, Skip):
        return chosen
    sources = source_files(entry, upstream, details.weight_files)
    small_files = refresh_files(upstream)
    refusal = refusal_of_names(entry, (*sources, *small_files)) or small_files_refusal(entry, details)
    if refusal := refusal or seq_len_refusal(entry, details):
        return refusal
    measured = measurable(entry, details)
    if isinstance(measured, Skip):
        return measured
    entry = measured
    download_bytes = sum(file.size_bytes for file in (*sources, *small_files))
    needs = estimate(details, chosen, entry, download_bytes=download_bytes)
    if gpu_class(needs) is None:
        return _too_large(entry, needs)
    quantizer = QUANTIZER_VERSIONS[entry.recipe.method] if candidate.quantizer_outdated else None
    digests = Digests(
        source=files_digest(sources),
        refresh=refresh_digest(upstream),
        recipe=recipe_digest(entry, quantizer=quantizer),
    )
    return Job(
        job_id=job_id(entry, upstream, digests),
        kind=JobKind.RELEASE,
        reason=candidate.reason,
        entry=entry,
        upstream=upstream,
        digests=digests,
        tag=tag_name(upstream, digests, existing_tags=candidate.existing_tags),
        source_files=sources,
        refresh_files=small_files,
        weight_files=details.weight_files,
        estimate=needs,
        tensor_parallel=legal_tensor_parallel(details.config, chosen.packed, entry.recipe),
        kv_cache=kv_cache(details.config, details.tensors),
        warnings=(
            *details.warnings,
            *template_warnings(details.small_files),
            *calibration_warnings(details.config, chosen, entry.calibration),
            *rename_warnings(entry, upstream),
            *link_warnings(upstream),
            *_code_warnings(entry, upstream),
        ),
        replaces=candidate.replaces,
        earlier=candidate.earlier,
    )


def _code_warnings(entry: WatchEntry, upstream: Upstream) -> tuple[str, ...]:
    left_out = code_left_out(upstream.files, trust_remote_code=entry.trust_remote_code)
    if not left_out:
        return ()
    more = f" and {len(left_out) - 3} more" if len(left_out) > 3 else ""
    names = one_line(", ".join(left_out[:3])) + more
    return (f"its Python files are not carried, and no `auto_map` will refer to them ({names})",)


def _too_large(entry: WatchEntry, needs: Estimate) -> Skip:
    size, largest = needs.vram_bytes / 1e9, RUNNER_VRAM_GB[-1]
    reason = f"too large for any runner: needs about {size:.0f} GB of GPU memory, the largest has {largest}"
    lower = "Lower calibration.samples or seq_len, or take `method: awq+gptq`."
    hint = lower if entry.recipe.method == "awq" else "Put it on `hold:` to silence this."
    return refuse(entry, reason, UnsupportedModelError, hint)


# --- what changed --------------------------------------------------------------------------------------------


def _change(entry: WatchEntry, upstream: Upstream, provenance: Provenance) -> str | None:
    """Why the published artifact is no longer what the entry asks for, or None."""
    recorded = provenance.source.source_files
    weights = tuple(file.path for file in recorded if file.path.endswith(".safetensors"))
    now = source_files(entry, upstream, weights)
    if files_digest(now) != provenance.source.source_digest:
        return f"upstream changed: {_difference(recorded, now)}"
    asked = (recipe_digest(entry), recipe_digest(entry, quantizer=provenance.quantizer))
    if provenance.recipe_digest not in asked:
        return f"the watchlist asks for another {_asked_difference(entry.recipe, provenance.recipe)}"
    return None


def _asked_difference(now: Recipe, before: Recipe) -> str:
    names = [item.name for item in fields(Recipe) if getattr(now, item.name) != getattr(before, item.name)]
    return f"recipe: {', '.join(names)}" if names else "calibration"


def _difference(before: tuple[HubFile, ...], after: tuple[HubFile, ...]) -> str:
    """Up to three names of the files that were added, removed or changed."""
    old = {file.path: file.content_hash for file in before}
    new = {file.path: file.content_hash for file in after}
    names = sorted(path for path in old.keys() | new.keys() if old.get(path) != new.get(path))
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more


# --- jobs without a GPU: the published weights stay -----------------------------------------------------------


def _finish_job(entry: WatchEntry, upstream: Upstream, provenance: Provenance) -> Job:
    """Completes what is on the target's main, even where upstream has changed since."""
    source = provenance.source
    digests = Digests(source=source.source_digest, refresh=source.refresh_digest, recipe=provenance.recipe_digest)
    return Job(
        job_id=f"{job_id(entry, upstream, digests)}-{JobKind.FINISH.value}",
        kind=JobKind.FINISH,
        reason="publication was cut short: no tag",
        entry=entry,
        upstream=upstream,
        digests=digests,
        tag=provenance.tag,
        source_files=source.source_files,
        refresh_files=source.refresh_files,
        replaces=provenance.tag,
    )


def _refresh_job(
    entry: WatchEntry, upstream: Upstream, provenance: Provenance, *, existing_tags: tuple[str, ...]
) -> Job:
    small_files = refresh_files(upstream)
    digests = Digests(
        source=provenance.source.source_digest,
        refresh=refresh_digest(upstream),
        recipe=provenance.recipe_digest,
    )
    return Job(
        job_id=f"{job_id(entry, upstream, digests)}-{JobKind.REFRESH.value}",
        kind=JobKind.REFRESH,
        reason=_refresh_reason(upstream, provenance, digests, small_files),
        entry=entry,
        upstream=upstream,
        digests=digests,
        tag=tag_name(upstream, digests, existing_tags=existing_tags),
        source_files=provenance.source.source_files,
        refresh_files=small_files,
        warnings=(*rename_warnings(entry, upstream), *link_warnings(upstream)),
        replaces=provenance.tag,
        earlier=provenance.releases,
    )


def _refresh_reason(
    upstream: Upstream, provenance: Provenance, digests: Digests, small_files: tuple[HubFile, ...]
) -> str:
    if provenance.source.refresh_digest == digests.refresh:
        return f"{provenance.source.repo_id} is now {upstream.repo_id}"
    names = _difference(provenance.source.refresh_files, small_files)
    return f"small files changed upstream: {names}" if names else _METADATA_CHANGED


_METADATA_CHANGED = "licence, gating or successor changed upstream"
# What is nearly done comes first: it costs no GPU and leaves nothing half-published.
_ORDER = {JobKind.FINISH: 0, JobKind.REFRESH: 1, JobKind.RELEASE: 2}


def make_plan(decisions: Sequence[Job | Skip], *, max_jobs: int | None = None) -> Plan:
    """Finish, then refresh, then releases by priority; the smaller first among equals.

    max_jobs: the rest is deferred to the next run. No limit if None, but that for what rules found.
    """
    jobs = sorted((item for item in decisions if isinstance(item, Job)), key=_urgency)
    skipped = tuple(item for item in decisions if isinstance(item, Skip))
    found = [job for job in jobs if job.entry.found and job.kind is JobKind.RELEASE]
    later = {job.job_id for job in found[MAX_FOUND_RELEASES:]}
    now = [job for job in jobs if job.job_id not in later]
    cap = len(now) if max_jobs is None else max(0, max_jobs)
    deferred = (*now[cap:], *(job for job in jobs if job.job_id in later))
    return Plan(jobs=tuple(now[:cap]), skipped=skipped, deferred=deferred)


def _urgency(job: Job) -> tuple[int, int, int, int]:
    download_bytes = job.estimate.download_bytes if job.estimate else 0
    return _ORDER[job.kind], -job.entry.priority, download_bytes, job.entry.line
