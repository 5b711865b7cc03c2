"""What one run of the watch workflow does: what is new, without what must wait, and what publishing needs."""

from __future__ import annotations

import os
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import httpx2

from bot.errors import BotError, WatchlistError
from bot.github.attempts import apply_retry_limits
from bot.github.dashboard import not_retried, ticked_plan, with_ticks
from bot.github.matrix import matrices, publishable
from bot.github.proposals import without_private
from bot.github.results import originals_of
from bot.github.tracker import IssueTracker
from bot.hub.session import Hub
from bot.jobs import pipeline
from bot.records import Job, JobKind, Plan, Skip, Watchlist
from bot.watch import watchlist as watchlists
from bot.watch.watchlist import InvalidWatchlistError

_TIMEOUT_S = 10.0


def beat(url: str) -> bool:
    """Whether the URL answered. Not an error: the monitoring service notices a missing request itself."""
    try:
        return httpx2.get(url, timeout=_TIMEOUT_S, follow_redirects=True).is_success
    except (httpx2.HTTPError, httpx2.InvalidURL):
        return False


# GitHub cancels a job that waits for a runner for a day: start no more than a few machines finish in that time.
MAX_RELEASES = 8


def watched(watchlist: Path, tracker: IssueTracker) -> Watchlist:
    """The watchlist. Its mistakes are reported as an issue, too."""
    try:
        return watchlists.read(watchlist)
    except InvalidWatchlistError as error:
        tracker.report_watchlist(error.mistakes)
        raise


def plan_run(
    hub: Hub,
    watchlist: Watchlist,
    tracker: IssueTracker,
    *,
    now: datetime,
    only: str | None = None,
    force: bool = False,
    trusted_publishing: bool = False,
    publish_on: str = "hosted",
    max_releases: int = MAX_RELEASES,
    memory: Path | None = None,
) -> Plan:
    """What is new and can be done now, as the boxes of the dashboard want it.

    only: the one model of the watchlist. force: also what waits, and with nothing taken from `memory`.
    trusted_publishing: publishing uses Trusted Publishers, which cannot create targets. max_releases: in progress
    at once.
    """
    attempts, running = tracker.attempts(), tracker.jobs_of_other_runs()
    ticks = tracker.ticks()
    watchlist = with_ticks(watchlist, ticks)
    listed = pipeline.plan(
        hub,
        watchlist.entries,
        watchlist.rules,
        only=only,
        trusted_publishing=trusted_publishing,
        memory=memory,
        fresh=force,
    )
    listed = ticked_plan(listed, ticks)
    found = publishable(listed, hosted=publish_on == "hosted", public=tracker.actions.is_public is True)
    # Everyone reads the pages of a public repository.
    found = found if tracker.actions.is_public is False else without_private(found)
    return apply_retry_limits(
        found,
        attempts=not_retried(attempts, ticks),
        running=running,
        now=now,
        force=force,
        max_releases=max_releases,
    )


def with_originals(hub: Hub, plan: Plan, folder: Path) -> Plan:
    """Pull what `publish` compares into `folder`. Returns the plan, without the jobs for which that failed."""
    kept: list[Job] = []
    lost: list[Skip] = []
    for job in plan.jobs:
        try:
            if job.kind is JobKind.RELEASE:
                pipeline.pull_originals(hub, job, originals_of(folder, job.job_id))
            kept.append(job)
        except BotError as error:
            skip = Skip(entry=job.entry, reason=error.message, hint=error.hint, blocked=True)
            lost.append(replace(skip, exit_code=error.exit_code))
    return replace(plan, jobs=tuple(kept), skipped=(*plan.skipped, *lost))


def switched_on(name: str) -> bool:
    """A repository variable that is true or false. Raises WatchlistError for any other value.

    The workflows compare it with 'true', ignoring case, and would take anything else for false.
    """
    value = os.environ.get(name, "")
    if value.lower() not in ("", "true", "false"):
        raise WatchlistError(f"{name} is {value!r}", hint="Set it to `true` or `false`, or delete it.")
    return value.lower() == "true"


def publishing_place(where: str, *, oidc: bool, watchlist: Watchlist | None = None) -> str:
    """Where publishing runs. Raises WatchlistError for an unknown place, or one that is unsafe.

    oidc: with Trusted Publishers. watchlist: what is on it may have to be signed.
    """
    if where not in ("hosted", "runner", ""):
        raise WatchlistError(f"AWQ_BOT_PUBLISH_ON is {where!r}", hint="Set it to `hosted` or `runner`.")
    if where == "runner" and oidc:
        raise WatchlistError(
            "publishing on the runner cannot be combined with Trusted Publishers",
            hint="Code on the runner could publish as this workflow. Set AWQ_BOT_PUBLISH_ON to `hosted`.",
        )
    named = {entry.target: entry for entry in watchlist.entries} if watchlist else {}
    named |= {f"discover {rule.author}": rule.entry for rule in watchlist.rules} if watchlist else {}
    if where == "runner" and (signed := [name for name, entry in named.items() if entry.signed_by is not None]):
        raise WatchlistError(
            f"{signed[0]}: `signed_by` is set, and nothing is signed on a GPU runner",
            hint="Code on the runner could sign as you. Set AWQ_BOT_PUBLISH_ON to `hosted`.",
        )
    return where or "hosted"


def outputs(plan: Plan) -> dict[str, object]:
    """For the jobs that follow: a matrix and a count of jobs that need a GPU, and of jobs that do not.

    propose_count: of the pull requests that have to be written.
    """
    values: dict[str, object] = {}
    for name, rows in matrices(plan).items():
        values |= {name: {"include": rows}, f"{name}_count": len(rows)}
    values["propose_count"] = len(plan.proposing)
    return values
