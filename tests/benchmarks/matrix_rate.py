"""A GPU's rate of matrix products, and how many operations quantizing needs at least."""

from __future__ import annotations

import time

import torch

from tests.benchmarks.cases import Case

SIZE, TIMES = 8192, 20


def matrix_rate() -> float:
    """Floating-point operations a second of bf16 matrix products, [8192, 8192] each."""
    left, right = (torch.randn(SIZE, SIZE, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    left @ right
    torch.cuda.synchronize()
    started = time.perf_counter()
    for _ in range(TIMES):
        left @ right
    torch.cuda.synchronize()
    return 2.0 * SIZE**3 * TIMES / (time.perf_counter() - started)


def work_of(case: Case) -> float:
    """Operations that cannot be saved: one forward pass of all tokens, and half of each Gram matrix."""
    tokens = case.samples * case.seq_len
    hidden, wide = case.hidden, case.intermediate
    linears = 3 * hidden * hidden + 3 * hidden * wide  # q, o, half as wide k and v; gate, up, down
    grams = (3 * hidden**2 + wide**2) / 2
    return case.layers * 2.0 * tokens * (linears + grams)
