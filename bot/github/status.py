"""Collect what the status page shows: the plan, the releases of each target, and the issues about failures."""

from __future__ import annotations

from datetime import datetime

from bot.github.attempts import iso
from bot.github.dashboard import ticked_plan, with_ticks
from bot.github.states import Known, model_states, public_states
from bot.github.tracker import IssueTracker
from bot.hub.history import read_histories
from bot.hub.listings import read_authors
from bot.hub.session import Hub
from bot.jobs import pipeline
from bot.jobs.handover import TOOL
from bot.records import Attempts, AuthorListing, ModelStatus, Plan, StatusReport, Watchlist


def status_of(
    hub: Hub, watchlist: Watchlist, tracker: IssueTracker, *, now: datetime, base: str, private: bool
) -> StatusReport:
    """Where every model stands. Nothing is written anywhere.

    base: the git id of the watchlist. private: show private models, and the issues of a private repository, too.
    """
    attempts, unknown = _attempts(tracker)
    ticks = tracker.ticks()
    watchlist = with_ticks(watchlist, ticks)
    plan = ticked_plan(pipeline.plan(hub, watchlist.entries, watchlist.rules), ticks)
    plan = tracker.with_proposals(plan, watchlist.rules, base=base)
    jobs = [*plan.jobs, *plan.deferred]
    targets = [entry.target for entry in (*(job.entry for job in jobs), *(skip.entry for skip in plan.skipped))]
    histories = dict(zip(targets, read_histories(hub, targets), strict=True))
    known = Known(
        histories=histories,
        attempts={item.target: item for item in attempts},
        issues_url=tracker.actions.issues_url if private or tracker.actions.is_public else "",
    )
    models = model_states(plan, known)
    listings = () if private else _listings(hub, models)
    shown = models if private else public_states(models, listings, _kept_private(plan))
    return StatusReport(
        tool=TOOL,
        made=iso(now),
        endpoint=hub.endpoint,
        models=shown,
        left_out=len(models) - len(shown),
        private=private,
        notes=tuple(filter(None, (unknown, *_unlisted(listings)))),
    )


def _attempts(tracker: IssueTracker) -> tuple[tuple[Attempts, ...], str]:
    """What failed before, or a note that it is not known."""
    if not (tracker.actions.token and tracker.actions.repository):
        return (), "Failed attempts are not shown: no GITHUB_TOKEN, or no GITHUB_REPOSITORY."
    found = tracker.attempts()
    if found is None:
        # What a run would make of it is no concern of a page.
        why = tracker.notes[-1].partition(". ")[0]
        return (), f"Failed attempts are not known: {why}."
    return found, ""


def _kept_private(plan: Plan) -> list[str]:
    """Targets that the watchlist wants private, or whose source the plan has seen to be."""
    jobs = (*plan.jobs, *plan.deferred)
    private = [job.entry.target for job in jobs if job.entry.private or job.upstream.private]
    private += [skip.entry.target for skip in plan.skipped if skip.entry.private]
    return private + [item.target for item in plan.proposals if item.repo.private]


def _listings(hub: Hub, models: tuple[ModelStatus, ...]) -> tuple[AuthorListing, ...]:
    """Of all accounts, which say of each repo whether it is private."""
    names = (name for model in models for name in (model.source, model.target))
    return read_authors(hub, dict.fromkeys(name.partition("/")[0] for name in names))


def _unlisted(listings: tuple[AuthorListing, ...]) -> list[str]:
    """Without the names of these accounts, which may be known to few."""
    problems = [item.problem for item in listings if item.problem]
    if not problems:
        return []
    accounts = "1 account" if len(problems) == 1 else f"{len(problems)} accounts"
    return [f"Models of {accounts} could not be listed, and may be missing here: {problems[0]}."]
