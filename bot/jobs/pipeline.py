"""What there is to do, and one job from its decision to its publication: the only room that knows the order."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from bot.calibration.sources import split_files
from bot.errors import BotError, QualityGateError, UpstreamError, WatchlistError
from bot.hub import client
from bot.hub.access import check_may_publish, exchange
from bot.hub.pull import Pinned, pull_files
from bot.hub.session import Hub
from bot.hub.settings import PreparedTarget, check_token, create_target, with_visibility
from bot.jobs import stages
from bot.jobs.folder import JobDir
from bot.jobs.handover import accepted, edited_files
from bot.jobs.stages import JobContext
from bot.records import DatasetListing, Job, JobKind, Plan, Publication, Report, Skip, WatchEntry, no_progress
from bot.watch import release
from bot.watch.plan import make_plan
from bot.watch.refusals import dataset_refusal, license_refusal, refuse


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How one job ended: published, or the error."""

    job: Job
    publication: Publication | None = None
    report: Report | None = None
    error: BotError | None = None
    duration_s: float = 0.0


# --- watch --------------------------------------------------------------------------------------------------


def plan(hub: Hub, entries: Sequence[WatchEntry], *, by_identity: bool = False) -> Plan:
    """What there is to do, from a listing per repo; only what is new is looked into.

    by_identity: a workflow's identity publishes, which creates no targets.
    """
    awake = [entry for entry in entries if not entry.hold]
    sources = client.upstream(hub, awake)
    targets = with_visibility(hub, awake, sources, client.published(hub, awake))
    looks = [
        release.triage(entry, source, target, must_exist=by_identity)
        for entry, source, target in zip(awake, sources, targets, strict=True)
    ]
    candidates = [item for item in looks if isinstance(item, release.Candidate)]
    details = client.details(hub, [item.upstream for item in candidates])
    decided = [release.decide(item, detail) for item, detail in zip(candidates, details, strict=True)]
    settled = [item for item in looks if not isinstance(item, release.Candidate)]
    held = [release.on_hold(entry) for entry in entries if entry.hold]
    return make_plan([*settled, *_with_datasets(hub, decided), *held])


def _with_datasets(hub: Hub, decided: Sequence[Job | Skip]) -> list[Job | Skip]:
    """The release jobs whose calibration data sets can be read, and a refusal in place of each of the others."""
    jobs = [item for item in decided if isinstance(item, Job)]
    found = client.datasets(hub, [source for job in jobs for source in job.entry.calibration.sources])
    listings = {(listing.repo_id, listing.revision): listing for listing in found}
    return [_dataset_refusal(item, listings) or item if isinstance(item, Job) else item for item in decided]


def _dataset_refusal(job: Job, listings: Mapping[tuple[str, str], DatasetListing]) -> Skip | None:
    for source in job.entry.calibration.sources:
        listing = listings.get((source.dataset or "", source.revision or ""))
        if listing is None:
            continue
        try:
            split = split_files(listing.paths, source.split)
        except WatchlistError as error:  # it is in several folders
            reason = f"calibration data set {source.label}: {error.message}"
            return refuse(job.entry, reason, UpstreamError, error.hint)
        if refusal := dataset_refusal(job.entry, source, listing, split):
            return refusal
    return None


def create_targets(hub: Hub, entries: Sequence[WatchEntry]) -> tuple[PreparedTarget, ...]:
    """Make targets ready for a workflow's identity, and open those whose release is complete.

    One after another; one that is refused does not stop the others.
    """
    check_token(hub)
    prepared = []
    for entry, source in zip(entries, client.upstream(hub, entries), strict=True):
        refusal = license_refusal(entry, source)
        blocked = source.problem or (refusal.reason if refusal else "")
        prepared.append(create_target(hub, entry, source, blocked=blocked))
    return tuple(prepared)


# --- one job, from decision to publication ------------------------------------------------------------------


def run_job(context: JobContext, job: Job, *, dry_run: bool = False) -> Outcome:
    """All stages of one job; dry_run: all but publishing.

    Errors that a person can act on are part of the outcome; others are raised.
    """
    jobdir = JobDir(context.work / job.job_id)
    return _outcome(job, jobdir, lambda: _run_stages(context, jobdir, job, dry_run=dry_run))


def prepare_job(context: JobContext, job: Job) -> Outcome:
    """All but publishing, and nothing left in the job's folder that publishing does not need.

    The outcome has a publication when somebody has published it already.
    """
    outcome = run_job(context, job, dry_run=True)
    if outcome.error is None:
        JobDir(context.work / job.job_id).clear_inputs()
    return outcome


def publish_job(context: JobContext, job: Job, folder: Path, *, originals: Path) -> Outcome:
    """Publish what another machine prepared in `folder`, where it is just what the plan's job asks for.

    originals: as `pull_originals` put them there when the plan was made.
    """
    return _outcome(job, JobDir(folder), lambda: _publish_accepted(context, job, folder, originals))


def _publish_accepted(context: JobContext, job: Job, folder: Path, originals: Path) -> Publication:
    exchange(context.hub, job.entry.target)
    return stages.publish(context, accepted(job, folder, originals))


def pull_originals(hub: Hub, job: Job, folder: Path) -> None:
    """Upstream's files that are published with our edits, so that whoever publishes can make the edits again."""
    upstream = Pinned(job.entry.repo_id, job.upstream.sha)
    pull_files(hub, upstream, edited_files(job), folder, no_progress)


def _outcome(job: Job, jobdir: JobDir, work: Callable[[], Publication | None]) -> Outcome:
    started = time.monotonic()
    try:
        with jobdir.locked():
            publication = work()
    except BotError as error:
        # What missed the gate is worth a look at its figures.
        report = jobdir.load(Report) if isinstance(error, QualityGateError) else None
        return Outcome(job=job, error=error, report=report, duration_s=time.monotonic() - started)
    report = jobdir.load(Report)
    return Outcome(job=job, publication=publication, report=report, duration_s=time.monotonic() - started)


def _run_stages(context: JobContext, jobdir: JobDir, job: Job, *, dry_run: bool) -> Publication | None:
    if not dry_run:
        check_may_publish(context.hub, job.entry.target)
    if jobdir.load(Job) != job:
        jobdir.store(job)
    publication = stages.already_published(context.hub, job)
    if publication is None and job.kind is JobKind.RELEASE:
        if not stages.is_measured(jobdir):
            stages.pull(context, jobdir)
        stages.quantize(context, jobdir)
        stages.evaluate(context, jobdir)
        stages.card(jobdir)
    if publication is None and job.kind is JobKind.REFRESH:
        stages.pull(context, jobdir)
        stages.refresh(context, jobdir)
    if publication is None and not dry_run:
        publication = stages.publish(context, jobdir)
    if publication is not None:
        jobdir.store(publication)
        jobdir.clear()
    return publication
