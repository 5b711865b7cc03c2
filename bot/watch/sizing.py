"""Shapes and file sizes -> GPU memory, memory, disk, time and output size, before any download."""

from __future__ import annotations

import math
import re
from typing import Any

from bot.records import Calibration, Details, Estimate, Recipe, TensorInfo, WatchEntry

# Classes of GPU that people rent, by memory. A job gets the smallest that fits, as the label `gpu-24gb`.
RUNNER_VRAM_GIB = (16, 24, 48, 80, 141)

_GIB = 2**30
_LAYER = re.compile(r"(?:^|\.)(?:layers|h|blocks)\.(\d+)\.")
# What stays as it is: embeddings and the head lie outside the layers; these lie inside.
_NOT_QUANTIZED = re.compile(r"norm|router|(?:^|\.)gate\.weight$|shared_expert_gate")
_EFFECTIVE_FLOPS = 5e13  # half precision on the smallest class of card, as search and packing leave it
_FORWARDS_PER_LAYER = (
    31  # one to see the inputs, then AutoAWQ's grid: 20 runs of about one and a half linears each
)
_START_S = 60.0
_DISK_SPARE = 1.1
_RUNTIME_BYTES = 2 * _GIB  # CUDA context and workspaces


def estimate(details: Details, entry: WatchEntry, *, download_bytes: int) -> Estimate:
    """What the job of this entry will need."""
    parameters = sum(math.prod(tensor.shape) for tensor in details.tensors)
    output = output_bytes(details.tensors, entry.recipe)
    tokens = entry.calibration.samples * entry.calibration.seq_len
    return Estimate(
        download_bytes=download_bytes,
        output_bytes=output,
        vram_bytes=_vram_bytes(details, entry.calibration),
        # AutoAWQ holds the whole model, and the activations of one layer beside it.
        ram_bytes=2 * parameters + _activation_bytes(details.config, entry.calibration) + 2 * _GIB,
        # Source, one file per layer, then the shards assembled of them.
        disk_bytes=math.ceil((download_bytes + 2 * output) * _DISK_SPARE),
        duration_s=_START_S + _FORWARDS_PER_LAYER * 2 * parameters * tokens / _EFFECTIVE_FLOPS,
        parameters=parameters,
    )


def runner_labels(needs: Estimate) -> tuple[str, ...] | None:
    """Labels of the smallest class of runner that fits, or None when none does."""
    for size in RUNNER_VRAM_GIB:
        if needs.vram_bytes <= size * _GIB:
            return ("self-hosted", "gpu", f"gpu-{size}gb")
    return None


def quantized_linears(tensors: tuple[TensorInfo, ...], recipe: Recipe) -> tuple[TensorInfo, ...]:
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
    linears = {tensor.name for tensor in quantized_linears(tensors, recipe)}
    return sum(
        _packed_bytes(tensor, recipe) if tensor.name in linears else 2 * math.prod(tensor.shape)
        for tensor in tensors
    )


def _packed_bytes(tensor: TensorInfo, recipe: Recipe) -> int:
    out, columns = tensor.shape
    groups = columns // recipe.group_size
    return out * columns // 2 + groups * (out // 2) + groups * out * 2


def _vram_bytes(details: Details, calibration: Calibration) -> int:
    """One layer and the inputs and outputs of its parts, in half precision; layers are moved in one at a time."""
    layers: dict[int, int] = {}
    outside = 0
    for tensor in details.tensors:
        match = _LAYER.search(tensor.name)
        size = 2 * math.prod(tensor.shape)
        if match:
            layers[int(match[1])] = layers.get(int(match[1]), 0) + size
        else:
            outside = max(outside, size)
    largest = max(layers.values(), default=0)
    return outside + 2 * largest + _activation_bytes(details.config, calibration) + _RUNTIME_BYTES


def _activation_bytes(config: dict[str, Any], calibration: Calibration) -> int:
    """Hidden states in and out, and the widest inner activation with its reference, at 2 bytes a value."""
    tokens = calibration.samples * calibration.seq_len
    hidden = _size(config, "hidden_size")
    return 2 * tokens * (2 * hidden + 3 * max(_size(config, "intermediate_size"), hidden))


def _size(config: dict[str, Any], key: str) -> int:
    value = config.get(key, 0)
    return value if isinstance(value, int) and 0 < value < 10**7 else 0
