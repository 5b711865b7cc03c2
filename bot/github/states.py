"""What the plan, the Hub's history and the issues say of each model, as one line of the status page."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from bot.github.attempts import state_of
from bot.records import (
    Attempts,
    AuthorListing,
    Job,
    ModelState,
    ModelStatus,
    Plan,
    Proposal,
    ReleaseHistory,
    Skip,
    WatchEntry,
)
from bot.text import one_line
from bot.watch.discovery import proposal_facts

_REASON_CHARS = 300


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """What the states are made of. histories: by target.

    attempts: by the name of their issue. issues_url: empty where readers of the page may not see the issues.
    """

    histories: Mapping[str, ReleaseHistory] = field(default_factory=dict)
    attempts: Mapping[str, Attempts] = field(default_factory=dict)
    issues_url: str = ""


def model_states(plan: Plan, known: Known) -> tuple[ModelStatus, ...]:
    """Every model of the plan, and what its rules propose, by name."""
    deferred = {job.job_id for job in plan.deferred}
    jobs = (*plan.jobs, *plan.deferred)
    found = [
        *(_of_job(job, known, later=job.job_id in deferred) for job in jobs),
        *(_of_skip(skip, known) for skip in plan.skipped),
        *map(_of_proposal, plan.proposals),
    ]
    return tuple(sorted(found, key=lambda model: (model.source.lower(), model.target.lower())))


def _of_job(job: Job, known: Known, *, later: bool) -> ModelStatus:
    tried = known.attempts.get(job.entry.target)
    tried = tried if tried is not None and tried.content == job.attempt_digest else None
    state = ModelState.WAITING if tried is not None else ModelState.PLANNED
    reason = job.reason if tried is None else _failed(tried)
    if later and tried is None:
        reason = f"{reason}; after other models"
    hint = "Close the issue to retry now." if tried is not None else ""
    return _status(job.entry, state, known, reason=reason, hint=hint, about=tried)


def _failed(tried: Attempts) -> str:
    times = {1: "once", 2: "twice"}.get(tried.count, f"{tried.count} times")
    return f"failed {times}" + (", no more automatic retries" if tried.waits_for_person else "")


def _of_skip(skip: Skip, known: Known) -> ModelStatus:
    return _status(skip.entry, state_of(skip), known, reason=skip.reason, hint=skip.hint, about=None)


def _status(
    entry: WatchEntry, state: ModelState, known: Known, *, reason: str, hint: str, about: Attempts | None
) -> ModelStatus:
    """about: what its open issue says."""
    history = known.histories.get(entry.target)
    number = about.issue if about is not None else None
    return ModelStatus(
        source=entry.repo_id,
        target=entry.target,
        state=state,
        reason=one_line(reason, _REASON_CHARS),
        hint=one_line(hint, _REASON_CHARS),
        next_attempt=about.next_try if about is not None else None,
        issue=number if known.issues_url else None,
        issue_url=f"{known.issues_url}/{number}" if known.issues_url and number is not None else "",
        releases=history.releases if history is not None else (),
        older=history is not None and not history.whole,
        note=one_line(history.problem, _REASON_CHARS) if history is not None else "",
    )


def _of_proposal(proposal: Proposal) -> ModelStatus:
    return ModelStatus(
        source=proposal.repo.repo_id,
        target=proposal.target,
        state=ModelState.PROPOSED,
        reason=one_line(proposal_facts(proposal), _REASON_CHARS),
        hint="Merge the pull request that adds it, or add it to the watchlist.",
    )


# --- what everyone may see ----------------------------------------------------------------------------------


def public_states(
    models: Sequence[ModelStatus], listings: Iterable[AuthorListing], kept_private: Iterable[str]
) -> tuple[ModelStatus, ...]:
    """The models without those that are private, or not known to be public.

    listings: of the accounts of all sources and targets. kept_private: targets that the watchlist wants private. A
    name that only others are to know is not in what is said of the rest, either.
    """
    private = {repo.repo_id.lower(): repo.private for listing in listings for repo in listing.repos}
    wanted = {target.lower() for target in kept_private}

    def is_public(model: ModelStatus) -> bool:
        seen = {private.get(name.lower()) for name in (model.source, model.target)}
        return model.target.lower() not in wanted and True not in seen and False in seen

    shown = [model for model in models if is_public(model)]
    hidden = {name for model in models if not is_public(model) for name in (model.source, model.target)}
    hidden -= {name for model in shown for name in (model.source, model.target)}
    return tuple(_without_names(model, hidden) for model in shown)


def _without_names(model: ModelStatus, names: Iterable[str]) -> ModelStatus:
    texts = [model.reason, model.hint, model.note]
    for name in sorted(names, key=len, reverse=True):
        texts = [text.replace(name, "another model") for text in texts]
    reason, hint, note = texts
    return replace(model, reason=reason, hint=hint, note=note)
