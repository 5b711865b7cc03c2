"""Integers to int32: ours against WQLinear_GEMM.from_linear, on the same weights."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch import nn

from bot.checkpoint.gemm import pack
from bot.quantize.rounding import MAX_INT4
from tests.benchmarks.peer import pack_with_autoawq

SIZE, GROUP = 4096, 128


def packing_speedup() -> float:
    """How many times as long AutoAWQ takes, the best of several tries each; both make the same bits."""
    torch.manual_seed(0)
    q = torch.randint(0, MAX_INT4 + 1, (SIZE, SIZE), dtype=torch.uint8)
    zeros = torch.randint(0, MAX_INT4 + 1, (SIZE, SIZE // GROUP), dtype=torch.uint8)
    scales = (torch.rand(SIZE, SIZE // GROUP) / 100 + 0.001).half()
    linear = nn.Linear(SIZE, SIZE, bias=False)
    steps = q.view(SIZE, -1, GROUP).float() - zeros.unsqueeze(-1).float()
    linear.weight.data = (steps * scales.unsqueeze(-1).float()).view(SIZE, SIZE)
    theirs = pack_with_autoawq(linear, scales, zeros.float())
    assert torch.equal(pack(q, scales, zeros).qweight, theirs.qweight)
    return _best(lambda: pack_with_autoawq(linear, scales, zeros.float()), 3) / _best(
        lambda: pack(q, scales, zeros), 20
    )


def _best(work: Callable[[], object], tries: int) -> float:
    def once() -> float:
        started = time.perf_counter()
        work()
        return time.perf_counter() - started

    return min(once() for _ in range(tries))
