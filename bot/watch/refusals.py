"""Why the plan refuses a model, and what the person who put it on the watchlist can do about it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

from bot.checkpoint.config_values import check_values, most_tokens, quantized_as
from bot.checkpoint.repo_files import CONFIG, SINGLE_WEIGHTS, VOCABULARY, is_pickle, is_safe_path, is_vocabulary
from bot.checkpoint.small_files import check_small_files
from bot.errors import BotError, PublishError, UnsupportedModelError, UpstreamError, WatchlistError
from bot.records import (
    DEFAULT_BUILTIN,
    DatasetListing,
    Details,
    HubFile,
    Layers,
    Published,
    Recipe,
    Skip,
    TextSource,
    Upstream,
    WatchEntry,
)
from bot.watch.layers import Chosen, ModelType, choose_linears, layers_from_headers, model_types

_HOLD = "Put it on `hold:` to silence this."
_OTHER_METHOD = "Set `method: awq+gptq` in the entry's recipe."
# What generates text; other heads classify, score or embed.
_GENERATING = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")


def chosen_or_refusal(entry: WatchEntry, details: Details) -> Chosen | Skip:
    """What of the model this entry's recipe quantizes, or why it cannot be quantized."""
    config = details.config
    if reason := _no_model_type(config) or _no_causal_lm(config):
        return refuse(entry, f"unsupported: {reason}", UnsupportedModelError, _HOLD)
    try:
        if not own_code(entry, config):
            check_values(config, details.tensors)
        known = None if own_code(entry, config) else model_types().get(config["model_type"])
        chosen = choose_linears(_layers(entry, details, known), entry.recipe)
        _check_method(entry.recipe, chosen, known)
        _check_engines(entry, chosen)
    except WatchlistError as error:
        return refuse(entry, error.message, WatchlistError, error.hint)
    except UpstreamError as error:
        return refuse(entry, error.message, UpstreamError, error.hint)
    except BotError as error:
        return refuse(entry, f"unsupported: {error.message}", type(error), error.hint or _HOLD)
    return chosen


def own_code(entry: WatchEntry, config: Mapping[str, Any]) -> bool:
    """Whether the model will be built by code from its repo, which planning never runs."""
    return entry.trust_remote_code and "auto_map" in config


def _layers(entry: WatchEntry, details: Details, known: ModelType | None) -> Layers:
    """The layers as transformers builds them where that is known, else as the headers show them."""
    config, model_type = details.config, details.config["model_type"]
    if known is not None and (reason := _reason(known, config)):
        raise UnsupportedModelError(f"model_type {model_type!r}{reason}")
    found = details.layers
    if found is not None and found.problem:
        error = UpstreamError if found.exit_code == UpstreamError.exit_code else UnsupportedModelError
        raise error(found.problem, hint=_code_hint(config) or found.hint)
    if found is not None:
        return found
    if known is None and not own_code(entry, config):
        raise UnsupportedModelError(
            f"model_type {model_type!r}: this version's table does not know it", hint=_code_hint(config)
        )
    return layers_from_headers(config, details.tensors, known)


def _reason(known: ModelType, config: Mapping[str, Any]) -> str | None:
    if known.reason:
        return f": {known.reason}"
    for variant in known.variants:
        if variant.when.items() <= _plain(config).items():
            settings = ", ".join(f"{key} {json.dumps(value)}" for key, value in variant.when.items())
            return f" with {settings}: {variant.reason}"
    return None


def _code_hint(config: Mapping[str, Any]) -> str:
    if "auto_map" not in config:
        return ""
    return "It needs its own code: read it, then set `trust_remote_code: true` and pin `revision` to the commit."


def _check_method(recipe: Recipe, chosen: Chosen, known: ModelType | None) -> None:
    if recipe.method != "awq":
        return
    if chosen.layers.experts:
        raise UnsupportedModelError("AutoAWQ's search does not support mixtures of experts", hint=_OTHER_METHOD)
    if known is not None and known.by_sample:
        raise UnsupportedModelError(
            "AutoAWQ's search needs layers that take the same arguments for all samples", hint=_OTHER_METHOD
        )


