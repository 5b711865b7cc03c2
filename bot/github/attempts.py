"""Failed attempts: what is left out of a plan because of them, and until when. The caller passes the time."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta

from bot.github.matrix import MATRIX_LIMIT
from bot.records import Attempts, Job, JobKind, JobResult, ModelState, Plan, PlanTimes, RunningJob, Skip, Status
from bot.watch.release import UP_TO_DATE, make_plan

# After the first, second and third failure. After the fourth a person has to look.
DELAYS = (timedelta(hours=1), timedelta(hours=6), timedelta(hours=24))
MAX_ATTEMPTS = len(DELAYS) + 1
_CLOCKS_DIFFER = timedelta(minutes=10)  # those of two runners

# Jobs started when earlier failures are not known: enough to go on, too few to waste many GPU hours.
CAP_WITHOUT_ATTEMPTS = 4

_REFUSAL = "refused:"  # how the issue about a refusal was named before there was a dashboard
# Reasons in a plan that pass without a person: an upload in progress, or a Hub that is busy or down.
_PASSES = re.compile(
    r"^upload incomplete|\banswers 5\d\d\b|\bthe Hub( at \S+)? (limits|cannot be reached|refuses the connection)"
)


def after_failure(before: Attempts | None, *, target: str, content: str, now: datetime, run: str = "") -> Attempts:
    """The attempts after one more failure.

    before: as in the target's issue; it counts if it is about the same content. run: the run that failed; it is
    counted once, however often its report is repeated.
    """
    issue = before.issue if before is not None else None
    same = before if before is not None and before.content == content else None
    if same is not None and run and same.run == run:
        return same
    count = (same.count if same is not None else 0) + 1
    waits = count >= MAX_ATTEMPTS
    return Attempts(
        target=target,
        content=content,
        count=count,
        next_try=None if waits else iso(now + DELAYS[count - 1]),
        waits_for_person=waits,
        issue=issue,
        run=run,
    )


def apply_retry_limits(
    plan: Plan,
    *,
    attempts: Sequence[Attempts] | None,
    running: Sequence[RunningJob] = (),
    now: datetime,
    force: bool = False,
    max_releases: int = MATRIX_LIMIT,
) -> Plan:
    """The plan without jobs that must wait, each with its reason.

    attempts: None if earlier failures are not known; then only a few jobs are started. force: retry failures now,
    but not targets of other runs. max_releases: in progress at once, including those of other runs.
    """
    busy = busy_targets(running)
    known = {item.target: item for item in attempts or ()}
    decisions: list[Job | Skip] = []
    for job in (*plan.jobs, *plan.deferred):
        wait = _busy(job, busy) or (None if force else wait_for_attempt(job, known.get(job.entry.target), now))
        decisions.append(wait or job)
    in_progress = busy_targets([item for item in running if item.stage != "refresh"])
    without_gpu = sum(isinstance(item, Job) and item.kind is not JobKind.RELEASE for item in decisions)
    # Releases come last in a plan, so a cap on all jobs caps them.
    job_limit = without_gpu + max(0, max_releases - len(in_progress))
    cap = CAP_WITHOUT_ATTEMPTS if attempts is None else MATRIX_LIMIT
    limited = make_plan(decisions, max_jobs=min(cap, job_limit))
    skipped = (*limited.skipped, *plan.skipped)
    return replace(plan, jobs=limited.jobs, deferred=limited.deferred, skipped=skipped)


def after_results(
    plan: Plan, results: Sequence[JobResult], attempts: Sequence[Attempts], *, now: datetime
) -> Plan:
    """The plan when its jobs have ended. results: one for each of its jobs, in the same order."""
    known = {item.target: item for item in attempts}
    ended = (
        _ended(job, result, known.get(job.entry.target), now)
        for job, result in zip(plan.jobs, results, strict=True)
    )
    return replace(plan, jobs=(), skipped=(*plan.skipped, *ended))


def _ended(job: Job, result: JobResult, tried: Attempts | None, now: datetime) -> Skip:
    if result.status in (Status.PUBLISHED, Status.UNCHANGED):
        return Skip(entry=job.entry, reason=UP_TO_DATE)
    if result.status is Status.FAILED:
        wait = wait_for_attempt(job, tried, now)
        return wait or Skip(entry=job.entry, reason=f"failed: {result.message}", hint=result.hint, blocked=True)
    return Skip(entry=job.entry, reason=result.message or result.status.value, hint=result.hint, blocked=True)


def state_of(skip: Skip) -> ModelState:
    """Where a model without a job stands."""
    if skip.reason == UP_TO_DATE:
        return ModelState.PUBLISHED
    if skip.entry.hold is not None:
        return ModelState.HELD
    return ModelState.REFUSED if needs_person(skip) else ModelState.WAITING


def needs_person(skip: Skip) -> bool:
    """Whether the reason of a refusal does not pass by itself."""
    return skip.exit_code != 0 and not _PASSES.search(skip.reason)


def all_refused(plan: Plan) -> bool:
    """Whether there are models and every one of them was refused."""
    return (
        bool(plan.skipped) and not plan.jobs and not plan.deferred and all(item.exit_code for item in plan.skipped)
    )


def closing_comment(about: str, plan: Plan, *, full_watchlist: bool) -> str:
    """The comment that closes the issue of this name; empty if it stays open.

    full_watchlist: the plan is of the full watchlist, not of some of its models.
    """
    target = about.removeprefix(_REFUSAL)
    skip = next((item for item in plan.skipped if item.entry.target == target), None)
    if "/" not in target:
        return ""  # about the watch workflow or the watchlist
    if skip is None and all(job.entry.target != target for job in (*plan.jobs, *plan.deferred)):
        return "It is no longer on the watchlist." if full_watchlist else ""
    if skip is not None and skip.entry.hold:
        return "It is on hold."
    if about != target:
        return "What is refused is on the dashboard."
    return "It is published." if skip is not None and skip.reason == UP_TO_DATE else ""


def busy_targets(jobs: Sequence[RunningJob]) -> frozenset[str]:
    """Targets that runs in progress still work on: a job runs or waits, or a quantized model is not yet published.

    A run's publish jobs appear only when the jobs before them are done.
    """
    started = {job.target for job in jobs if job.status != "completed"}
    quantized = {job.target for job in jobs if job.stage == "quantize" and job.conclusion == "success"}
    ended = {job.target for job in jobs if job.stage == "publish" and job.status == "completed"}
    return frozenset(started | (quantized - ended))


def overdue(times: PlanTimes, *, now: datetime, limit: timedelta) -> str | None:
    """What is wrong if the last successful plan is older than `limit`; None if all is well or nothing ever ran."""
    if times.last_success is not None:
        return _since(times.last_success, now) if now - times.last_success > limit else None
    if times.oldest_run is not None and now - times.oldest_run > limit:
        return f"no plan since at least {format_utc(iso(times.oldest_run))}"
    return None


def _since(time: datetime, now: datetime) -> str:
    hours = (now - time) / timedelta(hours=1)
    return f"the last successful plan was made {format_utc(iso(time))}, {hours:.0f} hours ago"


def _busy(job: Job, busy: frozenset[str]) -> Skip | None:
    if job.entry.target not in busy:
        return None
    hint = "It is checked again after that run has ended."
    return Skip(entry=job.entry, reason="another run is working on it", hint=hint, blocked=True)


def wait_for_attempt(job: Job, tried: Attempts | None, now: datetime) -> Skip | None:
    """Why a job that failed before is not tried now; None if it may be."""
    if tried is None or tried.content != job.attempt_digest:
        return None
    if tried.waits_for_person:
        reason = f"failed {tried.count} times, no more automatic retries"
        return Skip(entry=job.entry, reason=reason, hint="Close the issue to retry.", blocked=True)
    if tried.next_try is not None and _is_ahead(datetime.fromisoformat(tried.next_try), now):
        reason = f"failed {_times(tried.count)}, next attempt not before {format_utc(tried.next_try)}"
        return Skip(entry=job.entry, reason=reason, hint="Close the issue to retry now.", blocked=True)
    return None


def _is_ahead(next_try: datetime, now: datetime) -> bool:
    """No wait is longer than the longest delay: if it seems so, a machine's clock was wrong, then or now."""
    return now < next_try <= now + DELAYS[-1] + _CLOCKS_DIFFER


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count} times"


def iso(time: datetime) -> str:
    return time.astimezone(UTC).replace(microsecond=0).isoformat().replace("+00:00", "Z")


def format_utc(time: str) -> str:
    """`2026-11-22 04:30 UTC`."""
    return f"{datetime.fromisoformat(time).astimezone(UTC):%Y-%m-%d %H:%M} UTC"
