"""Plan the watchlist, and run one job: the order of its stages."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

from bot.calibration.sources import split_files
from bot.checkpoint.config_values import check_values
from bot.errors import (
    BotError,
    EnvironmentProblem,
    QualityGateError,
    UnsupportedModelError,
    UpstreamError,
    WatchlistError,
)
from bot.hub.access import check_may_publish, exchange
from bot.hub.client import now
from bot.hub.listings import read_authors
from bot.hub.publish import make_public_note
from bot.hub.pull import Pinned, pull_files
from bot.hub.session import Hub
from bot.hub.settings import PreparedTarget, check_token, create_target
from bot.hub.signatures import check_may_sign
from bot.hub.sources import read_change_times, read_datasets, read_details, read_sources
from bot.hub.unchanged import look_at_sources
from bot.jobs import stages
from bot.jobs.folder import JobDir
from bot.jobs.handover import check_job_dir, edited_files
from bot.jobs.machine import name_needed_space
from bot.jobs.stages import JobContext
from bot.jobs.trial import layers_of_model
from bot.jobs.watched import list_authors, triage_all
from bot.records import (
    AuthorListing,
    DatasetListing,
    Details,
    DiscoverRule,
    Discovery,
    Job,
    JobKind,
    JobResult,
    Plan,
    Publication,
    Report,
    Skip,
    Status,
    WatchEntry,
    Watchlist,
    job_result,
    no_progress,
)
from bot.watch import release
from bot.watch.discovery import authors_to_list, discover
from bot.watch.licenses import license_refusal
from bot.watch.refusals import dataset_name, dataset_refusal, own_code, refuse
from bot.watch.release import make_plan
from bot.watch.settling import may_be_too_young, settling_skip, weight_paths

# --- watch --------------------------------------------------------------------------------------------------


def plan(
    hub: Hub,
    entries: Sequence[WatchEntry],
    rules: Sequence[DiscoverRule] = (),
    *,
    only: str | None = None,
    trusted_publishing: bool = False,
    memory: Path | None = None,
    fresh: bool = False,
) -> Plan:
    """Decide what to do for every entry, from one listing per repo; details are fetched only for new releases.

    rules: what they find is planned, too, or proposed. only: the one model that is looked for by them.
    trusted_publishing: publishing uses Trusted Publishers, which cannot create targets. memory: the file of what
    was up to date, so that what has not changed is not read again; fresh: read it again, and write the file.
    """
    active = [entry for entry in entries if not entry.hold]
    known, listings = list_authors(hub, active, rules, memory, fresh=fresh)
    looks = look_at_sources(hub, known, active)
    found = _discovered(rules, listings, entries, [look.repo_id for look in looks], only)
    looks += look_at_sources(hub, known, found.entries)
    triaged = _without_settling(hub, triage_all(hub, known, looks, memory, must_exist=trusted_publishing))
    candidates = [item for item in triaged if isinstance(item, release.Candidate)]
    read = read_details(hub, [item.upstream for item in candidates])
    details = [_with_layers(item.entry, detail) for item, detail in zip(candidates, read, strict=True)]
    decided = [release.decide(item, detail) for item, detail in zip(candidates, details, strict=True)]
    settled = [item for item in triaged if not isinstance(item, release.Candidate)]
    held = [release.hold_skip(entry) for entry in entries if entry.hold]
    planned = make_plan([*settled, *_refuse_unreadable_datasets(hub, decided), *held])
    return replace(
        planned,
        proposals=found.proposals,
        left_out=found.left_out,
        notes=found.notes,
        unlisted=found.unlisted,
        only=only,
    )


def with_found(hub: Hub, watchlist: Watchlist) -> tuple[WatchEntry, ...]:
    """The models of the watchlist, and those that its rules find to be published."""
    rules = [rule for rule in watchlist.rules if rule.mode == "publish"]
    sources = read_sources(hub, watchlist.entries) if rules else ()
    listings = read_authors(hub, authors_to_list(rules))
    names = [source.repo_id for source in sources]
    return (*watchlist.entries, *_discovered(rules, listings, watchlist.entries, names, None).entries)


def _discovered(
    rules: Sequence[DiscoverRule],
    listings: Sequence[AuthorListing],
    entries: Sequence[WatchEntry],
    names: Sequence[str],
    only: str | None,
) -> Discovery:
    """What the rules find: one listing per author. Raises WatchlistError where that is not the one model.

    names: what the Hub calls the sources of the entries.
    """
    found = discover(rules, listings, entries, names)
    if only is None or not rules:
        return found
    chosen = replace(
        found,
        entries=tuple(entry for entry in found.entries if entry.repo_id == only),
        proposals=tuple(item for item in found.proposals if item.repo.repo_id == only),
        left_out=tuple(item for item in found.left_out if item.repo_id == only),
    )
    if chosen.entries or chosen.proposals or found.unlisted:
        return chosen
    why = f": {chosen.left_out[0].reason}" if chosen.left_out else ""
    hint = "List it under `models`, or check its spelling."
    raise WatchlistError(f"{only} is not on the watchlist, and no rule finds it{why}", hint=hint)


def _without_settling(
    hub: Hub, triaged: Sequence[Skip | Job | release.Candidate]
) -> list[Skip | Job | release.Candidate]:
    """New releases whose weights are too young wait. One more API call for those that changed of late."""
    current = now()
    young = [item for item in triaged if isinstance(item, release.Candidate) and may_be_too_young(item, current)]
    asked = [(item.upstream, weight_paths(item.upstream)) for item in young]
    times = read_change_times(hub, [(upstream, paths) for upstream, paths in asked if paths])
    dated = iter(times)
    waiting = {
        id(item): settling_skip(item, next(dated), current)
        for item, (_, paths) in zip(young, asked, strict=True)
        if paths
    }
    return [waiting.get(id(item)) or item for item in triaged]


def _with_layers(entry: WatchEntry, details: Details) -> Details:
    """With what transformers makes of the model, where it is installed and can be asked: else headers decide."""
    installed = all(find_spec(name) is not None for name in ("torch", "transformers"))
    if not installed or details.problem or not details.tensors or own_code(entry, details.config):
        return details
    try:
        check_values(details.config, details.tensors)
    except UnsupportedModelError:  # the plan refuses it without starting a process
        return details
    try:
        return replace(details, layers=layers_of_model(details, entry.recipe))
    except EnvironmentProblem as error:
        warning = f"judged by its headers alone: {error.message}"
        return replace(details, warnings=(*details.warnings, warning))


def _refuse_unreadable_datasets(hub: Hub, decided: Sequence[Job | Skip]) -> list[Job | Skip]:
    """The jobs whose data sets can be read, and a refusal in place of each of the others."""
    jobs = [item for item in decided if isinstance(item, Job)]
    found = read_datasets(hub, [source for job in jobs for source in job.texts])
    listings = {(listing.repo_id, listing.revision): listing for listing in found}
    return [_dataset_refusal(item, listings) or item if isinstance(item, Job) else item for item in decided]


def _dataset_refusal(job: Job, listings: Mapping[tuple[str, str], DatasetListing]) -> Skip | None:
    for source in job.texts:
        listing = listings.get((source.dataset or "", source.revision or ""))
        if listing is None:
            continue
        try:
            split = split_files(listing.paths, source.split)
        except WatchlistError as error:  # it is in several folders
            reason = f"{dataset_name(job.entry, source)}: {error.message}"
            return refuse(job.entry, reason, UpstreamError, error.hint)
        if refusal := dataset_refusal(job.entry, source, listing, split):
            return refusal
    return None


def create_targets(hub: Hub, entries: Sequence[WatchEntry]) -> tuple[PreparedTarget, ...]:
    """Create targets for Trusted Publishers, and make public those whose release is complete.

    One after another; one that is refused does not stop the others.
    """
    check_token(hub)
    prepared = []
    for entry, source in zip(entries, read_sources(hub, entries), strict=True):
        refusal = license_refusal(entry, source)
        blocked = source.problem or (refusal.reason if refusal else "")
        prepared.append(create_target(hub, entry, source, blocked=blocked))
    return tuple(prepared)


# --- one job, from decision to publication ------------------------------------------------------------------


def run_job(context: JobContext, job: Job, *, reported_stage: str = "run", dry_run: bool = False) -> JobResult:
    """Run all stages of one job. dry_run: all but publishing. reported_stage: for the result.

    Errors that a person can act on are part of the result; others are raised.
    """
    jobdir = JobDir(context.work / job.job_id)
    return _run_locked(job, reported_stage, jobdir, lambda: _run_stages(context, jobdir, job, dry_run=dry_run))


def prepare_job(context: JobContext, job: Job) -> JobResult:
    """All but publishing. Only what publishing needs is left in the job's folder.

    The result has a publication when another run has published it since the plan was made.
    """
    result = run_job(context, job, reported_stage="quantize", dry_run=True)
    if result.error is None:
        JobDir(context.work / job.job_id).clear_inputs()
    return result


def publish_job(context: JobContext, job: Job, folder: Path, *, originals: Path) -> JobResult:
    """Publish what another machine prepared in `folder`, after checking it against the plan's job.

    originals: as `pull_originals` put them there when the plan was made.
    """
    return _run_locked(job, "publish", JobDir(folder), lambda: _publish_checked(context, job, folder, originals))


def _publish_checked(context: JobContext, job: Job, folder: Path, originals: Path) -> Publication:
    exchange(context.hub, job.entry.target)
    check_may_sign(context.hub, job.entry)
    return stages.publish(context, check_job_dir(job, folder, originals, context.hub.run))


def pull_originals(hub: Hub, job: Job, folder: Path) -> None:
    """Upstream's files that are published with our edits, so that the edits can be made again and compared."""
    upstream = Pinned(job.entry.repo_id, job.upstream.sha)
    pull_files(hub, upstream, edited_files(job), folder, no_progress)


