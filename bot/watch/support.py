"""Which models can be quantized, from config.json and the weights' headers alone.

`support_table.json` holds what quantizing a tiny model of each type found; tests/quantize/canary.py writes it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from bot.records import Recipe, TensorInfo
from bot.watch.sizing import linears_to_quantize

TABLE = Path(__file__).with_name("support_table.json")
FLOATS = ("F16", "BF16", "F32")
PER_INT32 = 8  # 4-bit integers in one int32 of the packed weights
TENSOR_PARALLEL = (1, 2, 4, 8, 16)

# The same size under the names that different families give it.
_HIDDEN = ("hidden_size", "n_embd", "d_model")
_INTERMEDIATE = ("intermediate_size", "ffn_dim", "ffn_hidden_size", "n_inner")
_HEADS = ("num_attention_heads", "n_head", "n_heads")
_KV_HEADS = ("num_key_value_heads", "num_kv_heads", "n_head_kv")


def unsupported_reason(config: dict[str, Any], tensors: tuple[TensorInfo, ...], recipe: Recipe) -> str | None:
    """Why this model cannot be quantized by this recipe, in a few words; None when it can.

    config: upstream's config.json; tensors: the headers of its weight files.
    """
    return (
        _quantized_already(config)
        or _unsupported_type(config)
        or _no_causal_lm(config)
        or _unsupported_weights(linears_to_quantize(tensors, recipe), recipe)
    )


def legal_tensor_parallel(config: dict[str, Any], recipe: Recipe) -> tuple[int, ...]:
    """Over how many GPUs a server can split each layer of the artifact; (1,) when the config does not say.

    Heads are split whole; input channels in whole groups, output channels in whole int32s (vLLM's AWQ layers).
    """
    hidden, heads = _size(config, _HIDDEN), _size(config, _HEADS)
    if hidden is None or heads is None:
        return (1,)
    kv_heads = _size(config, _KV_HEADS) or heads
    head_dim = _size(config, ("head_dim",)) or hidden // heads
    intermediate = _size(config, _INTERMEDIATE) or 4 * hidden
    return tuple(
        ways
        for ways in TENSOR_PARALLEL
        if ways == 1
        or (
            heads % ways == 0
            and (kv_heads % ways == 0 or ways % kv_heads == 0)  # fewer heads than GPUs are repeated
            and _divide((heads * head_dim, intermediate), ways * recipe.group_size)
            and _divide((heads * head_dim, intermediate, max(kv_heads, ways) * head_dim), ways * PER_INT32)
        )
    )


@cache
def support_table() -> Mapping[str, Any]:
    """types: model_type -> reason or null; variants: settings that a type does not work with."""
    table: dict[str, Any] = json.loads(TABLE.read_text())
    return table


def _quantized_already(config: dict[str, Any]) -> str | None:
    quantization = config.get("quantization_config")
    if quantization is None:
        return None
    method = quantization.get("quant_method") if isinstance(quantization, dict) else None
    return f"it is quantized already ({method or 'quantization_config'})"


def _unsupported_type(config: dict[str, Any]) -> str | None:
    table, model_type = support_table(), config.get("model_type")
    if not isinstance(model_type, str) or not model_type:
        return "config.json names no model_type"
    if model_type not in table["types"]:
        autoawq = f"AutoAWQ {table['versions']['autoawq']} does not know it"
        known = model_type in table["unknown_to_autoawq"]
        return f"model_type {model_type!r}: {autoawq}" + ("" if known else ", nor does transformers")
    if reason := table["types"][model_type]:
        return f"model_type {model_type!r}: {reason}"
    for variant in table["variants"]:
        if variant["model_type"] == model_type and variant["when"].items() <= _plain(config).items():
            settings = ", ".join(f"{key} {json.dumps(value)}" for key, value in variant["when"].items())
            return f"model_type {model_type!r} with {settings}: {variant['reason']}"
    return None


def _no_causal_lm(config: dict[str, Any]) -> str | None:
    names = config.get("architectures")
    if not names or not isinstance(names, list):  # transformers then goes by the model_type
        return None
    # RWForCausalLM and the like; heads for classes, rewards or embeddings are other tasks.
    if any(str(name).endswith("ForCausalLM") for name in names):
        return None
    return f"{', '.join(map(str, names))} is no causal language model"


def _unsupported_weights(linears: tuple[TensorInfo, ...], recipe: Recipe) -> str | None:
    if not linears:
        return "its layers hold no linears that could be quantized"
    for tensor in linears:
        out, columns = tensor.shape
        shown = f"{tensor.name} [{out}, {columns}]"
        if tensor.dtype not in FLOATS:
            return f"{shown} is {tensor.dtype}, not one of {', '.join(FLOATS)}"
        if columns % recipe.group_size:
            return f"{shown}: {columns} input channels are no multiple of the group size {recipe.group_size}"
        if out % PER_INT32:
            return f"{shown}: {out} output channels are no multiple of {PER_INT32}"
    return None


def _plain(config: dict[str, Any]) -> dict[str, Any]:
    """The settings that can be compared: upstream's file may hold anything."""
    return {key: value for key, value in config.items() if isinstance(value, (bool, int, float, str))}


def _size(config: dict[str, Any], names: tuple[str, ...]) -> int | None:
    for name in names:
        value = config.get(name)
        if isinstance(value, int) and value > 0:
            return value
    return None


def _divide(sizes: tuple[int, ...], by: int) -> bool:
    return all(size % by == 0 for size in sizes)
