"""Shapes and file sizes -> GPU memory, memory, disk, time and output size, before any download."""

from __future__ import annotations

import math
import re
from typing import Any

from bot.checkpoint.constants import (
    EVALUATION_BLOCKS,
    EVALUATION_SEQ_LEN,
    LOGITS_AT_ONCE,
    PER_INT32,
    TOKENS_AT_ONCE,
)
from bot.records import Calibration, Details, Estimate, Recipe, TensorInfo, WatchEntry

# Classes of GPU that people rent, by memory in decimal gigabytes: an L4 of "24 GB" has 23,034 MiB. A job gets the
# smallest that fits.
RUNNER_VRAM_GB = (16, 24, 48, 80, 141)

TENSOR_PARALLEL = (1, 2, 4, 8, 16)

# The same size under the names that different families give it.
_HIDDEN = ("hidden_size", "n_embd", "d_model")
_INTERMEDIATE = ("intermediate_size", "ffn_dim", "ffn_hidden_size", "n_inner")
_HEADS = ("num_attention_heads", "n_head", "n_heads")
_KV_HEADS = ("num_key_value_heads", "num_kv_heads", "n_head_kv")

_GB = 10**9

_GIB = 2**30
_LAYER = re.compile(r"(?:^|\.)(?:layers|h|blocks)\.(\d+)\.")
# What stays as it is: embeddings and the head lie outside the layers; these lie inside.
_NOT_QUANTIZED = re.compile(r"norm|router|(?:^|\.)gate\.weight$|shared_expert_gate")
# On the smallest class of card: multiply-adds of matrices count as two. Float32 is what the search works in.
_HALF_FLOPS = 5e13
_FLOAT32_FLOPS = 1e13
_CPU_CORE_FLOPS = 3e10  # between 2e10, measured on hidden 576, and 7e10 on hidden 1,024
_KERNEL_S = 1e-5  # to start one, however little it does
# Per linear, as counted: products of its weights with their inputs' Gram matrix, and kernels per input channel.
_PRODUCTS = 30
_KERNELS = 20
_AUTOAWQ_PASSES = 31  # over all tokens: its grid runs about one and a half linears 20 times
_EVALUATION_TOKENS = 2 * EVALUATION_BLOCKS * EVALUATION_SEQ_LEN  # of both models
_START_S = 60.0
_DISK_SPARE = 1.1
_RUNTIME_BYTES = 2 * _GIB  # CUDA context and workspaces


def estimate(details: Details, entry: WatchEntry, *, download_bytes: int) -> Estimate:
    """What the job of this entry will need."""
    parameters = sum(math.prod(tensor.shape) for tensor in details.tensors)
    output = output_bytes(details.tensors, entry.recipe)
    tokens = entry.calibration.samples * entry.calibration.seq_len
    hidden = 2 * tokens * _size(details.config, "hidden_size")
    return Estimate(
        download_bytes=download_bytes,
        output_bytes=output,
        vram_bytes=max(_search_bytes(details, entry), _compare_bytes(details)) + _RUNTIME_BYTES,
        # The layer in work and the next one, what lies outside of them, and the hidden states when they are made.
        ram_bytes=2 * _largest_layer(details) + 2 * _outside(details) + 2 * hidden + _RUNTIME_BYTES,
        # Source, one file per layer, then the shards assembled of them; hidden states before and after a layer.
        disk_bytes=math.ceil((download_bytes + 2 * output + 2 * hidden) * _DISK_SPARE),
        duration_s=_START_S + _search_s(details, entry) + 2 * parameters * _EVALUATION_TOKENS / _HALF_FLOPS,
        parameters=parameters,
        float_operations=float_operations(details.tensors, entry.recipe, entry.calibration),
    )


def float_operations(tensors: tuple[TensorInfo, ...], recipe: Recipe, calibration: Calibration) -> float:
    """Additions and multiplications of quantizing and evaluating a model with these tensors."""
    evaluation = 2 * _EVALUATION_TOKENS * sum(math.prod(tensor.shape) for tensor in tensors)
    return sum(_quantize_operations(tensors, recipe, calibration)) + evaluation


def cpu_duration_s(operations: float, *, cores: int) -> float:
    """A rough estimate: CPUs, and the sizes of matrices that suit them, differ several times."""
    return _START_S + operations / (cores * _CPU_CORE_FLOPS)


def gpu_class(needs: Estimate) -> int | None:
    """The smallest class of GPU that fits, by its memory in GB; None where none does."""
    return next((size for size in RUNNER_VRAM_GB if needs.vram_bytes <= size * _GB), None)


def legal_tensor_parallel(config: dict[str, Any], recipe: Recipe) -> tuple[int, ...]:
    """Numbers of GPUs that a server can split each layer of the artifact over; (1,) when the config does not say.

    Heads are split whole; input channels in whole groups, output channels in whole int32s (vLLM's AWQ layers).
    """
    hidden, heads = _first_size(config, _HIDDEN), _first_size(config, _HEADS)
    if hidden is None or heads is None:
        return (1,)
    kv_heads = _first_size(config, _KV_HEADS) or heads
    head_dim = _first_size(config, ("head_dim",)) or hidden // heads
    intermediate = _first_size(config, _INTERMEDIATE) or 4 * hidden
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


