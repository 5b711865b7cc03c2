"""What a person asked for in the watchlist."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import floor
from pathlib import PurePath
from typing import Annotated, Literal

from pydantic import AliasChoices, BeforeValidator, Field

from bot.records.serialization import LATER
from bot.records.serving import Engine

# Text that needs no network. `stdlib` is the older name of `code`, which published digests hold.
Builtin = Literal["prose", "code", "dialogue", "stdlib"]

# AWQ's scales and clipping with error-compensated rounding as in GPTQ, or AutoAWQ's own search.
Method = Literal["awq+gptq", "awq"]
_EARLIER_METHODS = {"gram": "awq+gptq"}  # as `search` named it in records of version 0.1


def _method(value: object) -> object:
    return _EARLIER_METHODS.get(value, value) if isinstance(value, str) else value


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """How to quantize. group_size in input channels; modules by full path: `model.layers.3.mlp.gate`.

    max_unquantized_share: of the weights in a model's layers that may stay unquantized because of their shapes.
    """

    bits: int = 4
    group_size: int = 128
    zero_point: bool = True
    version: Literal["gemm"] = "gemm"
    method: Annotated[
        Method, Field(validation_alias=AliasChoices("method", "search")), BeforeValidator(_method)
    ] = "awq+gptq"
    modules_to_not_convert: tuple[str, ...] = ()
    max_unquantized_share: float = 0.2


CHAT_COLUMNS = ("messages", "conversations")  # as data sets name the column that holds chats


@dataclass(frozen=True, slots=True, kw_only=True)
class TextSource:
    """One source of text; exactly one of builtin, file and dataset is set.

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

    @property
    def is_chat(self) -> bool:
        """Whether its column says that it holds chats; without `column`, only reading it tells."""
        return self.column in CHAT_COLUMNS

    @property
    def evaluation_label(self) -> str:
        """With the split, as that is what differs from calibration; of a local file its name."""
        if self.builtin:
            return f"{self.label} (test split)"
        if self.file and self.sha256 is None:
            return PurePath(self.file).name
        return f"{self.label} ({self.split})" if self.split else self.label


# What to calibrate and measure on where no text was named and no data set can be read.
DEFAULT_BUILTIN: tuple[Builtin, ...] = ("prose", "code", "dialogue")
BUILTIN_TEXTS = tuple(TextSource(builtin=name) for name in DEFAULT_BUILTIN)


def blocks_by_weight(weights: Sequence[float], blocks: int) -> tuple[int, ...]:
    """Blocks of each source, largest remainder first, so that they add up to exactly `blocks`."""
    exact = [blocks * weight / sum(weights) for weight in weights]
    counts = [floor(value) for value in exact]
    by_remainder = sorted(range(len(exact)), key=lambda index: (counts[index] - exact[index], index))
    for index in by_remainder[: blocks - sum(counts)]:
        counts[index] += 1
    return tuple(counts)


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """What to calibrate on: `samples` blocks of exactly `seq_len` tokens, drawn with the random seed `seed`.

    The default sources are those of version 0.1, as in the JSON that it wrote.
    """

    samples: int = 128
    seq_len: int = 512
    seed: int = 0
    sources: tuple[TextSource, ...] = (TextSource(builtin="stdlib"),)


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """What to measure on: `tokens` tokens, shared among the sources by weight. The default: as in version 0.1."""

    tokens: int = 32_768
    sources: tuple[TextSource, ...] = (TextSource(builtin="stdlib"),)

    @property
    def label(self) -> str:
        *labels, last = (source.evaluation_label for source in self.sources)
        return f"{', '.join(labels)} and {last}" if labels else last


@dataclass(frozen=True, slots=True, kw_only=True)
class PinnedFile:
    """A local file, its path relative to the watchlist."""

    path: str
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationTask:
    """A task of lm-eval to measure on: a local one has `file` and `data`, one of the package a pinned data set.

    data: the files of examples that the file names. limit: to so many examples, the first; None for all.
    """

    name: str
    file: PinnedFile | None = None
    data: tuple[PinnedFile, ...] = ()
    dataset: str | None = None
    revision: str | None = None
    limit: int | None = None

    @property
    def sources(self) -> tuple[TextSource, ...]:
        """What it reads, as texts are read."""
        if self.file is None:
            return (TextSource(dataset=self.dataset, revision=self.revision),)
        return tuple(TextSource(file=file.path, sha256=file.sha256) for file in (self.file, *self.data))


