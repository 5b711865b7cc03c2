"""Watchlists as someone typed them, read; and decisions of the plan, as the kind that a test expects."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from bot.records import Details, Job, Published, Recipe, Skip, TensorInfo, Upstream, WatchEntry
from bot.watch.layers import Chosen, choose_linears, layers_from_headers, model_types
from bot.watch.release import Candidate, decide, triage
from bot.watch.watchlist import InvalidWatchlistError, Mistake, load
from tests.support.factories import absent, details, entry, hub_file, layer_tensors, upstream

SHA = "0123456789abcdef0123456789abcdef01234567"
TOP = "publish_to: me\nmodels:\n"  # so that the first model is on line 3
# The default data sets are not on a local Hub.
BUILTIN_TEXT = "defaults: {calibration: {sources: [{builtin: stdlib}]}}\n"
SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")

QWEN3_4B = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "hidden_size": 2560,
    "intermediate_size": 9728,
    "num_hidden_layers": 36,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 151_936,
    "tie_word_embeddings": True,
}


QWEN3_30B_A3B = {
    "architectures": ["Qwen3MoeForCausalLM"],
    "model_type": "qwen3_moe",
    "hidden_size": 2048,
    "intermediate_size": 6144,
    "moe_intermediate_size": 768,
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "num_hidden_layers": 48,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "head_dim": 128,
    "vocab_size": 151_936,
    "tie_word_embeddings": False,
}


def chosen(tensors: tuple[TensorInfo, ...], config: Mapping[str, Any], recipe: Recipe | None = None) -> Chosen:
    """What the recipe quantizes, judged by headers and the table alone."""
    layers = layers_from_headers(config, tensors, model_types()[config["model_type"]])
    return choose_linears(layers, recipe or Recipe())


def moe_tensors(config: Mapping[str, Any]) -> tuple[TensorInfo, ...]:
    """The header of a Qwen3 mixture of these sizes, its experts stored one by one."""
    hidden, inner = config["hidden_size"], config["moe_intermediate_size"]
    experts = {
        f"mlp.experts.{expert}.{name}": (hidden, inner) if name == "down_proj" else (inner, hidden)
        for expert in range(config["num_experts"])
        for name in ("gate_proj", "up_proj", "down_proj")
    } | {"mlp.gate": (config["num_experts"], hidden)}
    mixtures = tuple(
        TensorInfo(name=f"model.layers.{layer}.{name}.weight", dtype="BF16", shape=shape)
        for layer in range(config["num_hidden_layers"])
        for name, shape in experts.items()
    )
    dense = (
        tensor for tensor in layer_tensors(dict(config)) if "_proj.weight" not in tensor.name.partition(".mlp.")[2]
    )
    return (*dense, *mixtures)


def loaded(folder: Path, text: str | bytes) -> tuple[WatchEntry, ...]:
    path = folder / "watchlist.yaml"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return load(path)


def mistakes(folder: Path, text: str | bytes) -> tuple[Mistake, ...]:
    with pytest.raises(InvalidWatchlistError) as caught:
        loaded(folder, text)
    return caught.value.mistakes


def candidate(found: Skip | Job | Candidate) -> Candidate:
    assert isinstance(found, Candidate), found
    return found


def job(found: Skip | Job | Candidate) -> Job:
    assert isinstance(found, Job), found
    return found


def skip(found: Skip | Job | Candidate) -> Skip:
    assert isinstance(found, Skip), found
    return found


def sharded() -> Upstream:
    files = [file for file in upstream().files if file.path != "model.safetensors"]
    index = hub_file("model.safetensors.index.json")
    return upstream(files=(*files, index, *(hub_file(shard) for shard in SHARDS)))


def decided(
    asked: WatchEntry | None = None,
    source: Upstream | None = None,
    target: Published | None = None,
    found: Details | None = None,
) -> Skip | Job:
    """The decision about a model that is to be released, by default for the first time."""
    seen = triage(asked or entry(), source or upstream(), target or absent())
    return decide(candidate(seen), found or details())