def linears_to_quantize(tensors: tuple[TensorInfo, ...], recipe: Recipe) -> tuple[TensorInfo, ...]:
    """The weights, [out, in] each, that become 4-bit: every matrix in a layer but norms and routers."""
    return tuple(
        tensor
        for tensor in tensors
        if len(tensor.shape) == 2
        and tensor.name.endswith(".weight")
        and _LAYER.search(tensor.name)
        and not _NOT_QUANTIZED.search(tensor.name)
        and tensor.name.removesuffix(".weight") not in recipe.modules_to_not_convert
    )


def output_bytes(tensors: tuple[TensorInfo, ...], recipe: Recipe) -> int:
    """Size of the artifact's tensors: packed linears, everything else at 2 bytes a value."""
    linears = {tensor.name for tensor in linears_to_quantize(tensors, recipe)}
    return sum(
        _packed_bytes(tensor, recipe) if tensor.name in linears else 2 * math.prod(tensor.shape)
        for tensor in tensors
    )


def _packed_bytes(tensor: TensorInfo, recipe: Recipe) -> int:
    out, columns = tensor.shape
    groups = columns // recipe.group_size
    return out * columns // 2 + groups * (out // 2) + groups * out * 2


def _search_s(details: Details, entry: WatchEntry) -> float:
    forward, search = _quantize_operations(details.tensors, entry.recipe, entry.calibration)
    duration_s = forward / _HALF_FLOPS + search / _FLOAT32_FLOPS
    if entry.recipe.method == "awq":
        return duration_s
    columns = sum(tensor.shape[1] for tensor in linears_to_quantize(details.tensors, entry.recipe))
    return duration_s + _KERNELS * columns * _KERNEL_S


def _quantize_operations(
    tensors: tuple[TensorInfo, ...], recipe: Recipe, calibration: Calibration
) -> tuple[float, float]:
    """Those of forward passes, in half precision on a GPU, and those of the search, in float32."""
    linears = [tensor.shape for tensor in linears_to_quantize(tensors, recipe)]
    tokens = calibration.samples * calibration.seq_len
    forward = 2 * tokens * sum(out * columns for out, columns in linears)
    if recipe.method == "awq":
        return _AUTOAWQ_PASSES * forward, 0.0
    # Gram matrices, grid, factors and sweeps.
    search = sum(
        2 * _PRODUCTS * out * columns**2 + tokens * columns**2 + 4 * columns**3 / 3 for out, columns in linears
    )
    return forward, search


def _search_bytes(details: Details, entry: WatchEntry) -> int:
    """GPU memory to quantize a layer: its weights in the source's dtype and as float32 before and after, the Gram
    matrix of its widest input before and after scaling with three of that size to factor it, and the activations
    of one forward pass.
    """
    linears = linears_to_quantize(details.tensors, entry.recipe)
    widest = max((tensor.shape[1] for tensor in linears), default=0)
    hidden = _size(details.config, "hidden_size") or widest
    tokens = entry.calibration.samples * entry.calibration.seq_len
    if entry.recipe.method == "awq+gptq":
        weights, grams = 7 * _largest_layer(details), 5 * 4 * widest**2
        return weights + grams + 2 * min(tokens, TOKENS_AT_ONCE) * (2 * hidden + 4 * widest)
    # AutoAWQ keeps what every linear reads, and the widest of it once more as a reference.
    return 2 * _largest_layer(details) + 2 * tokens * (2 * hidden + 3 * widest)


def _compare_bytes(details: Details) -> int:
    """GPU memory to compare the logits: both output embeddings, and some copies of the logits in float32."""
    return 2 * _outside(details) + 4 * 6 * LOGITS_AT_ONCE


def _largest_layer(details: Details) -> int:
    """Bytes in half precision."""
    layers: dict[int, int] = {}
    for tensor in details.tensors:
        if match := _LAYER.search(tensor.name):
            layers[int(match[1])] = layers.get(int(match[1]), 0) + 2 * math.prod(tensor.shape)
    return max(layers.values(), default=0)


def _outside(details: Details) -> int:
    """Bytes in half precision of everything that lies in no layer."""
    return sum(2 * math.prod(tensor.shape) for tensor in details.tensors if not _LAYER.search(tensor.name))


def _size(config: dict[str, Any], key: str) -> int:
    value = config.get(key, 0)
    return value if isinstance(value, int) and 0 < value < 10**7 else 0


def _first_size(config: dict[str, Any], names: tuple[str, ...]) -> int | None:
    for name in names:
        value = config.get(name)
        if isinstance(value, int) and value > 0:
            return value
    return None


def _divide(sizes: tuple[int, ...], parts: int) -> bool:
    return all(size % parts == 0 for size in sizes)