def _check_engines(entry: WatchEntry, chosen: Chosen) -> None:
    """What is known not to load, before anything is quantized."""
    if chosen.layers.experts and any(engine.name == "gptqmodel" for engine in entry.serve):
        raise WatchlistError(
            "serve: transformers with gptqmodel cannot load quantized experts",
            hint="Name vllm, or no engine, for this model: `serve: {}`.",
        )


def _no_model_type(config: Mapping[str, Any]) -> str | None:
    model_type = config.get("model_type")
    return None if isinstance(model_type, str) and model_type else "config.json has no model_type"


def _no_causal_lm(config: Mapping[str, Any]) -> str | None:
    names = config.get("architectures")
    if not names or not isinstance(names, list):  # transformers then chooses by model_type
        return None
    return no_causal_lm([str(name) for name in names])


def no_causal_lm(architectures: Sequence[str]) -> str | None:
    """Why none of these classes of transformers generates text; None if one does."""
    if any(name.endswith(_GENERATING) for name in architectures):
        return None
    return f"{', '.join(architectures)} is not a causal language model"


def _plain(config: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of plain types: an upstream config.json may hold anything."""
    return {key: value for key, value in config.items() if isinstance(value, (bool, int, float, str))}


def refuse(entry: WatchEntry, reason: str, error: type[BotError], hint: str = "") -> Skip:
    return Skip(entry=entry, reason=reason, hint=hint, blocked=True, exit_code=error.exit_code)


def visibility_refusal(entry: WatchEntry, upstream: Upstream, published: Published) -> Skip | None:
    """A public target whose entry or upstream has become private since."""
    if published.private is not False or not (entry.private or upstream.private):
        return None
    hint = f"Make it private in its settings on the Hub, or run `awq-bot create-target {entry.target}`."
    return refuse(entry, f"{entry.target} is public, and should be private", PublishError, hint)


def missing_target_refusal(entry: WatchEntry) -> Skip:
    """Trusted Publishers cannot create a repo: refused before hours of GPU are spent."""
    reason = f"{entry.target} does not exist, or HF_TOKEN cannot read it; Trusted Publishers cannot create it"
    return refuse(entry, reason, PublishError, f"Run `awq-bot create-target {entry.target}` first.")


def weights_refusal(entry: WatchEntry, upstream: Upstream, details: Details) -> Skip | None:
    if upstream.file(CONFIG) is None:
        reason = "no config.json upstream"
        return _other_kind(entry, upstream) or refuse(entry, reason, UpstreamError, "Is it a transformers model?")
    if details.problem:
        return refuse(entry, details.problem, UpstreamError, f"Look at {entry.repo_id} on the Hub.")
    if method := quantized_as(details.config):
        reason = f"unsupported: it is quantized already ({method})"
        return refuse(entry, reason, UnsupportedModelError, _HOLD)
    missing = [path for path in details.weight_files if upstream.file(path) is None]
    if missing:
        reason = f"upload incomplete: {missing[0]} is listed in the index but missing"
        return refuse(entry, reason, UpstreamError, "The next run checks it again.")
    if not details.weight_files:
        return _no_weights(entry, upstream)
    if not any(is_vocabulary(file.path) for file in upstream.files):
        hint = f"The next run checks it again; tokenizers are read from {', '.join(VOCABULARY)}."
        return refuse(entry, "upload incomplete: no tokenizer", UpstreamError, hint)
    return None


def seq_len_refusal(entry: WatchEntry, details: Details) -> Skip | None:
    most, asked = most_tokens(details.config), entry.calibration.seq_len
    if most is None or asked <= most:
        return None
    reason = f"calibration.seq_len is {asked}, and the model reads {most} tokens at once"
    return refuse(entry, reason, WatchlistError, f"Set `calibration: {{seq_len: {most}}}` in this entry.")


def small_files_refusal(entry: WatchEntry, details: Details) -> Skip | None:
    try:
        check_small_files(details.small_files)
    except UpstreamError as error:
        return refuse(entry, error.message, UpstreamError, error.hint)
    return None


def _no_weights(entry: WatchEntry, upstream: Upstream) -> Skip:
    if refusal := _other_kind(entry, upstream):
        return refusal
    paths = [file.path for file in upstream.files]
    if other := [path for path in paths if path.endswith(".safetensors")]:
        reason = f"no {SINGLE_WEIGHTS} and no index of shards, only {other[0]}"
        return refuse(entry, reason, UpstreamError, "Is it a transformers model?")
    if any(is_pickle(path) for path in paths):  # https://huggingface.co/docs/hub/security-pickle
        hint = "Convert them to safetensors upstream; loading a pickle can run code."
        return refuse(entry, "pickle-only weights, no safetensors", UpstreamError, hint)
    return refuse(entry, "no weights upstream", UpstreamError, "The next run checks it again.")


# What a repo without a model's config or weights is, by a file of that name; and what to do about it.
_OTHER_KINDS = (
    ("adapter_config.json", "it is a LoRA adapter (PEFT)", "Merge it into its base model and upload the result."),
    ("model_index.json", "it is a pipeline of diffusers", ""),
    ("*.gguf", "it has only GGUF files", "Watch the repo that they were made from."),
    ("*.onnx", "it has only ONNX files", "Watch the repo that they were made from."),
    ("tf_model.h5", "it has only weights of TensorFlow", "Convert them to safetensors upstream."),
    ("flax_model.msgpack", "it has only weights of Flax", "Convert them to safetensors upstream."),
    ("config_sentence_transformers.json", "it is a model of sentence-transformers", ""),
)


def _other_kind(entry: WatchEntry, upstream: Upstream) -> Skip | None:
    for pattern, kind, hint in _OTHER_KINDS:
        # As in the Hub's own listings, GGUF and ONNX files may be in folders.
        if any(fnmatchcase(file.path, pattern) for file in upstream.files):
            return refuse(entry, f"unsupported: {kind}", UnsupportedModelError, hint or _HOLD)
    return None


def refusal_of_names(entry: WatchEntry, files: tuple[HubFile, ...]) -> Skip | None:
    if unsafe := [file.path for file in files if not is_safe_path(file.path)]:
        hint = f"It could be written outside of its folder, or not at all. {_HOLD}"
        return refuse(entry, f"unsafe file name upstream: {unsafe[0]!r}", UpstreamError, hint)
    return None


def dataset_refusal(
    entry: WatchEntry, source: TextSource, listing: DatasetListing, split: tuple[str, ...]
) -> Skip | None:
    """None if the data set can be used. split: its files that hold the split that is asked for."""
    name = dataset_name(entry, source)
    other_text = _OTHER_TEXT[use_of(entry, source)]
    if listing.problem is None and split:
        return None
    if listing.problem is None:
        of_split = f" of split {source.split!r}" if source.split else ""
        reason = f"{name}: no parquet or jsonl file{of_split}"
        return refuse(entry, reason, UpstreamError, "Look at the data set's files on the Hub and correct `split`.")
    reason = f"{name}: {listing.problem}"
    if "missing" in listing.problem:
        return refuse(entry, reason, UpstreamError, f"Upload it to this Hub, or {other_text}")
    if "gated" in listing.problem:
        return refuse(entry, reason, UpstreamError, f"Ask for access on the data set's page, or {other_text}")
    hint = "Nothing is wrong with the watchlist. The next run checks it again."
    return Skip(entry=entry, reason=reason, hint=hint, exit_code=UpstreamError.exit_code)


_BUILTIN = f"sources: [{', '.join(f'{{builtin: {name}}}' for name in DEFAULT_BUILTIN)}]"
_OTHER_TEXT = {
    "calibration": f"calibrate on `calibration: {{{_BUILTIN}}}` or on your own `file:`.",
    "evaluation": f"measure on `evaluation: {{{_BUILTIN}}}` or on your own `file:`.",
    "task": "remove the task from this entry's `tasks`.",
}


def dataset_name(entry: WatchEntry, source: TextSource) -> str:
    """What a data set is read for, and which it is."""
    return f"{use_of(entry, source)} data set {source.label}"


def use_of(entry: WatchEntry, source: TextSource) -> str:
    if source in entry.calibration.sources:
        return "calibration"
    return "evaluation" if source in entry.evaluation.sources else "task"
