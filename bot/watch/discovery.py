"""Which repos of an author the rules of `discover` take, and why they take no others."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from typing import NamedTuple

from bot.records import AuthorListing, DiscoverRule, Discovery, LeftOut, ListedRepo, Proposal, WatchEntry
from bot.text import count
from bot.watch.layers import model_types
from bot.watch.refusals import no_causal_lm
from bot.watch.rules import default_target
from bot.watch.values import MAX_REPO_ID


class _Reason(NamedTuple):
    """kind: for counting; said: in full."""

    kind: str
    said: str


@dataclass(slots=True)
class _Search:
    """What is found so far. listed, taken: ids and the line that names them; targets: whose they are. Lower case.

    counts, reasons: by rule, of what it takes and why not.
    """

    listed: dict[str, int]
    targets: dict[str, str]
    taken: dict[str, int] = field(default_factory=dict)
    counts: Counter[int] = field(default_factory=Counter)
    reasons: defaultdict[int, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    entries: list[WatchEntry] = field(default_factory=list)
    proposals: list[Proposal] = field(default_factory=list)
    left_out: list[LeftOut] = field(default_factory=list)


def authors_to_list(rules: Iterable[DiscoverRule]) -> tuple[str, ...]:
    return tuple(rule.author for rule in rules if rule.entry.hold is None)


def discover(
    rules: Sequence[DiscoverRule],
    listings: Sequence[AuthorListing],
    entries: Sequence[WatchEntry],
    names: Sequence[str] = (),
) -> Discovery:
    """Of several rules that would take a repo, the first in the file does.

    entries: the models of the watchlist; names: what the Hub calls their repos now.
    """
    search = _Search(
        listed=dict.fromkeys(map(str.lower, names), 0) | {entry.repo_id.lower(): entry.line for entry in entries},
        targets={entry.target.lower(): entry.repo_id for entry in entries},
    )
    by_author = {listing.author.lower(): listing for listing in listings}
    for author, listing in by_author.items():
        asked = [
            (number, rule)
            for number, rule in enumerate(rules)
            if rule.author.lower() == author and rule.entry.hold is None
        ]
        # The newest first: what is beyond a rule's limit is the oldest.
        for repo in sorted(listing.repos, key=lambda item: item.created, reverse=True):
            _look_at(search, repo, asked)
    return Discovery(
        entries=tuple(search.entries),
        proposals=tuple(search.proposals),
        left_out=tuple(search.left_out),
        notes=tuple(
            f"discover {rule.author} (line {rule.line}): {', '.join(_said(search, number, rule, by_author))}"
            for number, rule in enumerate(rules)
        ),
        unlisted=tuple(listing.author for listing in listings if listing.problem),
    )


def _look_at(search: _Search, repo: ListedRepo, rules: Sequence[tuple[int, DiscoverRule]]) -> None:
    """rules: of its author, with their numbers."""
    name = repo.repo_id.partition("/")[2]
    for number, rule in rules:
        if not _fits(name, rule.match):
            continue
        target = default_target(rule.publish_to, repo.repo_id) or ""
        reason = _known(search, repo) or _refusal(rule, repo, name) or _place_refusal(search, repo, target)
        if reason is None:
            search.taken[repo.repo_id.lower()] = rule.line
            reason = _over_limit(search, number, rule)
        if reason is None:
            search.counts[number] += 1
            _take(search, rule, repo, target)
        else:
            search.reasons[number][reason.kind] += 1
            left_out = LeftOut(repo_id=repo.repo_id, line=rule.line, kind=reason.kind, reason=reason.said)
            search.left_out.append(left_out)


def _take(search: _Search, rule: DiscoverRule, repo: ListedRepo, target: str) -> None:
    search.targets[target.lower()] = repo.repo_id
    if rule.mode == "publish":
        search.entries.append(replace(rule.entry, repo_id=repo.repo_id, target=target))
        return
    settings = (f"target: {target}",) * rule.own_place + rule.settings
    proposal = Proposal(repo=repo, author=rule.author, line=rule.line, target=target, settings=settings)
    search.proposals.append(proposal)


def _fits(name: str, patterns: Iterable[str]) -> bool:
    """Names on the Hub ignore case."""
    return any(fnmatchcase(name.lower(), pattern.lower()) for pattern in patterns)


# --- why a rule does not take a repo --------------------------------------------------------------------------


def _known(search: _Search, repo: ListedRepo) -> _Reason | None:
    repo_id = repo.repo_id.lower()
    if repo_id in search.listed:
        line = search.listed[repo_id]
        return _Reason("on the list", f"it is on line {line}" if line else "it is on the list by an earlier name")
    if repo_id in search.taken:
        return _Reason("taken by another rule", f"the rule on line {search.taken[repo_id]} takes it")
    return None


def _refusal(rule: DiscoverRule, repo: ListedRepo, name: str) -> _Reason | None:
    if _fits(name, rule.exclude):
        return _Reason("excluded", "excluded by its name")
    return _other_kind(repo) or _unsupported(repo) or _unwanted(rule, repo) or _closed(rule, repo)


def _other_kind(repo: ListedRepo) -> _Reason | None:
    """What is no model in full precision, by the tags that the Hub gives."""
    tags = frozenset(repo.tags)
    if repo.library == "peft" or _has(repo, "base_model:adapter:"):
        return _Reason("adapter", "it is an adapter")
    if "merge" in tags or _has(repo, "base_model:merge:"):
        return _Reason("merge", "it is a merge of models")
    if repo.quantized:
        return _Reason("quantized", f"it is quantized already ({repo.quantized.removeprefix('base_model:')})")
    if "safetensors" not in tags:
        gguf = "gguf" in tags or repo.library == "gguf"
        return _Reason("GGUF only", "it has only GGUF files") if gguf else _Reason("no weights", "no safetensors")
    return None


def _has(repo: ListedRepo, prefix: str) -> bool:
    return any(tag.startswith(prefix) for tag in repo.tags)


def _unsupported(repo: ListedRepo) -> _Reason | None:
    """What the plan would refuse by its config, as far as the list shows that."""
    if repo.model_type is None:
        return _Reason("unsupported", "no config.json of a transformers model")
    if repo.architectures and (reason := no_causal_lm(repo.architectures)):
        return _Reason("unsupported", reason)
    known = model_types().get(repo.model_type)
    if known is None:
        return _Reason("unsupported", f"model_type {repo.model_type!r}: this version's table does not know it")
    if known.reason:
        return _Reason("unsupported", f"model_type {repo.model_type!r}: {known.reason}")
    return None


def _unwanted(rule: DiscoverRule, repo: ListedRepo) -> _Reason | None:
    if rule.since is not None and repo.created < rule.since:
        return _Reason("too old", f"created {repo.created[:10] or 'at an unknown time'}, before {rule.since}")
    if repo.downloads < rule.min_downloads:
        return _Reason("too few downloads", f"{repo.downloads:,} downloads, fewer than {rule.min_downloads:,}")
    if rule.max_parameters is not None and repo.parameters is None:
        return _Reason("unknown size", "the Hub does not say how many parameters it has")
    if rule.max_parameters is not None and (repo.parameters or 0) > rule.max_parameters:
        sizes = f"{count(repo.parameters or 0)} parameters, more than {count(rule.max_parameters)}"
        return _Reason("too many parameters", sizes)
    names = [name for name in (*repo.architectures, repo.model_type) if name]
    if rule.architectures and not any(_fits(name, rule.architectures) for name in names):
        return _Reason("other architecture", f"its architecture is {', '.join(names)}")
    if missing := [tag for tag in rule.tags if tag not in repo.tags]:
        return _Reason("without tag", f"it has no tag {missing[0]}")
    return None


def _closed(rule: DiscoverRule, repo: ListedRepo) -> _Reason | None:
    """A person decides about each repo that others may not read as they like."""
    if rule.entry.private or not (repo.private or repo.gated):
        return None
    kind = "private" if repo.private else "gated"
    return _Reason(kind, f"it is {kind}: list it under `models`, or set `private: true` in the rule")


def _place_refusal(search: _Search, repo: ListedRepo, target: str) -> _Reason | None:
    """Why it cannot have the target that it would have."""
    if repo.repo_id.partition("/")[0].lower() == target.partition("/")[0].lower():
        return _Reason("of the target's owner", f"it belongs to {target.partition('/')[0]}, like its target")
    if target.lower() in search.targets:
        other = search.targets[target.lower()]
        return _Reason("target taken", f"its target {target} is that of {other}: list it with another `target`")
    if len(target) > MAX_REPO_ID:
        said = f"its target {target} has more than {MAX_REPO_ID} characters: list it with a shorter `target`"
        return _Reason("name too long", said)
    return None


def _over_limit(search: _Search, number: int, rule: DiscoverRule) -> _Reason | None:
    if search.counts[number] < rule.limit:
        return None
    return _Reason("over the limit", f"the rule takes the {rule.limit} newest")


# --- what is said of proposals and rules ----------------------------------------------------------------------


def proposal_facts(proposal: Proposal) -> str:
    """What the list of its author's repos says about a proposed repo, for people."""
    repo = proposal.repo
    names = ", ".join(repo.architectures or filter(None, [repo.model_type]))
    licenses = [tag.removeprefix("license:") for tag in repo.tags if tag.startswith("license:")]
    size = f"{count(repo.parameters)} parameters" if repo.parameters else "of unknown size"
    facts = [names, size, f"created {repo.created[:10]}", f"{repo.downloads:,} downloads", *licenses]
    return f"{', '.join(facts)}; rule on line {proposal.line}"


def _said(
    search: _Search, number: int, rule: DiscoverRule, listings: Mapping[str, AuthorListing]
) -> Iterator[str]:
    listing = listings.get(rule.author.lower())
    found, reasons = search.counts[number], search.reasons[number]
    if rule.entry.hold is not None:
        yield f"on hold: {rule.entry.hold}"
    elif listing is None or listing.problem:
        problem = f": {listing.problem}" if listing else ""
        yield f"its repos could not be listed, so that nothing is found this time{problem}"
    elif not listing.repos:
        yield "no such account on the Hub, or our token can see none of its models"
    elif not found and not reasons:
        yield f"no repo's name matches {' or '.join(rule.match)}"
    else:
        yield f"{found or 'nothing'} found"
        yield from (f"{left_out} {kind}" for kind, left_out in reasons.most_common())
