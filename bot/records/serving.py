"""What an inference engine is asked before a release, its answer, and how that compares with our evaluation."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

EngineName = Literal["gptqmodel", "vllm"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Engine:
    """An inference engine at an exact version. gptqmodel: transformers with gptqmodel."""

    name: EngineName
    version: str

    def __str__(self) -> str:
        return f"{self.name} {self.version}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """The artifact as our own evaluation reads it, on the first blocks of the evaluation text.

    blocks, prompts: token ids; prompts as the chat template renders them. The others are of each token of a block
    but the first: log_probs in nats; likeliest: the most likely token there; margins: how much likelier it is than
    the second, in nats.
    """

    blocks: tuple[tuple[int, ...], ...]
    log_probs: tuple[tuple[float, ...], ...]
    likeliest: tuple[tuple[int, ...], ...]
    margins: tuple[tuple[float, ...], ...]
    prompts: tuple[tuple[int, ...], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Scores:
    """Of each token of a sequence but the first: its log-probability in nats, and the most likely token's."""

    log_probs: tuple[float, ...]
    likeliest: tuple[int, ...]
    likeliest_log_probs: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineAnswer:
    """scores: of each block. generated: token ids, greedily, after each prompt; generated_scores: of both.

    tokens_per_s: that were generated. kernel: the class of the quantized linears.
    """

    scores: tuple[Scores, ...]
    generated: tuple[tuple[int, ...], ...]
    generated_scores: tuple[Scores, ...]
    tokens_per_s: float
    kernel: str
    device: str
    versions: dict[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """How an engine that loaded the artifact compares with our evaluation of it.

    tokens: that were scored; differences: of their log-probabilities, in nats; agreement: share of the positions
    that are no tie at which both find the same token most likely. new_tokens: generated greedily from prompts, one
    prompt at a time, at tokens_per_s. kernel: the engine's class of the quantized linears.
    """

    engine: EngineName
    version: str
    kernel: str
    device: str
    tokens: int
    mean_difference: float
    max_difference: float
    agreement: float
    new_tokens: int
    tokens_per_s: float
    versions: dict[str, str] = field(default_factory=dict)

    @property
    def is_marlin(self) -> bool:
        return "marlin" in self.kernel.lower()