@dataclass(frozen=True, slots=True, kw_only=True)
class Thresholds:
    """The quality gate. max_kl in nats per predicted token; min_top1 as a share of 1.

    max_unseen_experts: of the experts of one layer, the share that saw no calibration token.
    """

    max_kl: float = 0.10
    min_top1: float = 0.85
    max_perplexity_ratio: float = 1.10
    max_unseen_experts: float = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class Licenses:
    """Licence ids as the Hub writes them. An empty allow permits any that is stated; deny wins.

    https://huggingface.co/docs/hub/repositories-licenses
    """

    allow: tuple[str, ...] = ()
    deny: tuple[str, ...] = ()


# OIDC identities: a workflow of GitHub's, or another with its issuer. No character means anything to a shell.
_HEX = "[0-9a-f]{64}"
_URL_PART = r"[A-Za-z0-9._~:/%+-]+"
_WORKFLOW = rf"{_URL_PART}(\*)?@{_URL_PART}"  # `*` for every workflow of a repository
_ON_GITHUB = "https://token.actions.githubusercontent.com"
_IDENTITY = f"{_URL_PART}@{_URL_PART}"
SIGNER = rf"^((key|certificate):{_HEX}|https://github\.com/{_WORKFLOW}|{_IDENTITY} from https://{_URL_PART})$"


@dataclass(frozen=True, slots=True, kw_only=True)
class Signer:
    """Who signs releases. value: of a key, sha256 of its public PEM; of a certificate of authority, of its DER."""

    kind: Literal["key", "certificate", "identity"]
    value: str
    issuer: str = ""

    def includes(self, found: Signer) -> bool:
        """Whether `found`, who signed, is whom this one names: itself, or a workflow where this has `*`."""
        before, star, after = self.value.partition("*")
        if self.kind != "identity" or not star:
            return found == self
        workflow = found.value.removeprefix(before).removesuffix(after)
        same = (found.kind, found.issuer, found.value) == ("identity", self.issuer, f"{before}{workflow}{after}")
        return same and re.fullmatch(r"[\w.-]+\.ya?ml", workflow) is not None

    def __str__(self) -> str:
        """As `signed_by` and `--require-signature` have it."""
        if self.kind != "identity":
            return f"{self.kind}:{self.value}"
        is_usual = self.issuer == _ON_GITHUB and self.value.startswith("https://github.com/")
        return self.value if is_usual else f"{self.value} from {self.issuer}"


def read_signer(text: str) -> Signer | None:
    """None: no signer can be called so."""
    if re.fullmatch(SIGNER, text) is None:
        return None
    kind, _, value = text.partition(":")
    if kind in ("key", "certificate") and re.fullmatch(_HEX, value):
        return Signer(kind="key" if kind == "key" else "certificate", value=value)
    identity, _, issuer = text.partition(" from ")
    return Signer(kind="identity", value=identity, issuer=issuer or _ON_GITHUB)


@dataclass(frozen=True, slots=True, kw_only=True)
class WatchEntry:
    """One validated model of the watchlist. signed_by: who must have signed what is published.

    serve: engines that must load a release before it is published.
    settle_s: how old a new release's weights must be, in seconds. found: by a rule of `discover`, whose line it
    then has.
    """

    repo_id: str
    revision: str = "main"
    target: str
    recipe: Recipe = field(default_factory=Recipe)
    calibration: Calibration = field(default_factory=Calibration)
    evaluation: Evaluation = field(default_factory=Evaluation, metadata=LATER)
    tasks: tuple[EvaluationTask, ...] = field(default=(), metadata=LATER)
    serve: tuple[Engine, ...] = field(default=(), metadata=LATER)
    gate: Thresholds = field(default_factory=Thresholds)
    licenses: Licenses = field(default_factory=Licenses)
    hold: str | None = None
    priority: int = 0
    private: bool = False
    requantize: Literal["changed", "outdated"] = "changed"
    trust_remote_code: bool = False
    signed_by: Signer | None = field(default=None, metadata=LATER)
    settle_s: int = field(default=0, metadata=LATER)
    found: bool = field(default=False, metadata=LATER)
    collections: tuple[str, ...] = field(default=(), metadata=LATER)
    line: int = 0
