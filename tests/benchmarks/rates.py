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


def matrix_rate(
    size: int = 8192, times: int = 20, *, device: str = "cuda", dtype: torch.dtype = torch.bfloat16
) -> float:
    """Floating-point operations a second of matrix products, [size, size] each."""
    left, right = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))

    def multiply() -> None:
        for _ in range(times):
            left @ right
        _synchronize(device)

    multiply()
    return 2.0 * size**3 * times / _seconds(multiply)


def kernel_seconds(channels: int = 4096, times: int = 2000, *, device: str = "cuda") -> float:
    """How long one small operation takes among many, such as those of the column sweep."""
    values = torch.ones(channels, device=device)

    def add() -> None:
        for _ in range(times):
            torch.add(values, values, out=values)
        _synchronize(device)

    add()
    return _seconds(add) / times


def work_of(case: Case) -> float:
    """Operations that cannot be saved: one forward pass of all tokens, and half of each Gram matrix."""
    tokens = case.samples * case.seq_len
    hidden, wide = case.hidden, case.intermediate
    attention = 3 * hidden * hidden  # q, o, half as wide k and v
    mlps = case.experts_per_token or 1
    linears = attention + mlps * 3 * hidden * wide  # gate, up, down
    # Of what q, k and v read, o, the MLP, and its last linear; each expert reads its own tokens.
    grams = (2 * hidden**2 + mlps * (hidden**2 + wide**2)) / 2
    return case.layers * 2.0 * tokens * (linears + grams)


def _synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def _seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started
