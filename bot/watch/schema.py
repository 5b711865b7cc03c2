"""The watchlist's keys as pydantic models, and the JSON Schema made from them for editors."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from bot.checkpoint.constants import (
    EVALUATION_SEQ_LEN,
    MAX_EVALUATION_TOKENS,
    MAX_SAMPLES,
    MIN_EVALUATION_BLOCKS,
    MIN_SAMPLES,
)
from bot.records.config import DEFAULT_BUILTIN, Builtin, Evaluation, Method
from bot.watch.names import REPO_ID
from bot.watch.values import (
    MAX_REPO_ID,
    CollectionTitle,
    Count,
    Day,
    EngineVersion,
    FilePath,
    FullSha,
    Globs,
    LicenseId,
    ModulePath,
    Namespace,
    RepoId,
    Revision,
    SignerText,
    TaskName,
    TaskPath,
    Text,
    Wait,
)

SCHEMA_FILE = Path(__file__).with_name("watchlist.schema.json")
EXAMPLE_NAMESPACE = "your-namespace"  # as it stands in the template's watchlist


class _Spec(BaseModel):
    # Editors show the docstring below a key.
    model_config = ConfigDict(
        extra="forbid", strict=True, frozen=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


class RecipeSpec(_Spec):
    """How to quantize."""

    bits: Literal[4] = 4
    group_size: Literal[32, 64, 128] = 128
    """Input channels that share a scale: fewer lose less and take more space."""
    zero_point: Literal[True] = True
    version: Literal["gemm"] = "gemm"
    method: Method = "awq+gptq"
    """`awq+gptq`: AWQ scaling and clipping, then error-compensated rounding (GPTQ); `awq`: AutoAWQ's search."""
    modules_to_not_convert: tuple[ModulePath, ...] = Field(default=(), strict=False)
    """Full paths of linears to leave as they are, such as model.layers.0.self_attn.q_proj."""
    max_unquantized_share: Annotated[float, Field(ge=0, le=1)] = 0.2
    """Share of the weights in a model's layers, from 0 to 1, that may stay unquantized because of their shapes."""


class SourceSpec(_Spec):
    """One of `builtin`, `file` and `dataset`."""

    model_config = ConfigDict(
        json_schema_extra={"oneOf": [{"required": [name]} for name in ("builtin", "file", "dataset")]}
    )

    builtin: Builtin | None = None
    """Text that needs no network: `prose`, `code` or `dialogue`; `stdlib` is the older name of `code`."""
    file: FilePath | None = None
    """A file of text or chats, relative to the watchlist."""
    dataset: RepoId | None = None
    """A data set on the Hub, pinned by `revision`."""
    revision: FullSha | None = None
    """The data set's full commit sha."""
    split: Text | None = None
    """The data set's split; with the configuration before it where there are several: wikitext-2-raw-v1/train."""
    column: Text | None = None
    """Where the text or the chat messages are."""
    weight: Annotated[float, Field(gt=0, le=1000)] = 1.0
    """Share of the tokens, relative to the other sources."""

    @model_validator(mode="after")
    def _one_kind(self) -> SourceSpec:
        for message in source_mistakes(dict(self)):
            raise PydanticCustomError("source", "{message}", {"message": message})
        return self


def source_mistakes(source: Mapping[str, object]) -> list[str]:
    """Keys of one source that are missing or do not go together. Looks at no values."""
    given = {key for key, value in source.items() if value is not None}
    found = []
    if len(given & {"builtin", "file", "dataset"}) != 1:
        found.append("a source is one of `builtin`, `file` or `dataset`")
    if "dataset" in given and "revision" not in given:
        found.append("a data set needs `revision`, the full commit sha to pin it to")
    if "dataset" not in given:
        found += [f"`{key}` is for data sets only" for key in ("revision", "split") if key in given]
    if {"builtin", "column"} <= given:
        found.append("`column` is for files and data sets only")
    return found


def _not_empty(sources: tuple[SourceSpec, ...]) -> tuple[SourceSpec, ...]:
    if not sources:
        raise PydanticCustomError("source", "`sources` is empty")
    return sources


SourceSpecs = Annotated[
    tuple[SourceSpec, ...], Field(strict=False, json_schema_extra={"minItems": 1}), AfterValidator(_not_empty)
]


