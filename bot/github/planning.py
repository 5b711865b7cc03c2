"""What one run of the watch workflow does: what is new, less what must wait, and what to check it against."""

from __future__ import annotations

import os
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import httpx2

from bot.errors import BotError, WatchlistError
from bot.github.attempts import hold_back
from bot.github.matrix import matrices, publishable
from bot.github.results import originals_of
from bot.github.tracker import IssueTracker
from bot.hub.session import Hub
from bot.jobs import pipeline
from bot.records import Job, JobKind, Plan, Skip, WatchEntry
from bot.watch import watchlist as watchlists
from bot.watch.watchlist import InvalidWatchlistError

_TIMEOUT_S = 10.0


def beat(url: str) -> bool:
    """Whether it answered. Nobody's failure: the service will miss it and say so."""
    try:
        return httpx2.get(url, timeout=_TIMEOUT_S, follow_redirects=True).is_success
    except (httpx2.HTTPError, httpx2.InvalidURL):
        return False


# A job that waits for a runner for a day is cancelled: no more are started than a few machines do in that time.
MOST_RELEASES = 8


def watched(watchlist: Path, tracker: IssueTracker) -> tuple[WatchEntry, ...]:
    """The watchlist's entries; an issue stands while it has mistakes."""
    try:
        return watchlists.load(watchlist)
    except InvalidWatchlistError as error:
        tracker.tell_watchlist(error.mistakes)
        raise


def plan_run(
    hub: Hub,
    entries: tuple[WatchEntry, ...],
    tracker: IssueTracker,
    *,
    now: datetime,
    force: bool = False,
    by_identity: bool = False,
    publish_on: str = "hosted",
    most_releases: int = MOST_RELEASES,
) -> Plan:
    """What is new and may be done now.

    by_identity: a workflow's identity publishes, which creates no targets. most_releases: under way at once.
    """
    attempts, running = tracker.attempts(), tracker.running_elsewhere()
    listed = pipeline.plan(hub, entries, by_identity=by_identity)
    found = publishable(listed, hosted=publish_on == "hosted", public=tracker.actions.is_public is True)
    return hold_back(found, attempts=attempts, running=running, now=now, force=force, most_releases=most_releases)


def with_originals(hub: Hub, made: Plan, folder: Path) -> Plan:
    """The plan, with what publishing compares beside it in `folder`; without jobs for which that cannot be had."""
    kept: list[Job] = []
    lost: list[Skip] = []
    for job in made.jobs:
        try:
            if job.kind is JobKind.RELEASE:
                pipeline.pull_originals(hub, job, originals_of(folder, job.job_id))
            kept.append(job)
        except BotError as error:
            skip = Skip(entry=job.entry, reason=error.message, hint=error.hint, blocked=True)
            lost.append(replace(skip, exit_code=error.exit_code))
    return replace(made, jobs=tuple(kept), skipped=(*made.skipped, *lost))


def switched_on(name: str) -> bool:
    """A variable of the repository that is on or off. Raises WatchlistError for what the workflows would misread.

    They compare it with 'true', as GitHub does: whatever the case, and taking anything else for off.
    """
    value = os.environ.get(name, "")
    if value.lower() not in ("", "true", "false"):
        raise WatchlistError(f"{name} is {value!r}", hint="It is `true` or `false`, or not set.")
    return value.lower() == "true"


def publishing_place(where: str, *, oidc: bool) -> str:
    """Where the publish leg runs. Raises WatchlistError for what there is not, or is unsafe together."""
    if where not in ("hosted", "runner", ""):
        raise WatchlistError(f"AWQ_BOT_PUBLISH_ON is {where!r}", hint="It is `hosted` or `runner`.")
    if where == "runner" and oidc:
        raise WatchlistError(
            "publishing on the runner and Trusted Publishers together",
            hint="Whatever runs on the runner could publish as this workflow: set AWQ_BOT_PUBLISH_ON to hosted.",
        )
    return where or "hosted"


def outputs(made: Plan) -> dict[str, object]:
    """For the jobs that follow: a matrix and a count for what needs a GPU, and for what does not."""
    values: dict[str, object] = {}
    for name, rows in matrices(made).items():
        values |= {name: {"include": rows}, f"{name}_count": len(rows)}
    return values
