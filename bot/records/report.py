"""What is measured: the report of an evaluation, the calibration tokens of experts, and the gate's verdict."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Final

from bot.records.serialization import LATER
from bot.records.serving import Served

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
class TaskFigures:
    """One metric of a task of lm-eval, as lm-eval names both. Standard errors: None where lm-eval estimates none.

    requests_sha256: over what the models were asked, as JSON: the contexts with the continuations to score.
    """

    task: str
    metric: str
    higher_is_better: bool
    examples: int
    source: float
    source_stderr: float | None
    quantized: float
    quantized_stderr: float | None
    requests_sha256: str

    @property
    def recovery(self) -> float | None:
        """The artifact's value in percent of the source's, the other way round where lower is better."""
        above, below = self.quantized, self.source
        if not self.higher_is_better:
            above, below = below, above
        return 100 * above / below if below else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """Source against artifact, as read back from disk. KL in nats per predicted token; sizes in bytes.

    tokens: of the text; seq_len: of them, in a block; predictions: what the means are over, as the first token of
    a block is not predicted. text_sha256: over the int64 little-endian token ids. kl_mean_rounding: the kl_mean of
    plain rounding in the same format, None where that gives no finite logits. experts: as counted while
    quantizing. sources: each by itself. tasks: of lm-eval, whose version is among the versions.
    served: by each engine of the entry.
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
    tasks: tuple[TaskFigures, ...] = field(default=(), metadata=LATER)
    served: tuple[Served, ...] = field(default=(), metadata=LATER)

    @property
    def captions(self) -> dict[str, str]:
        """What each picture shows."""
        return {path: _CAPTIONS.get(path, "Figure") for path in self.pictures}


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """reasons: why not passed, each with the figure and its threshold."""

    passed: bool
    reasons: tuple[str, ...] = ()
