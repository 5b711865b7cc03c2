"""Who a repo is: sources and targets that were renamed, and targets that are not ours.

The id that the Hub answers with counts; its earlier names are redirected to it. Names on the Hub ignore case. A
repo that took over the name of another one has its own id, and so is another repo. If that happens between two
plans, before the target names the new id, only its content differs: a new release.
"""

from __future__ import annotations

from collections.abc import Sequence

from bot.errors import PublishError, UpstreamError, WatchlistError
from bot.records import Published, Skip, TargetState, Upstream, WatchEntry
from bot.watch.refusals import refuse


def repo_refusal(entry: WatchEntry, upstream: Upstream, published: Published) -> Skip | None:
    if upstream.problem:
        hint = f"Look at {entry.repo_id} on the Hub."
        if upstream.problem.startswith("missing") and published.provenance is not None:
            hint += f" If it was withdrawn, `awq-bot notice {entry.target} --withdrawn` says so on the card."
        return refuse(entry, upstream.problem, UpstreamError, hint)
    if published.problem:
        return refuse(entry, published.problem, PublishError, f"Look at {entry.target} on the Hub.")
    if published.is_renamed(entry.target):
        hint = f"Set `target: {published.repo_id}` for it in the watchlist, or rename it back."
        return refuse(entry, f"{entry.target} was renamed to {published.repo_id}", PublishError, hint)
    if published.state is TargetState.FOREIGN:
        hint = "Choose another `target`, or empty that repo by hand."
        return refuse(entry, f"{entry.target} was not published by awq-bot", PublishError, hint)
    if published.provenance is not None and not published.is_made_from(entry.repo_id, upstream.repo_id):
        reason = f"{entry.target} was made from {published.made_from}, not from {upstream.repo_id}"
        return refuse(entry, reason, PublishError, "Choose another `target`.")
    if published.distrust is not None:
        hint = f"If it is yours: `awq-bot verify {entry.target}`, then `awq-bot sign {entry.target}`."
        return refuse(entry, f"{entry.target}: {published.distrust}", PublishError, hint)
    return None


def same_repo_refusals(entries: Sequence[WatchEntry], repo_ids: Sequence[str]) -> tuple[Skip | None, ...]:
    """For each entry its refusal, where another one names the same repo by another name.

    repo_ids: what the Hub calls the sources now. Only a person knows which of their targets is to go on. Twice by
    one name is meant: as two targets.
    """
    named: dict[str, list[WatchEntry]] = {}
    for entry, repo_id in zip(entries, repo_ids, strict=True):
        named.setdefault(repo_id.lower(), []).append(entry)
    return tuple(
        _same_repo_refusal(entry, repo_id, named[repo_id.lower()])
        for entry, repo_id in zip(entries, repo_ids, strict=True)
    )


def _same_repo_refusal(entry: WatchEntry, repo_id: str, of_repo: Sequence[WatchEntry]) -> Skip | None:
    other = next((other for other in of_repo if other.repo_id.lower() != entry.repo_id.lower()), None)
    if other is None:
        return None
    reason = f"the same repo as {other.repo_id} on line {other.line}: both are {repo_id} now"
    hint = f"Remove one of them and name the `target` that is to go on, or write {repo_id} in both."
    return refuse(entry, reason, WatchlistError, hint)


def rename_warnings(entry: WatchEntry, upstream: Upstream) -> tuple[str, ...]:
    if entry.repo_id.lower() == upstream.repo_id.lower():
        return ()
    new = f"`repo_id: {upstream.repo_id}` with `target: {entry.target}`"
    return (f"{entry.repo_id} is now {upstream.repo_id}; the watchlist can name it: {new}",)
