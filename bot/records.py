"""The frozen records that flow between the rooms, and their JSON.

watchlist.yaml -> WatchEntry; Hub -> Upstream, Published; together -> Skip | Candidate -> Job -> Plan;
Job -> Weights -> CalibrationSet -> QuantizedModel -> Report -> Verdict -> Publication. On GitHub Actions every leg
leaves a JobResult, and what failed leaves Attempts.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field, is_dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any, Literal, Protocol, TypeVar

from pydantic import TypeAdapter

Record = TypeVar("Record")


class Progress(Protocol):
    """How long work tells how far it is: what it is doing, and how much of how many units are done."""

    def __call__(self, what: str, done: int, total: int, unit: str) -> None: ...


def no_progress(what: str, done: int, total: int, unit: str) -> None:
    """For callers that do not want to watch."""


# --- what a person asked for -------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """How to quantize. group_size in input channels; modules by full path: `model.layers.3.mlp.gate`."""

    bits: int = 4
    group_size: int = 128
    zero_point: bool = True
    version: Literal["gemm"] = "gemm"
    search: str = "gram"
    modules_to_not_convert: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class TextSource:
    """One source of calibration text; exactly one of builtin, file and dataset is set.

    sha256: the file's content, so that an edited file is a changed recipe. weight: relative share of tokens.
    """

    builtin: str | None = None
    file: str | None = None
    sha256: str | None = None
    dataset: str | None = None
    revision: str | None = None
    split: str | None = None
    column: str | None = None
    weight: float = 1.0

    @property
    def label(self) -> str:
        if self.dataset:
            return f"{self.dataset}@{(self.revision or '')[:8]}"
        return self.file or f"builtin:{self.builtin}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """What to calibrate on: `samples` blocks of exactly `seq_len` tokens, drawn by `seed`."""

    samples: int = 128
    seq_len: int = 512
    seed: int = 0
    sources: tuple[TextSource, ...] = (TextSource(builtin="stdlib"),)


@dataclass(frozen=True, slots=True, kw_only=True)
class Thresholds:
    """What may be lost at most. max_kl in nats per predicted token; min_top1 as a share of 1."""

    max_kl: float = 0.10
    min_top1: float = 0.85
    max_perplexity_ratio: float = 1.10


@dataclass(frozen=True, slots=True, kw_only=True)
class Licenses:
    """Licence ids as the Hub writes them. allow empty: any that is stated; deny wins."""

    allow: tuple[str, ...] = ()
    deny: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class WatchEntry:
    """One validated model of the watchlist."""

    repo_id: str
    revision: str = "main"
    target: str
    recipe: Recipe = field(default_factory=Recipe)
    calibration: Calibration = field(default_factory=Calibration)
    gate: Thresholds = field(default_factory=Thresholds)
    licenses: Licenses = field(default_factory=Licenses)
    hold: str | None = None
    priority: int = 0
    private: bool = False
    requantize: Literal["changed", "outdated"] = "changed"
    trust_remote_code: bool = False
    line: int = 0


# --- what was read on the Hub -------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class HubFile:
    """One file of a repo. content_hash, as the Hub tells it: sha256 of LFS files, git blob sha1 of others."""

    path: str
    size_bytes: int
    content_hash: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Upstream:
    """A source repo at one commit, from a single API call. problem: why it could not be read, in short."""

    repo_id: str
    sha: str = ""
    files: tuple[HubFile, ...] = ()
    license: str | None = None
    license_name: str | None = None
    license_link: str | None = None
    languages: tuple[str, ...] = ()
    pipeline_tag: str | None = None
    tags: tuple[str, ...] = ()
    gated: str | None = None
    private: bool = False
    problem: str | None = None

    def file(self, path: str) -> HubFile | None:
        return next((file for file in self.files if file.path == path), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorInfo:
    """One entry of a safetensors header. dtype as safetensors writes it: F16, BF16, F32, I32, ..."""

    name: str
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Details:
    """What the plan reads of a new release besides the listing: config, weight files and headers, by Range.

    problem: what is wrong with the upload or our access to it, in a few words.
    """

    config: dict[str, Any] = field(default_factory=dict)
    weight_files: tuple[str, ...] = ()
    tensors: tuple[TensorInfo, ...] = ()
    problem: str | None = None
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceProvenance:
    """Which upstream files, at which commit, an artifact was made of."""

    repo_id: str
    revision: str
    sha: str
    gated: str | None
    source_files: tuple[HubFile, ...]
    refresh_files: tuple[HubFile, ...]
    source_digest: str
    refresh_digest: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishedFile:
    """A file of an artifact as it was sent."""

    path: str
    size_bytes: int
    sha256: str


class TargetState(StrEnum):
    """What stands where we mean to publish."""

    ABSENT = "absent"
    EMPTY = "empty"  # nothing but the initial commit: ours to fill
    FOREIGN = "foreign"  # content without our provenance
    UNREADABLE = "unreadable"  # see the problem
    OURS = "ours"


@dataclass(frozen=True, slots=True, kw_only=True)
class Tag:
    name: str
    sha: str


# --- decisions ----------------------------------------------------------------------------------------------


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
    """What a job will need, in bytes and seconds; an estimate before any download."""

    download_bytes: int
    output_bytes: int
    vram_bytes: int
    ram_bytes: int
    disk_bytes: int
    duration_s: float
    parameters: int


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
    modules_to_not_convert: tuple[str, ...] = ()
    estimate: Estimate | None = None
    runner_labels: tuple[str, ...] = ()
    tensor_parallel: tuple[int, ...] = ()
    warnings: tuple[str, ...] = ()
    replaces: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What will be done, in order, and why the rest will not. deferred: jobs beyond the cap."""

    jobs: tuple[Job, ...]
    skipped: tuple[Skip, ...]
    deferred: tuple[Job, ...] = ()


