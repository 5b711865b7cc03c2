"""What the status page shows: every model, where it stands, and what was published of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Literal

from bot.records.config import Method


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishedRelease:
    """One release on the Hub, from its provenance. KL in nats per predicted token; sizes in bytes.

    date: of its commit, as 2026-01-31T08:00:00Z; empty where the Hub names none. kind: `refresh` where only small
    files changed, so that the figures are those of the release before it. source_sha: the commit upstream.
    """

    tag: str
    commit: str
    date: str
    kind: Literal["release", "refresh"]
    source_sha: str
    kl_mean: float
    top1_agreement: float
    perplexity_source: float
    perplexity_quantized: float
    bits_per_weight: float
    size_bytes: int
    size_source_bytes: int
    bits: int
    group_size: int
    method: Method
    tool: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ReleaseHistory:
    """The releases of a target, the newest first. whole: there are no older ones.

    repo_id: as the Hub answers. problem: why not all of them could be read, in short.
    """

    repo_id: str
    releases: tuple[PublishedRelease, ...] = ()
    whole: bool = True
    problem: str = ""


class ModelState(StrEnum):
    """Where a model stands, whatever was published of it before."""

    PUBLISHED = "published"  # and up to date
    PLANNED = "planned"  # the next run works on it, or the one after
    WAITING = "waiting"  # for a time, an upload or a person
    REFUSED = "refused"
    HELD = "held"
    PROPOSED = "proposed"  # found by a rule, and not on the watchlist


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelStatus:
    """One model of the watchlist, or one that a rule proposes.

    reason: why it is in this state; hint: what a person can do. next_attempt: not before this time, ISO 8601 in
    UTC. issue: the number of the open issue about it; issue_url: empty where readers of the page may not see it.
    releases: the newest first. older: there are more of them. note: what could not be read of them.
    """

    source: str
    target: str
    state: ModelState
    reason: str = ""
    hint: str = ""
    next_attempt: str | None = None
    issue: int | None = None
    issue_url: str = ""
    releases: tuple[PublishedRelease, ...] = ()
    older: bool = False
    note: str = ""

    @property
    def newest(self) -> PublishedRelease | None:
        return next(iter(self.releases), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class StatusReport:
    """All that the page shows, and `status.json`. made: when, ISO 8601 in UTC. endpoint: of the Hub.

    left_out: models that are private, or not known to be public. private: they are not left out. notes: what could
    not be found out.
    """

    schema: Literal[1] = 1
    tool: str
    made: str
    endpoint: str
    models: tuple[ModelStatus, ...] = ()
    left_out: int = 0
    private: bool = False
    notes: tuple[str, ...] = field(default=())
