"""Weights and KV cache -> the smallest common GPU that serves the model."""

from __future__ import annotations

from dataclasses import dataclass

from bot.records import CachedLayers, KVCache

# Memory of GPUs that people have or rent, in decimal gigabytes. None has less than its name says: an L4 of "24 GB"
# has 23,034 MiB, a T4 of "16 GB" 15,360 MiB.
COMMON_GPUS_GB = (8, 12, 16, 24, 32, 40, 48, 80, 96, 141, 192)
# What vLLM uses of a GPU's memory: https://docs.vllm.ai/en/latest/configuration/engine_args/#cacheconfig
USABLE_SHARE = 0.9
RUNTIME_BYTES = 2 * 10**9  # CUDA context, workspaces and the activations of one step
_GB = 10**9


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryRow:
    """What serving one sequence takes. gpu: with its unit, or that one is not enough."""

    tokens: int
    cache_bytes: int
    total_bytes: int
    gpu: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ServingMemory:
    """rows: none where `problem` says why."""

    rows: tuple[MemoryRow, ...] = ()
    layers: tuple[CachedLayers, ...] = ()
    problem: str = ""
    gpus: tuple[int, ...] = COMMON_GPUS_GB
    share: float = USABLE_SHARE
    runtime_bytes: int = RUNTIME_BYTES


def serving_memory(cache: KVCache | None, *, weights_bytes: int) -> ServingMemory | None:
    """None for releases that do not say what they cache."""
    if cache is None:
        return None
    if cache.problem or not cache.layers:
        return ServingMemory(problem=cache.problem or "what it keeps of a token is not known")
    return ServingMemory(
        rows=tuple(_row(cache, tokens, weights_bytes) for tokens in cache.contexts),
        layers=cache.layers,
    )


def _row(cache: KVCache, tokens: int, weights_bytes: int) -> MemoryRow:
    size_bytes = cache.size_bytes(tokens)
    total = weights_bytes + size_bytes
    fitting = (gpu for gpu in COMMON_GPUS_GB if total + RUNTIME_BYTES <= USABLE_SHARE * gpu * _GB)
    gpu = next((f"{gpu} GB" for gpu in fitting), "none: use several")
    return MemoryRow(tokens=tokens, cache_bytes=size_bytes, total_bytes=total, gpu=gpu)