def _general_and_chat(text_split: str, chat_split: str) -> tuple[SourceSpec, ...]:
    """Half and half, each pinned to a commit."""
    return (
        SourceSpec(
            dataset="Salesforce/wikitext",
            revision="b08601e04326c79dfdd32d625aee71d232d685c3",
            split=text_split,
            column="text",
        ),
        SourceSpec(
            dataset="HuggingFaceH4/ultrachat_200k",
            revision="8049631c405ae6576f93f445c6b8166f76f5505a",
            split=chat_split,
            column="messages",
        ),
    )


class CalibrationSpec(_Spec):
    """The text whose activations decide the scales."""

    samples: Annotated[int, Field(ge=MIN_SAMPLES, le=MAX_SAMPLES)] = 128
    """Blocks of calibration tokens."""
    seq_len: Annotated[int, Field(ge=32, le=32_768)] = 512
    """Tokens in a block."""
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    """Random seed for drawing the blocks."""
    sources: SourceSpecs = _general_and_chat("wikitext-2-raw-v1/train", "train_sft")
    """Where the text comes from."""


class EvaluationSpec(_Spec):
    """The text that the loss is measured on; none of it is used for calibration."""

    tokens: Annotated[int, Field(ge=MIN_EVALUATION_BLOCKS * EVALUATION_SEQ_LEN, le=MAX_EVALUATION_TOKENS)] = (
        Evaluation().tokens
    )
    """Tokens of all sources together."""
    sources: SourceSpecs = _general_and_chat("wikitext-2-raw-v1/test", "test_sft")
    """Where the text comes from. Without this key, and where calibration reads no data set: built-in text."""


class TaskSpec(_Spec):
    """A task of lm-eval: a local `file`, or a `task` of the package with its data set pinned."""

    model_config = ConfigDict(
        json_schema_extra={
            "oneOf": [{"required": ["file"]}, {"required": ["task", "dataset", "revision"]}],
        }
    )

    file: TaskPath | None = None
    """A local task file, relative to the watchlist; the data files that it names are relative to it."""
    task: TaskName | None = None
    """The name of one of lm-eval's own tasks."""
    dataset: RepoId | None = None
    """The data set on the Hub that this task reads."""
    revision: FullSha | None = None
    """The data set's full commit sha."""
    limit: Annotated[int, Field(ge=2, le=100_000)] | None = None
    """Only so many examples, the first. Default: all."""

    @model_validator(mode="after")
    def _one_kind(self) -> TaskSpec:
        for message in task_mistakes(dict(self)):
            raise PydanticCustomError("task", "{message}", {"message": message})
        return self


def task_mistakes(task: Mapping[str, object]) -> list[str]:
    """Keys of one task that are missing or do not go together. Looks at no values."""
    given = {key for key, value in task.items() if value is not None}
    if len(given & {"file", "task"}) != 1:
        return ["a task is one of `file` or `task`"]
    if "file" in given:
        return [f"`{key}` is for lm-eval's own tasks only" for key in ("dataset", "revision") if key in given]
    words = {"dataset": "the data set that it reads", "revision": "the full commit sha to pin its data set to"}
    return [f"one of lm-eval's tasks needs `{key}`, {what}" for key, what in words.items() if key not in given]


def evaluation_sources(evaluation: EvaluationSpec, calibration: CalibrationSpec) -> tuple[SourceSpec, ...]:
    """What was asked for.

    By default data sets are read where calibration reads some: else no Hub is needed. Of built-in text, evaluation
    then reads the other split of what calibration reads, or all of it.
    """
    reads_datasets = any(source.dataset for source in calibration.sources)
    if "sources" in evaluation.model_fields_set or reads_datasets:
        return evaluation.sources
    builtin = dict.fromkeys(source.builtin for source in calibration.sources if source.builtin)
    return tuple(SourceSpec(builtin=name) for name in builtin or DEFAULT_BUILTIN)


class GateSpec(_Spec):
    """The quality gate: a model that loses more is not published."""

    max_kl: Annotated[float, Field(gt=0)] = 0.10
    """Mean KL divergence to the source, in nats per token."""
    min_top1: Annotated[float, Field(ge=0, le=1)] = 0.85
    """Share of tokens, from 0 to 1, for which both models predict the same next token."""
    max_perplexity_ratio: Annotated[float, Field(ge=1)] = 1.10
    """Perplexity divided by that of the source."""
    max_unseen_experts: Annotated[float, Field(ge=0, le=1)] = 0.05
    """Share of a layer's experts, from 0 to 1, that saw no calibration token. For mixtures of experts."""


class ServeSpec(_Spec):
    """Inference engines that must load the artifact before it is published, each at an exact version."""

    gptqmodel: EngineVersion | None = None
    """transformers with this version of gptqmodel, on a GPU or a CPU: '7.6.0'."""
    vllm: EngineVersion | None = None
    """This version of vLLM, on a CUDA GPU."""


