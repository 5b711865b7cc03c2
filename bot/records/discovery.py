"""New models of an author: the rules that look for them, what the Hub lists, and what was found."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from bot.records.config import WatchEntry
from bot.records.hub import Head

DiscoverMode = Literal["propose", "publish"]


@dataclass(frozen=True, slots=True, kw_only=True)
class DiscoverRule:
    """One validated rule of the watchlist's `discover`.

    match, exclude, architectures: shell patterns. since: a day, as 2026-01-31. publish_to: an account. entry: what
    is found becomes, but for its names. settings: the keys of that entry as the watchlist has them, each as a line
    of YAML. own_place: whether publish_to is the rule's own.
    """

    author: str
    match: tuple[str, ...] = ("*",)
    exclude: tuple[str, ...] = ()
    since: str | None = None
    min_downloads: int = 0
    max_parameters: int | None = None
    architectures: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    limit: int = 20
    mode: DiscoverMode = "propose"
    publish_to: str
    entry: WatchEntry
    settings: tuple[str, ...] = ()
    own_place: bool = False

    @property
    def line(self) -> int:
        return self.entry.line


@dataclass(frozen=True, slots=True, kw_only=True)
class Watchlist:
    """A validated watchlist: its models, and its rules for finding others."""

    entries: tuple[WatchEntry, ...]
    rules: tuple[DiscoverRule, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ListedRepo:
    """A model repo as the list of its author's repos shows it.

    created: its first second, as 2026-01-31T08:00:00Z. downloads: in the last 30 days. parameters: as stored; None
    where the Hub does not know. quantized: by which method; empty if it is not.
    """

    repo_id: str
    created: str
    downloads: int = 0
    parameters: int | None = None
    architectures: tuple[str, ...] = ()
    model_type: str | None = None
    quantized: str = ""
    library: str | None = None
    tags: tuple[str, ...] = ()
    gated: bool = False
    private: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class AuthorListing:
    """All model repos of an author that our token can see. problem: why they could not be listed, in short.

    heads: also of the part of a list that could be read. pages: as many were read. unread: whether there are more.
    """

    author: str
    repos: tuple[ListedRepo, ...] = ()
    problem: str | None = None
    heads: tuple[Head, ...] = ()
    pages: int = 0
    unread: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Proposal:
    """A repo that a rule found and a person may add to the watchlist.

    line: of the rule. settings: the keys of the new entry besides repo_id, each as a line of YAML.
    """

    repo: ListedRepo
    author: str
    line: int
    target: str
    settings: tuple[str, ...] = ()

    @property
    def item(self) -> tuple[str, ...]:
        """What is added under `models`: lines of YAML."""
        repo_id = self.repo.repo_id
        return (f"repo_id: {repo_id}", *self.settings) if self.settings else (repo_id,)


@dataclass(frozen=True, slots=True, kw_only=True)
class LeftOut:
    """A repo whose name a rule matches, and why the rule does not take it. kind: the reason in a few words."""

    repo_id: str
    line: int
    kind: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Discovery:
    """What all rules found. notes: a line for each rule. unlisted: authors whose repos could not be listed."""

    entries: tuple[WatchEntry, ...] = ()
    proposals: tuple[Proposal, ...] = ()
    left_out: tuple[LeftOut, ...] = ()
    notes: tuple[str, ...] = ()
    unlisted: tuple[str, ...] = ()