# --- what a stage made --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Weights:
    """The source folder as pulled, every file verified against the Hub's size and hash."""

    folder: str
    sha: str
    files: tuple[PublishedFile, ...]
    duration_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceCount:
    """What one text source really gave. languages: ISO codes where known."""

    label: str
    documents: int
    tokens: int
    share: float
    duplicates_removed: int = 0
    languages: tuple[str, ...] = ()


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
    """One quantized linear. relative_error: ||WX - W_qX||^2 / ||WX||^2 on calibration inputs."""

    layer: int
    module: str
    relative_error: float
    relative_error_rounding: float
    ratio: float | None = None
    clipped_share: float = 0.0
    fallback: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantizedModel:
    """The artifact folder: shards, index and config, and everything that was measured while making it."""

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


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """Source against artifact, as read back from disk. KL in nats per predicted token; sizes in bytes."""

    perplexity_source: float
    perplexity_quantized: float
    kl_mean: float
    kl_p99: float
    top1_agreement: float
    bits_per_weight: float
    bits_per_weight_file: float
    size_source_bytes: int
    size_quantized_bytes: int
    tokens: int
    text_label: str
    text_sha256: str
    versions: dict[str, str] = field(default_factory=dict)
    pictures: tuple[str, ...] = ()
    duration_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """passed, or the reasons why not, each naming the figure and its threshold."""

    passed: bool
    reasons: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """The model card, its pictures and provenance.json, in the job's folder `card/`."""

    files: tuple[PublishedFile, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Provenance:
    """provenance.json of a published repo: what was made from what, with which tools.

    Holds no dates, durations or local paths, so that the same job makes the same bytes.
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """A target repo as found: its head, its tags, and the provenance on its head if there is one.

    private: None where nobody asked.
    """

    repo_id: str
    state: TargetState
    head: str = ""
    tags: tuple[Tag, ...] = ()
    provenance: Provenance | None = None
    private: bool | None = None
    problem: str | None = None

    @property
    def complete(self) -> bool:
        """provenance on the head of main, and the tag that it names points there."""
        return self.provenance is not None and Tag(name=self.provenance.tag, sha=self.head) in self.tags


@dataclass(frozen=True, slots=True, kw_only=True)
class Publication:
    """What stands on the Hub now. new: false when somebody had already done it."""

    repo_id: str
    sha: str
    tag: str
    url: str
    private: bool
    new: bool
    duration_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class SmallFiles:
    """Upstream's small files as a refresh publishes them, after they were tried."""

    files: tuple[PublishedFile, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One thing that was looked at, by `verify` or `doctor`. unknown: it could not be looked at."""

    name: str
    status: Literal["ok", "warning", "failed", "unknown"]
    found: str
    fix: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempts:
    """How often something was tried in vain, as its open issue says. content: what was tried, by digest.

    next_try: not before this time, ISO 8601 in UTC. issue: its number. run: the run that counted last.
    """

    target: str
    content: str
    count: int = 0
    next_try: str | None = None
    waits_for_person: bool = False
    issue: int | None = None
    run: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class JobResult:
    """How one leg of a workflow ended, as it wrote it down. stage: quantize, publish or refresh."""

    job_id: str
    target: str
    repo_id: str
    content: str
    stage: str
    status: Literal["quantized", "published", "unchanged", "failed"]
    exit_code: int = 0
    message: str = ""
    hint: str = ""
    report: Report | None = None
    publication: Publication | None = None
    duration_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class RunningJob:
    """A job of a workflow run, as the API tells. stage and target: taken from its name.

    runner: the machine that took it; empty while none has.
    """

    stage: str
    target: str
    status: str
    conclusion: str | None = None
    url: str = ""
    runner: str = ""
    created: datetime | None = None
    started: datetime | None = None
    completed: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanTimes:
    """When the watch made a plan last. oldest_run: of those looked at, where none of them has one."""

    last_good: datetime | None = None
    oldest_run: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """How a stage ended badly, as its own process wrote it down."""

    stage: str
    exit_code: int
    message: str
    hint: str


# --- JSON ---------------------------------------------------------------------------------------------------


def to_json(value: object) -> str:
    """Records as objects and tuples as lists, wherever they are in the value."""
    return json.dumps(value, indent=2, ensure_ascii=False, default=_as_dict) + "\n"


def from_json(kind: type[Record], text: str | bytes) -> Record:
    """Raises pydantic.ValidationError (a ValueError) when the text is not such a record."""
    return TypeAdapter(kind).validate_json(text)


def canonical_json(value: object) -> bytes:
    """One byte sequence per value: sorted keys, no spaces, UTF-8."""
    text = json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False, default=_as_dict
    )
    return text.encode()


def _as_dict(record: object) -> dict[str, Any]:
    if not is_dataclass(record) or isinstance(record, type):
        raise TypeError(f"{type(record).__name__} is no record")
    return asdict(record)


def sha256_of(value: object) -> str:
    return hashlib.sha256(canonical_json(value)).hexdigest()
