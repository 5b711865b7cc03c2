"""Decisions, and what they need."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from bot.records.artifact import EarlierRelease
from bot.records.config import Evaluation, EvaluationTask, TextSource, WatchEntry
from bot.records.discovery import LeftOut, Proposal
from bot.records.hub import HubFile, Upstream
from bot.records.memory import KVCache
from bot.records.serialization import LATER, sha256_of
from bot.records.serving import Engine


@dataclass(frozen=True, slots=True, kw_only=True)
class Digests:
    """sha256 (hex) of the source files, of the small files, and of the recipe; content: of all three."""

    source: str
    refresh: str
    recipe: str

    @property
    def content(self) -> str:
        return sha256_of([self.source, self.refresh, self.recipe])


@dataclass(frozen=True, slots=True, kw_only=True)
class Skip:
    """No job, and why. blocked: a person may want to change that, unlike `up to date`."""

    entry: WatchEntry
    reason: str
    hint: str = ""
    blocked: bool = False
    exit_code: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """What a job will need, in bytes, and seconds on a GPU; estimated before anything is downloaded.

    quantized_share: of the weights in the decoder layers. experts: in each mixture, of which a token passes
    through experts_per_token; 0 without mixtures, or where the config does not say.
    """

    download_bytes: int
    output_bytes: int
    vram_bytes: int
    ram_bytes: int
    disk_bytes: int
    duration_s: float
    parameters: int
    float_operations: float = 0.0
    quantized_share: float = 0.0
    experts: int = 0
    experts_per_token: int = 0


class JobKind(StrEnum):
    RELEASE = "release"  # pull, quantize, evaluate, card, publish
    REFRESH = "refresh"  # republish small files, no GPU
    FINISH = "finish"  # a publication that was cut short: read back, settings, tag


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One piece of work, pinned to a commit. A runner gets this record and nothing else.

    replaces: the tag that the target had when the plan was made; None where it had no release of ours. earlier:
    its releases, the newest first. kv_cache: of the artifact when it is served; None in a job without a GPU.
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
    kv_cache: KVCache | None = None
    earlier: tuple[EarlierRelease, ...] = ()
    warnings: tuple[str, ...] = ()
    replaces: str | None = None

    @property
    def attempt_digest(self) -> str:
        """What failed attempts are counted for: content, gate, what it is measured on, and engines."""
        asked: list[object] = [self.digests.content, self.entry.gate]
        # Version 0.1 had one text, and no tasks.
        asked += [self.entry.evaluation] if self.entry.evaluation != Evaluation() or self.entry.tasks else []
        asked += [part for part in (self.entry.tasks, self.entry.serve) if part]
        return sha256_of(asked)

    @property
    def tasks(self) -> tuple[EvaluationTask, ...]:
        """A refresh and a finish measure nothing."""
        return self.entry.tasks if self.kind is JobKind.RELEASE else ()

    @property
    def engines(self) -> tuple[Engine, ...]:
        """That must load the artifact; a refresh and a finish have the weights of a release."""
        return self.entry.serve if self.kind is JobKind.RELEASE else ()

    @property
    def texts(self) -> tuple[TextSource, ...]:
        """What it calibrates and measures on, each once; a refresh and a finish read no text."""
        if self.kind is not JobKind.RELEASE:
            return ()
        of_tasks = (source for task in self.tasks for source in task.sources)
        read = (*self.entry.calibration.sources, *self.entry.evaluation.sources, *of_tasks)
        return tuple(dict.fromkeys(read))


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The jobs in order, and why there is none for the other models. deferred: jobs beyond the cap.

    only: the one model that was looked at, if not the full watchlist.
    proposals, left_out, notes, unlisted: as the rules of `discover` found them. proposing: the authors, in lower
    case, whose pull request has to be opened, updated or closed.
    """

    jobs: tuple[Job, ...]
    skipped: tuple[Skip, ...]
    deferred: tuple[Job, ...] = ()
    proposals: tuple[Proposal, ...] = ()
    left_out: tuple[LeftOut, ...] = ()
    notes: tuple[str, ...] = ()
    unlisted: tuple[str, ...] = ()
    proposing: tuple[str, ...] = ()
    only: str | None = field(default=None, metadata=LATER)
