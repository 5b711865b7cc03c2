"""Decisions, and what they will take."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from bot.records.config import WatchEntry
from bot.records.hub import HubFile, Upstream
from bot.records.serialization import sha256_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Digests:
    """sha256 hex over what was asked for and what it is made of; content names all three together."""

    source: str
    refresh: str
    recipe: str

    @property
    def content(self) -> str:
        return sha256_of([self.source, self.refresh, self.recipe])


@dataclass(frozen=True, slots=True, kw_only=True)
class Skip:
    """Nothing will be done. blocked: a person might want to change that, unlike `up to date`."""

    entry: WatchEntry
    reason: str
    hint: str = ""
    blocked: bool = False
    exit_code: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """What a job will need, in bytes, and seconds on a GPU; an estimate before any download."""

    download_bytes: int
    output_bytes: int
    vram_bytes: int
    ram_bytes: int
    disk_bytes: int
    duration_s: float
    parameters: int
    float_operations: float = 0.0


class JobKind(StrEnum):
    RELEASE = "release"  # pull, quantize, evaluate, card, publish
    REFRESH = "refresh"  # republish small files, no GPU
    FINISH = "finish"  # a publication that was cut short: read back, settings, tag


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One decided piece of work, pinned to a commit. It is what a runner gets, and all that it gets.

    replaces: the tag of what stood on the target when the plan was made; None where nothing of ours did.
    """

    job_id: str
    kind: JobKind
    reason: str
    entry: WatchEntry
    upstream: Upstream
    digests: Digests
    tag: str
    source_files: tuple[HubFile, ...]
    refresh_files: tuple[HubFile, ...]
    weight_files: tuple[str, ...] = ()
    estimate: Estimate | None = None
    tensor_parallel: tuple[int, ...] = ()
    warnings: tuple[str, ...] = ()
    replaces: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What will be done, in order, and why the rest will not. deferred: jobs beyond the cap."""

    jobs: tuple[Job, ...]
    skipped: tuple[Skip, ...]
    deferred: tuple[Job, ...] = ()