class LicensesSpec(_Spec):
    """Licence ids as the Hub writes them. Without `allow`, any licence that is stated; `deny` wins."""

    allow: tuple[LicenseId, ...] = Field(default=(), strict=False)
    deny: tuple[LicenseId, ...] = Field(default=(), strict=False)


class DefaultsSpec(_Spec):
    """Settings for all models; a model's own settings win."""

    revision: Revision = "main"
    """Branch, tag or commit to watch."""
    recipe: RecipeSpec = RecipeSpec()
    calibration: CalibrationSpec = CalibrationSpec()
    evaluation: EvaluationSpec = EvaluationSpec()
    tasks: tuple[TaskSpec, ...] = Field(default=(), strict=False)
    """Tasks of lm-eval that source and artifact are compared on, too. They are no gate. Default: none."""
    serve: ServeSpec = ServeSpec()
    """Engines that must load the artifact before it is published. A model's own replace these. Default: none."""
    gate: GateSpec = GateSpec()
    licenses: LicensesSpec = LicensesSpec()
    hold: Text | None = None
    """Why the model is left alone for now; remove the line to go on."""
    settle: Wait | None = None
    """Wait until a new release's weights are so old, such as 2h: they may be uploaded in several commits."""
    priority: Annotated[int, Field(ge=-1000, le=1000)] = 0
    """Higher is done first."""
    private: bool = False
    """Publish to a private repo."""
    requantize: Literal["changed", "outdated"] = "changed"
    """outdated: also quantize again when a newer version of the bot would do better."""
    trust_remote_code: bool = False
    """Run the model's own code; needs `revision` to be the full sha of a commit that you have read."""
    signed_by: SignerText | None = None
    """Who must have signed what is published, as `awq-bot verify` names them. Anything else is refused."""
    collections: tuple[CollectionTitle, ...] = Field(default=(), strict=False, max_length=10)
    """Titles of collections of the target's owner; each public release is added to them. Created if need be."""


class ModelSpec(DefaultsSpec):
    """A model to watch; the short form is `owner/name` alone."""

    repo_id: RepoId
    """The source repo: owner/name."""
    target: RepoId | None = None
    """Where to publish, instead of <publish_to>/<name>-awq."""


class DiscoverSpec(DefaultsSpec):
    """Which repos of an author to find, and settings for what is found."""

    author: Namespace
    """The user or organisation on the Hub."""
    match: Globs = ("*",)
    """Names of repos to take, without the owner, such as `Qwen4-*`; one or a list."""
    exclude: Globs = ()
    """Names of repos to leave out, such as `*-Base`; one or a list."""
    since: Day | None = None
    """Only repos that were created on this day or later: 2026-01-31."""
    min_downloads: Annotated[int, Field(ge=0)] = 0
    """Only repos with so many downloads in the last 30 days."""
    max_parameters: Count | None = None
    """Only models of at most this size, such as 70B."""
    architectures: Globs = ()
    """Only models with such an architecture or model_type in their config.json; one or a list."""
    tags: tuple[Text, ...] = Field(default=(), strict=False)
    """Only repos that have all these tags."""
    limit: Annotated[int, Field(ge=1, le=100)] = 20
    """At most so many repos: the newest."""
    mode: Literal["propose", "publish"] = "propose"
    """`propose`: show what is found, in a pull request that adds it here; `publish`: plan it like a model."""
    publish_to: Namespace | None = None
    """Where what is found is published, instead of the list's own `publish_to`."""


class WatchlistSpec(_Spec):
    """Which models to watch, and where to publish."""

    publish_to: Namespace | None = None
    """The user or organisation that the quantized repos belong to."""
    defaults: DefaultsSpec = DefaultsSpec()
    models: tuple[ModelSpec, ...] = Field(strict=False)
    discover: tuple[DiscoverSpec, ...] = Field(default=(), strict=False)
    """Authors whose new models are found by themselves."""


def json_schema() -> str:
    """The schema that editors read: the models above, with the short form of a model allowed."""
    schema = WatchlistSpec.model_json_schema()
    items = schema["properties"]["models"]["items"]
    short = {"type": "string", "pattern": REPO_ID, "maxLength": MAX_REPO_ID}
    schema["properties"]["models"]["items"] = {"anyOf": [short, items]}
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    schema["title"] = "awq-bot watchlist"
    return json.dumps(schema, indent=2) + "\n"
