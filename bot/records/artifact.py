"""What the stages make: weights, artifact, report, card, provenance, publication."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Final, Literal

from bot.records.config import Calibration, Evaluation, Recipe
from bot.records.hub import PublishedFile, SourceProvenance, Tag, TargetState
from bot.records.serialization import LATER

# Text in a language that a model was trained on lies far below.
UNKNOWN_TEXT_PERPLEXITY: Final = 1000

# The pictures of a card, and what they show.
ERROR_BY_LAYER: Final = "assets/error-by-layer.png"
KL_BY_POSITION: Final = "assets/kl-by-position.png"
_CAPTIONS: Final = {
    ERROR_BY_LAYER: "Relative error of each quantized linear by layer, on calibration inputs",
    KL_BY_POSITION: "KL divergence to the source by position in a block of tokens, for each text",
}


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
class ExpertTokens:
    """How many calibration tokens the experts of one layer saw. lowest, median: of one expert; unseen: experts."""

    layer: int
    experts: int
    lowest: int
    median: float
    unseen: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertsOfModel:
    """The layers with experts together. fewest, most: experts in a layer; median: of the layers' medians."""

    layers: int
    fewest: int
    most: int
    lowest: int
    median: float
    unseen_share: float

    @property
    def in_a_layer(self) -> str:
        return str(self.most) if self.fewest == self.most else f"{self.fewest} to {self.most}"

    @property
    def label(self) -> str:
        """On one line, for a log."""
        layers = "1 layer" if self.layers == 1 else f"{self.layers} layers"
        unseen = f"{self.unseen} saw none" if self.unseen_share else "each saw some"
        return (
            f"{self.in_a_layer} in {layers}; calibration tokens per expert: lowest {self.lowest:,}, "
            f"median {self.median:,.0f}; {unseen}"
        )

    @property
    def unseen(self) -> str:
        """The share of experts without a calibration token, in words."""
        if 0 < self.unseen_share < 0.001:
            return "less than 0.1 %"
        return f"{100 * self.unseen_share:.1f} %" if self.unseen_share else "none"


def experts_of_model(by_layer: Sequence[ExpertTokens]) -> ExpertsOfModel | None:
    """None for a model without experts."""
    if not by_layer:
        return None
    total = sum(layer.experts for layer in by_layer)
    return ExpertsOfModel(
        layers=len({layer.layer for layer in by_layer}),
        fewest=min(layer.experts for layer in by_layer),
        most=max(layer.experts for layer in by_layer),
        lowest=min(layer.lowest for layer in by_layer),
        median=median(layer.median for layer in by_layer),
        unseen_share=sum(layer.unseen for layer in by_layer) / max(1, total),
    )


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
class EvaluationText:
    """What was used of one source of evaluation text. blocks: of tokens, after those of the source before it.

    documents_left_out: as they share text with calibration.
    """

    label: str
    blocks: int
    documents_left_out: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceFigures:
    """What was measured on the tokens of one source; the units are those of a Report.

    documents_left_out: as they share text with calibration. sha256: as text_sha256, of these tokens alone.
    kl_by_position: the mean over equal parts of a block, from its beginning to its end.
    """

    label: str
    predictions: int
    perplexity_source: float
    perplexity_quantized: float
    kl_mean: float
    top1_agreement: float
    documents_left_out: int = field(default=0, metadata=LATER)
    kl_mean_rounding: float | None = field(default=None, metadata=LATER)
    kl_by_position: tuple[float, ...] = field(default=(), metadata=LATER)
    sha256: str = field(default="", metadata=LATER)

    @property
    def remarks(self) -> str:
        """What a reader of the figures should know; empty if there is nothing."""
        found = []
        if self.documents_left_out:
            documents = (
                "1 document that shares"
                if self.documents_left_out == 1
                else (f"{self.documents_left_out:,} documents that share")
            )
            found.append(f"{documents} text with calibration left out")
        if self.perplexity_source > UNKNOWN_TEXT_PERPLEXITY:
            found.append(
                f"the source's own perplexity is {self.perplexity_source:,.0f}: does it know this language?"
            )
        return "; ".join(found)


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """Source against artifact, as read back from disk. KL in nats per predicted token; sizes in bytes.

    tokens: of the text; seq_len: of them, in a block; predictions: what the means are over, as the first token of
    a block is not predicted. text_sha256: over the int64 little-endian token ids. kl_mean_rounding: the kl_mean of
    plain rounding in the same format, None where that gives no finite logits. experts: as counted while
    quantizing. sources: each by itself.
    """

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
    experts: tuple[ExpertTokens, ...] = ()
    predictions: int = field(default=0, metadata=LATER)
    sources: tuple[SourceFigures, ...] = field(default=(), metadata=LATER)
    kl_mean_rounding: float | None = field(default=None, metadata=LATER)
    seq_len: int = field(default=0, metadata=LATER)

    @property
    def captions(self) -> dict[str, str]:
        """What each picture shows."""
        return {path: _CAPTIONS.get(path, "Figure") for path in self.pictures}


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """reasons: why not passed, each with the figure and its threshold."""

    passed: bool
    reasons: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """The model card, its pictures and provenance.json, in the job's folder `card/`."""

    files: tuple[PublishedFile, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Provenance:
    """provenance.json of a published repo: source, recipe, calibration, tools and files.

    Without dates, durations and local paths, so that the same job gives the same bytes. modules_to_not_convert: as
    in config.json; empty in releases of version 0.1.
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """A target repo on the Hub: its head, its tags, and the provenance on its head if there is one.

    repo_id: the id that the Hub answers with. origin: the same of the repo that the release was made from, if it
    was asked for. private: None if not known.
    """

    repo_id: str
    state: TargetState
    head: str = ""
    tags: tuple[Tag, ...] = ()
    provenance: Provenance | None = None
    private: bool | None = None
    problem: str | None = None
    origin: str | None = None

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
    """The published repo. new: False if another run had already published it."""

    repo_id: str
    sha: str
    tag: str
    url: str
    private: bool
    new: bool
    duration_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One check of `verify` or `doctor`. unknown: it could not be made."""

    name: str
    status: Literal["ok", "warning", "failed", "unknown"]
    found: str
    fix: str = ""