def _run_locked(job: Job, stage: str, jobdir: JobDir, work: Callable[[], Publication | None]) -> JobResult:
    started = time.monotonic()
    try:
        with jobdir.locked():
            publication = work()
    except BotError as error:
        name_needed_space(error, job.estimate)
        # Keep the figures of a model that missed the gate.
        report = jobdir.load(Report) if isinstance(error, QualityGateError) else None
        took_s = time.monotonic() - started
        return job_result(job, stage=stage, status=Status.FAILED, error=error, report=report, duration_s=took_s)
    return job_result(
        job,
        stage=stage,
        status=_status(publication),
        hint=_notes(job, publication) if publication is not None else "",
        report=jobdir.load(Report),
        publication=publication,
        duration_s=time.monotonic() - started,
    )


def _notes(job: Job, publication: Publication) -> str:
    """What a person has to do, or should know, after a release that succeeded."""
    return "; ".join(note for note in (make_public_note(job, publication), *publication.notes) if note)


def _status(publication: Publication | None) -> Status:
    if publication is None:
        return Status.READY
    return Status.PUBLISHED if publication.new else Status.UNCHANGED


def _as_begun(job: Job, before: Job | None) -> Job:
    """With the date that calibration began with: upstream's may have changed where the pinned commit has not."""
    if before is None:
        return job
    return replace(job, upstream=replace(job.upstream, last_modified=before.upstream.last_modified))


def _run_stages(context: JobContext, jobdir: JobDir, job: Job, *, dry_run: bool) -> Publication | None:
    jobdir.refuse_links()
    if not dry_run:
        check_may_publish(context.hub, job.entry.target)
        check_may_sign(context.hub, job.entry)
    before = jobdir.load(Job)
    job = _as_begun(job, before)
    if before != job:
        jobdir.store(job)
    publication = stages.already_published(context.hub, job)
    if publication is None and job.kind is JobKind.RELEASE:
        if not stages.is_evaluated(jobdir):
            stages.pull(context, jobdir)
        stages.quantize(context, jobdir)
        stages.evaluate(context, jobdir)
        stages.serve(context, jobdir)
        stages.card(jobdir, context.hub.run)
    if publication is None and job.kind is JobKind.REFRESH:
        stages.pull(context, jobdir)
        stages.refresh(context, jobdir)
    if publication is None and not dry_run:
        publication = stages.publish(context, jobdir)
    if publication is not None:
        jobdir.store(publication)
        jobdir.clear()
    return publication
