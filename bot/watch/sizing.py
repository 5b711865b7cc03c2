"""Shapes and file sizes -> GPU memory, memory, disk, time and output size, before any download."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from bot.checkpoint.config import text_settings
from bot.checkpoint.constants import (
    CORRECTED_TOKENS,
    EVALUATION_SEQ_LEN,
    LOGITS_AT_ONCE,
    PER_INT32,
    TOKENS_AT_ONCE,
)
from bot.checkpoint.header import kept_float32
from bot.records import Calibration, Details, Estimate, Evaluation, Recipe, TensorInfo, WatchEntry
from bot.watch.layers import Chosen

# Classes of GPU that people rent, by memory in decimal gigabytes: an L4 of "24 GB" has 23,034 MiB. A job gets the
# smallest that fits.
RUNNER_VRAM_GB = (16, 24, 48, 80, 141)

TENSOR_PARALLEL = (1, 2, 4, 8, 16)

# The same size under the names that different families give it.
_HIDDEN = ("hidden_size", "n_embd", "d_model")
_HEADS = ("num_attention_heads", "n_head", "n_heads")
_KV_HEADS = ("num_key_value_heads", "num_kv_heads", "n_head_kv")
_EXPERTS_PER_TOKEN = (
    "num_experts_per_tok",
    "num_experts_per_token",
    "top_k_experts",
    "moe_topk",
    "moe_top_k",
    "moe_k",
    "num_selected_experts",
)

_GB = 10**9

_GIB = 2**30
# On the smallest class of card: multiply-adds of matrices count as two. Float32 is what the search works in.
_HALF_FLOPS = 5e13
_FLOAT32_FLOPS = 1e13
_CPU_CORE_FLOPS = 3e10  # between 2e10, measured on hidden 576, and 7e10 on hidden 1,024
_KERNEL_S = 1e-5  # to start one, however little it does
# Per linear, as counted: products of its weights with their inputs' Gram matrix, and kernels per input channel.
_PRODUCTS = 12
_KERNELS = 20
# States of a layer's tokens that are kept while its linears are quantized in turn: what the source's norms have
# read and given, and the residual stream, queries, keys and values of the paused runs.
_KEPT_STATES = 8
_AUTOAWQ_PASSES = 31  # over all tokens: its grid runs about one and a half linears 20 times
_START_S = 60.0
_DISK_SPARE = 1.1
_RUNTIME_BYTES = 2 * _GIB  # CUDA context and workspaces


def estimate(details: Details, chosen: Chosen, entry: WatchEntry, *, download_bytes: int) -> Estimate:
    """What the job of this entry will need. chosen: what it quantizes."""
    output = output_bytes(details.tensors, chosen.packed, entry.recipe)
    hidden, measured = (
        2 * tokens * (_hidden_size(details.config) or 0)
        for tokens in (_tokens(entry.calibration), entry.evaluation.tokens)
    )
    experts = max(chosen.layers.experts.values(), default=0)
    operations = _operations(details, chosen, entry.recipe, entry.calibration, entry.evaluation)
    return Estimate(
        download_bytes=download_bytes,
        output_bytes=output,
        vram_bytes=max(search_bytes(details, chosen, entry), _compare_bytes(details, chosen)) + _RUNTIME_BYTES,
        # The layer in work and the next one, what lies outside of them, the hidden states when they are made, and
        # what the experts of the layer read; or those of two models when they are compared.
        ram_bytes=2 * _largest_layer(details, chosen)
        + 2 * _outside(details, chosen)
        + max((3 if experts else 2) * hidden, 2 * measured)
        + _RUNTIME_BYTES,
        # Source, one file per layer, then the shards made of them; the states of both models around a layer.
        disk_bytes=math.ceil((download_bytes + 2 * output + 4 * hidden) * _DISK_SPARE),
        duration_s=_START_S + _search_s(operations, chosen, entry.recipe) + operations[2] / _HALF_FLOPS,
        parameters=_count(details.tensors),
        float_operations=sum(operations),
        quantized_share=chosen.share,
        experts=experts,
        experts_per_token=(experts_per_token(details.config) or 0) if experts else 0,
    )


def float_operations(details: Details, chosen: Chosen, recipe: Recipe, calibration: Calibration) -> float:
    """Additions and multiplications of quantizing a model and evaluating it as much as by default."""
    return sum(_operations(details, chosen, recipe, calibration, Evaluation()))


def cpu_duration_s(operations: float, *, cores: int) -> float:
    """A rough estimate: CPUs, and the sizes of matrices that suit them, differ several times."""
    return _START_S + operations / (cores * _CPU_CORE_FLOPS)


def gpu_class(needs: Estimate) -> int | None:
    """The smallest class of GPU that fits, by its memory in GB; None where none does."""
    return next((size for size in RUNNER_VRAM_GB if needs.vram_bytes <= size * _GB), None)


def legal_tensor_parallel(config: dict[str, Any], packed: Iterable[TensorInfo], recipe: Recipe) -> tuple[int, ...]:
    """Numbers of GPUs that a server can split each layer of the artifact over; (1,) when the config does not say.

    packed: the linears that are quantized, [out, in] each. Heads are split whole; input channels in whole groups,
    output channels in whole int32s (vLLM's AWQ layers).
    """
    hidden, heads = _hidden_size(config), _first_size(config, _HEADS)
    if hidden is None or heads is None:
        return (1,)
    kv_heads = _first_size(config, _KV_HEADS) or heads
    head_dim = _first_size(config, ("head_dim",)) or hidden // heads
    # What computes the hidden states again is split by its inputs: attention's output, an MLP's or an expert's.
    inputs = {linear.shape[1] for linear in packed if linear.shape[0] == hidden}
    return tuple(
        ways
        for ways in TENSOR_PARALLEL
        if ways == 1
        or (
            heads % ways == 0
            and (kv_heads % ways == 0 or ways % kv_heads == 0)  # fewer heads than GPUs are repeated
            and _divide((heads * head_dim, *inputs), ways * recipe.group_size)
            and _divide((heads * head_dim, *inputs, max(kv_heads, ways) * head_dim), ways * PER_INT32)
        )
    )


def experts_per_token(config: dict[str, Any]) -> int | None:
    """How many experts of each mixture a token passes through; None where the config does not say."""
    return _first_size(config, _EXPERTS_PER_TOKEN)


_FEW_TOKENS = 4096  # as measured: with fewer the search may fit this text alone
_FEW_FOR_EXPERT = 256  # then three quarters of what an expert is fitted to are other experts' tokens


def calibration_warnings(config: dict[str, Any], chosen: Chosen, calibration: Calibration) -> tuple[str, ...]:
    """Where there is too little text to measure what the linears read."""
    tokens = _tokens(calibration)
    found = []
    if tokens < _FEW_TOKENS:
        found.append(
            f"each input channel is seen {tokens:,} times; below {_FEW_TOKENS:,} this can be worse than plain "
            "rounding: raise calibration.samples or seq_len"
        )
    experts, used = max(chosen.layers.experts.values(), default=0), experts_per_token(config)
    if experts and used and tokens * used / experts < _FEW_FOR_EXPERT:
        found.append(
            f"each of {experts} experts sees about {tokens * used // experts:,} tokens; below {_FEW_FOR_EXPERT} "
            "it is fitted mostly to those of others: raise calibration.samples or seq_len"
        )
    return tuple(found)


def output_bytes(tensors: tuple[TensorInfo, ...], packed: tuple[TensorInfo, ...], recipe: Recipe) -> int:
    """Size of the artifact's tensors: packed linears, everything else at 2 bytes a value, or 4 as upstream."""
    names = {linear.name for linear in packed}
    kept = kept_float32({tensor.name: tensor for tensor in tensors}) - names
    others = 2 * (_count(tensors) - _count(packed)) + 2 * _count(each for each in tensors if each.name in kept)
    return others + sum(_packed_bytes(linear, recipe) for linear in packed)


def _packed_bytes(tensor: TensorInfo, recipe: Recipe) -> int:
    out, columns = tensor.shape
    groups = columns // recipe.group_size
    return out * columns // 2 + groups * (out // 2) + groups * out * 2


def _search_s(operations: tuple[float, float, float], chosen: Chosen, recipe: Recipe) -> float:
    forward, search, _ = operations
    duration_s = forward / _HALF_FLOPS + search / _FLOAT32_FLOPS
    if recipe.method == "awq":
        return duration_s
    columns = sum(linear.shape[1] for linear in chosen.packed)
    return duration_s + _KERNELS * columns * _KERNEL_S


def _operations(
    details: Details, chosen: Chosen, recipe: Recipe, calibration: Calibration, evaluation: Evaluation
) -> tuple[float, float, float]:
    """Those of forward passes, in half precision on a GPU, of the search, in float32, and of evaluating."""
    tokens = _tokens(calibration)
    experts = max(chosen.layers.experts.values(), default=0)
    used = experts_per_token(details.config)
    routed = min(1.0, used / experts) if experts and used else 1.0
    forward = search = idle = 0.0
    for linear in chosen.packed:
        out, columns = linear.shape
        seen = tokens
        if chosen.layers.mixture_of(linear.name) is not None:
            seen = math.ceil(tokens * routed)
            idle += (1 - routed) * out * columns
        forward += 2 * seen * out * columns
        # Gram matrices of both models' inputs and of one with the other; solving, factors and sweeps.
        search += 2 * _PRODUCTS * out * columns**2 + 3 * seen * columns**2 + 8 * columns**3 / 3
    # By the source, the artifact and plain rounding.
    compared = 3 * 2 * evaluation.tokens * (_count(details.tensors) - idle)
    if recipe.method == "awq":
        return _AUTOAWQ_PASSES * forward, 0.0, compared
    return 2 * forward, search, compared  # by the source's layers, and by the quantized ones


def search_bytes(details: Details, chosen: Chosen, entry: WatchEntry) -> int:
    """GPU memory to quantize a layer: its weights in the source's dtype and as float32 before and after, the Gram
    matrix of its widest input and four of that size to solve and factor it, the activations of one forward pass,
    and those that are kept while the linears are quantized in turn. Experts are quantized one after the other, so
    copies exist of one of them.
    """
    widest = max((linear.shape[1] for linear in chosen.packed), default=0)
    hidden = _hidden_size(details.config) or widest
    tokens = _tokens(entry.calibration)
    if entry.recipe.method == "awq+gptq":
        mixture, expert = _largest_mixture(chosen)
        weights = 7 * (_largest_layer(details, chosen) - mixture + expert) + 3 * (mixture - expert)
        grams = 5 * 4 * widest**2
        kept = 2 * min(tokens, CORRECTED_TOKENS) * (_KEPT_STATES * hidden + widest)
        return weights + grams + kept + 2 * min(tokens, TOKENS_AT_ONCE) * (2 * hidden + 4 * widest)
    # AutoAWQ keeps what every linear reads, and the widest of it once more as a reference.
    return 2 * _largest_layer(details, chosen) + 2 * tokens * (2 * hidden + 3 * widest)


def _compare_bytes(details: Details, chosen: Chosen) -> int:
    """GPU memory to compare the logits: both output embeddings, and some copies of the logits in float32.

    Those of a block are compared together, however large the vocabulary.
    """
    vocabulary = _first_size(details.config, ("vocab_size",)) or 0
    logits = max(LOGITS_AT_ONCE, EVALUATION_SEQ_LEN * vocabulary)
    return 2 * _outside(details, chosen) + 4 * 6 * logits


def _largest_mixture(chosen: Chosen) -> tuple[int, int]:
    """Bytes in half precision of all experts of a mixture, and of one."""
    sizes = dict.fromkeys(chosen.layers.experts, 0)
    for linear in chosen.layers.linears:
        if (path := chosen.layers.mixture_of(linear.name)) is not None:
            sizes[path] += 2 * math.prod(linear.shape)
    path = max(sizes, key=lambda path: sizes[path], default=None)
    return (0, 0) if path is None else (sizes[path], sizes[path] // max(1, chosen.layers.experts[path]))


def _largest_layer(details: Details, chosen: Chosen) -> int:
    """Bytes in half precision."""
    layers: dict[str, int] = {}
    prefix = f"{chosen.layers.stored_path}."
    for tensor in details.tensors:
        if tensor.name.startswith(prefix):
            index = tensor.name.removeprefix(prefix).partition(".")[0]
            layers[index] = layers.get(index, 0) + 2 * math.prod(tensor.shape)
    return max(layers.values(), default=0)


def _outside(details: Details, chosen: Chosen) -> int:
    """Bytes in half precision of everything that lies in no layer."""
    prefix = f"{chosen.layers.stored_path}."
    return 2 * _count(tensor for tensor in details.tensors if not tensor.name.startswith(prefix))


def _tokens(calibration: Calibration) -> int:
    return calibration.samples * calibration.seq_len


def _count(tensors: Iterable[TensorInfo]) -> int:
    return sum(math.prod(tensor.shape) for tensor in tensors)


def _hidden_size(config: dict[str, Any]) -> int | None:
    return _first_size(config, _HIDDEN)


def _first_size(config: dict[str, Any], names: tuple[str, ...]) -> int | None:
    settings = text_settings(config)
    for name in names:
        value = settings.get(name)
        if type(value) is int and 0 < value < 10**7:
            return value
    return None


def _divide(sizes: tuple[int, ...], parts: int) -> bool:
    return all(size % parts == 0 for size in sizes)
