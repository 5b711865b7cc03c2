"""What the figures are compared with: AutoAWQ's packing, and what a GPU can do with matrices."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch import nn

from bot.checkpoint.gemm import pack
from bot.checkpoint.rounding import MAX_INT4
from tests.benchmarks.cases import Case
from tests.benchmarks.peer import pack_with_autoawq


def packing_speedup(size: int = 4096, group: int = 128) -> float:
    """How many times as long WQLinear_GEMM.from_linear takes, best of several tries; both make the same bits."""
    torch.manual_seed(0)
    q = torch.randint(0, MAX_INT4 + 1, (size, size), dtype=torch.uint8)
    zeros = torch.randint(0, MAX_INT4 + 1, (size, size // group), dtype=torch.uint8)
    scales = (torch.rand(size, size // group) / 100 + 0.001).half()
    linear = nn.Linear(size, size, bias=False)
    steps = q.view(size, -1, group).float() - zeros.unsqueeze(-1).float()
    linear.weight.data = (steps * scales.unsqueeze(-1).float()).view(size, size)
    theirs = pack_with_autoawq(linear, scales, zeros.float())
    assert torch.equal(pack(q, scales, zeros).qweight, theirs.qweight)
    their_s = min(_seconds(lambda: pack_with_autoawq(linear, scales, zeros.float())) for _ in range(3))
    return their_s / min(_seconds(lambda: pack(q, scales, zeros)) for _ in range(20))


def matrix_rate(size: int = 8192, times: int = 20) -> float:
    """Floating-point operations a second of a GPU's bf16 matrix products, [8192, 8192] each."""
    left, right = (torch.randn(size, size, device="cuda", dtype=torch.bfloat16) for _ in range(2))

    def multiply() -> None:
        for _ in range(times):
            left @ right
        torch.cuda.synchronize()

    multiply()
    return 2.0 * size**3 * times / _seconds(multiply)


def work_of(case: Case) -> float:
    """Operations that cannot be saved: one forward pass of all tokens, and half of each Gram matrix."""
    tokens = case.samples * case.seq_len
    hidden, wide = case.hidden, case.intermediate
    linears = 3 * hidden * hidden + 3 * hidden * wide  # q, o, half as wide k and v; gate, up, down
    grams = (3 * hidden**2 + wide**2) / 2
    return case.layers * 2.0 * tokens * (linears + grams)


def _seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started
