"""What was tried in vain, and when it is tried again. The clock is the caller's."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta

from bot.github.matrix import MATRIX_LIMIT
from bot.records import Attempts, Job, JobKind, Plan, PlanTimes, RunningJob, Skip, sha256_of
from bot.watch.plan import make_plan
from bot.watch.release import UP_TO_DATE

# After the first, the second and the third failure. What failed four times fails again: a person has to look.
DELAYS = (timedelta(hours=1), timedelta(hours=6), timedelta(hours=24))
MOST_ATTEMPTS = len(DELAYS) + 1

# Jobs of a run that does not know what failed before: enough to go on, too few to burn a pool of GPUs.
CAP_WITHOUT_ATTEMPTS = 4

_REFUSAL = "refused:"
# As plans say it: somebody is uploading, or the Hub is busy or out of order.
_PASSES = re.compile(r"^upload incomplete|\banswers 5\d\d\b|\bthe Hub( at \S+)? (limits|cannot be reached)")


def tried_content(job: Job) -> str:
    """What an attempt counts for: the digests, and the gate, so that a new one of either starts anew."""
    return sha256_of([job.digests.content, job.entry.gate])


def after_failure(before: Attempts | None, *, target: str, content: str, now: datetime, run: str = "") -> Attempts:
    """before: what the target's issue said; it counts when it is about the same content.

    run: the run that failed; the same run counts once, however often its report is made.
    """
    issue = before.issue if before is not None else None
    same = before if before is not None and before.content == content else None
    if same is not None and run and same.run == run:
        return same
    count = (same.count if same is not None else 0) + 1
    waits = count >= MOST_ATTEMPTS
    return Attempts(
        target=target,
        content=content,
        count=count,
        next_try=None if waits else iso(now + DELAYS[count - 1]),
        waits_for_person=waits,
        issue=issue,
        run=run,
    )


def hold_back(
    plan: Plan,
    *,
    attempts: Sequence[Attempts] | None,
    running: Sequence[RunningJob] = (),
    now: datetime,
    force: bool = False,
    most_releases: int = MATRIX_LIMIT,
) -> Plan:
    """The plan without what must wait, each with its reason.

    attempts: None when nobody could say what was tried; then only a few jobs are done. force: whatever failed
    before is tried now; what is being worked on elsewhere is left alone all the same. most_releases: at once,
    those of other runs among them.
    """
    busy = busy_targets(running)
    known = {item.target: item for item in attempts or ()}
    decisions: list[Job | Skip] = []
    for job in (*plan.jobs, *plan.deferred):
        wait = _busy(job, busy) or (None if force else _wait(job, known.get(job.entry.target), now))
        decisions.append(wait or job)
    elsewhere = busy_targets([item for item in running if item.stage != "refresh"])
    without_gpu = sum(isinstance(item, Job) and item.kind is not JobKind.RELEASE for item in decisions)
    # Releases come last in a plan, so a cap on all jobs caps them.
    for_gpus = without_gpu + max(0, most_releases - len(elsewhere))
    cap = CAP_WITHOUT_ATTEMPTS if attempts is None else MATRIX_LIMIT
    made = make_plan(decisions, max_jobs=min(cap, for_gpus))
    return replace(made, skipped=(*made.skipped, *plan.skipped))


def refusal_of(target: str) -> str:
    """The name of the issue about a refusal, which counts no attempts. No target has a colon in it."""
    return f"{_REFUSAL}{target}"


def needs_person(skip: Skip) -> bool:
    """Whether it was refused for a reason that does not pass by itself."""
    return skip.exit_code != 0 and not _PASSES.search(skip.reason)


def all_refused(plan: Plan) -> bool:
    """Whether something is watched, and not one model of it can be had."""
    return (
        bool(plan.skipped) and not plan.jobs and not plan.deferred and all(item.exit_code for item in plan.skipped)
    )


def settled(about: str, plan: Plan, *, whole: bool) -> str:
    """Why the issue of this name is closed, or nothing while it stands. whole: nothing watched was left out."""
    target = about.removeprefix(_REFUSAL)
    skip = next((item for item in plan.skipped if item.entry.target == target), None)
    if "/" not in target:
        return ""  # about the watch itself
    if skip is None and all(job.entry.target != target for job in (*plan.jobs, *plan.deferred)):
        return "The watchlist does not name it any more." if whole else ""
    if skip is not None and skip.entry.hold:
        return "The watchlist puts it on hold."
    if about != target:
        return "It is no longer refused." if skip is None or not skip.exit_code else ""
    return "It is published by now." if skip is not None and skip.reason == UP_TO_DATE else ""


def busy_targets(jobs: Sequence[RunningJob]) -> frozenset[str]:
    """Targets of runs that are not over: something runs or waits, or what was made is yet to be published.

    A run's publish jobs appear only when all that comes before them is done.
    """
    started = {job.target for job in jobs if job.status != "completed"}
    made = {job.target for job in jobs if job.stage == "quantize" and job.conclusion == "success"}
    ended = {job.target for job in jobs if job.stage == "publish" and job.status == "completed"}
    return frozenset(started | (made - ended))


def overdue(times: PlanTimes, *, now: datetime, limit: timedelta) -> str | None:
    """What is wrong when nobody has watched for longer than `limit`; None when all is well, or it never began."""
    if times.last_good is not None:
        return _since(times.last_good, now) if now - times.last_good > limit else None
    if times.oldest_run is not None and now - times.oldest_run > limit:
        return f"no plan since at least {shown(iso(times.oldest_run))}"
    return None


def _since(time: datetime, now: datetime) -> str:
    return f"the last good plan was made {shown(iso(time))}, {(now - time) / timedelta(hours=1):.0f} hours ago"


def _busy(job: Job, busy: frozenset[str]) -> Skip | None:
    if job.entry.target not in busy:
        return None
    hint = "It is looked at again when that run has ended."
    return Skip(entry=job.entry, reason="another run works on it", hint=hint, blocked=True)


def _wait(job: Job, tried: Attempts | None, now: datetime) -> Skip | None:
    if tried is None or tried.content != tried_content(job):
        return None
    if tried.waits_for_person:
        reason = f"failed {tried.count} times, waits for a person"
        return Skip(entry=job.entry, reason=reason, hint="Close the issue to have it tried again.", blocked=True)
    if tried.next_try is not None and now < datetime.fromisoformat(tried.next_try):
        reason = f"failed {_times(tried.count)}, next try not before {shown(tried.next_try)}"
        return Skip(entry=job.entry, reason=reason, hint="Close the issue to have it tried now.", blocked=True)
    return None


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count} times"


def iso(time: datetime) -> str:
    return time.astimezone(UTC).replace(microsecond=0).isoformat().replace("+00:00", "Z")


def shown(time: str) -> str:
    """`2026-11-22 04:30 UTC`."""
    return f"{datetime.fromisoformat(time).astimezone(UTC):%Y-%m-%d %H:%M} UTC"
