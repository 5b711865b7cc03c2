"""Pull requests that add found models to the watchlist: what they hold, and when one has to be written.

The pull requests are the state: a hidden line in the body of each names its repos, and a repo of one that was
closed is never proposed again.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from bot.records import LeftOut, Plan, Proposal
from bot.text import render
from bot.watch.discovery import proposal_facts

_MARK = re.compile(
    r"^<!-- awq-bot discover author=(?P<author>\S+) base=(?P<base>[0-9a-f]{40}) head=(?P<head>[0-9a-f]{40})"
    r" repos=(?P<repos>\S+) -->$",
    re.MULTILINE,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ProposalPull:
    """A pull request of ours. repos: whose models it adds, in lower case.

    base: the git id of the watchlist that it was made from; head: the commit that we wrote, on which others may
    have pushed since.
    """

    author: str
    number: int
    is_open: bool
    base: str
    head: str
    repos: tuple[str, ...]


def branch_of(author: str) -> str:
    """Not the name alone: git allows none that ends with `.lock`."""
    return f"awq-bot/{author.lower()}-new-models"


def read_pull_mark(body: str, *, number: int, is_open: bool) -> ProposalPull | None:
    """None when there is no mark, or one that is not as `pull_mark` writes it."""
    # GitHub ends lines with CR LF after an edit in the browser.
    found = next(reversed(list(_MARK.finditer(body.replace("\r\n", "\n")))), None)
    if found is None:
        return None
    repos = () if found["repos"] == "-" else tuple(found["repos"].split(","))
    author, base, head = found["author"], found["base"], found["head"]
    return ProposalPull(author=author, number=number, is_open=is_open, base=base, head=head, repos=repos)


def pull_mark(author: str, repos: Iterable[str], *, base: str, head: str) -> str:
    names = ",".join(sorted(name.lower() for name in repos)) or "-"
    return f"<!-- awq-bot discover author={author.lower()} base={base} head={head} repos={names} -->"


def pull_title(author: str, count: int) -> str:
    models = "a new model" if count == 1 else f"{count} new models"
    return f"watchlist: add {models} of {author}"


def pull_text(proposals: Sequence[Proposal], *, endpoint: str, run_url: str, edited: bool) -> str:
    """The visible part of the body. edited: someone else has pushed to the branch."""
    return render(
        "proposal_pull.md.jinja",
        proposals=proposals,
        facts=proposal_facts,
        endpoint=endpoint,
        run_url=run_url,
        edited=edited,
    )


def proposed_now(plan: Plan, author: str) -> tuple[Proposal, ...]:
    return tuple(item for item in plan.proposals if item.author.lower() == author.lower())


def without_declined(plan: Plan, pulls: Sequence[ProposalPull]) -> Plan:
    """The plan without proposals that were in a pull request that was closed, whether it was merged or not."""
    declined = {name: pull.number for pull in pulls if not pull.is_open for name in pull.repos}
    kept, left_out = [], []
    for item in plan.proposals:
        number = declined.get(item.repo.repo_id.lower())
        if number is None:
            kept.append(item)
            continue
        reason = f"pull request #{number}, which proposed it, was closed"
        left_out.append(LeftOut(repo_id=item.repo.repo_id, line=item.line, kind="declined", reason=reason))
    notes = plan.notes
    if left_out:
        count = f"{len(left_out)} of what was found" if len(left_out) > 1 else left_out[0].repo_id
        notes = (*notes, f"not proposed again, as its pull request was closed: {count}")
    return replace(plan, proposals=tuple(kept), left_out=(*plan.left_out, *left_out), notes=notes)


def without_private(plan: Plan) -> Plan:
    """For a public repository, whose pages everyone reads."""
    return replace(plan, proposals=tuple(item for item in plan.proposals if not item.repo.private))


def out_of_date(
    plan: Plan, pulls: Sequence[ProposalPull], authors: Iterable[str], *, base: str
) -> tuple[str, ...]:
    """The authors whose pull request has to be opened, updated or closed.

    authors: those that rules propose for. base: the git id of the watchlist.
    """
    unlisted = {author.lower() for author in plan.unlisted}
    named = dict.fromkeys(author.lower() for author in authors)
    return tuple(author for author in named if author not in unlisted and _differs(plan, pulls, author, base))


def _differs(plan: Plan, pulls: Sequence[ProposalPull], author: str, base: str) -> bool:
    now = {item.repo.repo_id.lower() for item in proposed_now(plan, author)}
    pull = open_pull(pulls, author)
    if pull is None:
        return bool(now)
    # Beside another change of the watchlist, git would see a conflict.
    return now != set(pull.repos) or pull.base != base


def open_pull(pulls: Sequence[ProposalPull], author: str) -> ProposalPull | None:
    return next((pull for pull in pulls if pull.is_open and pull.author == author.lower()), None)
