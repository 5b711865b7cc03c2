"""What the stages make: weights, artifact, card, provenance, publication."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final, Literal

from bot.records.config import Calibration, Evaluation, EvaluationTask, Recipe
from bot.records.hub import PublishedFile, SourceProvenance, Tag, TargetState
from bot.records.memory import KVCache
from bot.records.report import ExpertTokens, Report
from bot.records.serialization import LATER
from bot.records.workflow import WorkflowRun


@dataclass(frozen=True, slots=True, kw_only=True)
class Weights:
    """The source folder as pulled; every file was checked against the Hub's size and hash."""

    folder: str
    sha: str
    files: tuple[PublishedFile, ...]
    duration_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceCount:
    """What was used of one text source. languages: ISO codes where known.

    rows_left_out: their number by reason, among the rows that were drawn. parts_left_out: pictures and the like in
    the conversations used. replaced_characters: what was no Unicode, in the text used.
    """

    label: str
    documents: int
    tokens: int
    share: float
    duplicates_removed: int = 0
    languages: tuple[str, ...] = ()
    rows_left_out: dict[str, int] = field(default_factory=dict, metadata=LATER)
    parts_left_out: int = field(default=0, metadata=LATER)
    replaced_characters: int = field(default=0, metadata=LATER)

    @property
    def remarks(self) -> str:
        """What could not be used, in words; empty if everything could."""
        by_reason = ", ".join(f"{count:,} {reason}" for reason, count in sorted(self.rows_left_out.items()))
        rows = sum(self.rows_left_out.values())
        return "; ".join(
            f"{words}: {what}"
            for words, what, count in (
                ("rows left out", by_reason, rows),
                ("parts other than text left out", f"{self.parts_left_out:,}", self.parts_left_out),
                ("characters replaced by U+FFFD", f"{self.replaced_characters:,}", self.replaced_characters),
            )
            if count
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class CalibrationSet:
    """The calibration blocks as used. sha256: over the int64 little-endian token ids [samples, seq_len]."""

    samples: int
    seq_len: int
    seed: int
    sha256: str
    sources: tuple[SourceCount, ...]
    distinct_token_share: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ModuleError:
    """One quantized linear. relative_error: ||WX - W_qX||^2 / ||WX||^2 on calibration inputs.

    W: the weights that were rounded, which `awq+gptq` has corrected for what was quantized before; X: what the
    linear reads then.
    """

    layer: int
    module: str
    relative_error: float
    relative_error_rounding: float
    ratio: float | None = None
    clipped_share: float = 0.0
    fallback: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantizedModel:
    """The artifact folder, and everything that was measured while quantizing."""

    folder: str
    files: tuple[PublishedFile, ...]
    recipe: Recipe
    calibration: CalibrationSet
    artifact_dtype: Literal["float16", "bfloat16"]
    modules_to_not_convert: tuple[str, ...]
    modules: tuple[ModuleError, ...]
    quantized_parameters: int
    bits_per_weight: float
    bits_per_weight_file: float
    versions: dict[str, str]
    device: str
    duration_s: float
    layer_durations_s: tuple[float, ...] = ()
    experts: tuple[ExpertTokens, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """The model card, its pictures and provenance.json, in the job's folder `card/`."""

    files: tuple[PublishedFile, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """A release: its tag, the commit that the tag is on, and the sha256 of its provenance.json."""

    tag: str
    commit: str
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LogEntry:
    """previous: the release before this one; None for the first."""

    previous: Link | None


# Of what a card says and how. Increment it when an earlier card would not come out the same from its provenance:
# `lint` then says that a card is of an earlier version instead of calling its words wrong.
CARD_VERSION: Final = 2
MOST_EARLIER: Final = 50  # releases that a provenance lists


@dataclass(frozen=True, slots=True, kw_only=True)
class EarlierRelease:
    """What the card says of a release before its own. The digests show what the next one changed."""

    tag: str
    source_sha: str
    source_digest: str
    refresh_digest: str
    recipe_digest: str
    kl_mean: float
    top1_agreement: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Provenance:
    """provenance.json of a published repo: source, recipe, calibration, tools and files.

    Without dates, durations and local paths: the same job gives the same bytes in the same workflow run. Only
    the speed of engines is measured again.
    modules_to_not_convert: as in config.json; empty in releases of version 0.1. built_by: the run that quantized;
    published_by: the run that wrote this. None outside of GitHub Actions. kv_cache: when it is served.
    earlier: releases, the newest first. card: the CARD_VERSION of its card.
    """

    schema: Literal[1] = 1
    tool: str
    quantizer: int
    tag: str
    source: SourceProvenance
    recipe_digest: str
    recipe: Recipe
    calibration_asked: Calibration
    calibration: CalibrationSet
    report: Report
    artifact_dtype: str
    tensor_parallel: tuple[int, ...]
    device: str
    versions: dict[str, str]
    files: tuple[PublishedFile, ...]
    modules_to_not_convert: tuple[str, ...] = ()
    evaluation_asked: Evaluation = field(default_factory=Evaluation, metadata=LATER)
    tasks_asked: tuple[EvaluationTask, ...] = field(default=(), metadata=LATER)
    log: LogEntry | None = field(default=None, metadata=LATER)
    built_by: WorkflowRun | None = field(default=None, metadata=LATER)
    published_by: WorkflowRun | None = field(default=None, metadata=LATER)
    kv_cache: KVCache | None = field(default=None, metadata=LATER)
    earlier: tuple[EarlierRelease, ...] = field(default=(), metadata=LATER)
    card: int = field(default=1, metadata=LATER)
    notice: str = field(default="", metadata=LATER)  # what the publisher has to say, since it was released

    @property
    def releases(self) -> tuple[EarlierRelease, ...]:
        """This one, and those before it that are known; the newest first."""
        this = EarlierRelease(
            tag=self.tag,
            source_sha=self.source.sha,
            source_digest=self.source.source_digest,
            refresh_digest=self.source.refresh_digest,
            recipe_digest=self.recipe_digest,
            kl_mean=self.report.kl_mean,
            top1_agreement=self.report.top1_agreement,
        )
        return (this, *self.earlier)[:MOST_EARLIER]


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """A target repo on the Hub: its head, its tags, and the provenance on its head if there is one.

    repo_id: the id that the Hub answers with. origin: the same of the repo that the release was made from, if it
    was asked for. provenance_sha256: of the file's bytes. private: None if not known. distrust: why the release is
    not what `signed_by` signed.
    """

    repo_id: str
    state: TargetState
    head: str = ""
    tags: tuple[Tag, ...] = ()
    provenance: Provenance | None = None
    provenance_sha256: str = ""
    private: bool | None = None
    problem: str | None = None
    origin: str | None = None
    distrust: str | None = None

    def is_renamed(self, target: str) -> bool:
        """Names on the Hub ignore case."""
        return self.repo_id.lower() != target.lower()

    @property
    def made_from(self) -> str:
        """The id of the source, by its newest name that is known; empty without a release."""
        return self.origin or (self.provenance.source.repo_id if self.provenance is not None else "")

    def is_made_from(self, *names: str) -> bool:
        """names: of one repo."""
        return self.made_from.lower() in {name.lower() for name in names}

    @property
    def complete(self) -> bool:
        """provenance on the head of main, and the tag that it names points there."""
        return self.provenance is not None and Tag(name=self.provenance.tag, sha=self.head) in self.tags


@dataclass(frozen=True, slots=True, kw_only=True)
class Publication:
    """The published repo. new: False if another run had already published it. notes: what was left undone."""

    repo_id: str
    sha: str
    tag: str
    url: str
    private: bool
    new: bool
    duration_s: float
    provenance_sha256: str = field(default="", metadata=LATER)  # of the published file, for attestations
    notes: tuple[str, ...] = field(default=(), metadata=LATER)


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One check of `verify` or `doctor`. unknown: it could not be made."""

    name: str
    status: Literal["ok", "warning", "failed", "unknown"]
    found: str
    fix: str = ""
