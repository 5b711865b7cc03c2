"""Weights to 4-bit integers, with each column compensating the errors of those before it.

This is GPTQ's column sweep (https://arxiv.org/abs/2210.17323) on given scales and zeros, then coordinate descent.
Pure tensor code.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from math import isfinite

import torch
from torch import Tensor

from bot.checkpoint.rounding import MAX_INT4, Levels, nearest_steps

# Added to H's diagonal, relative to each channel, as correlations between channels are other ones on other text.
# Measured in tests/benchmarks/README.md.
CHANNEL_DAMPING = 1.0
# Added to H's diagonal, relative to its mean; tried in order until the Cholesky factorization succeeds.
DAMPING = (0.01, 0.1, 1.0)
NO_FACTOR = "plain rounding"  # the fallback if it never does
BLOCK = 128  # columns whose errors are applied to all later columns in one matrix product
REFINEMENTS = 2  # passes of coordinate descent over all integers


def clipped_share(weight: Tensor, levels: Levels) -> float:
    """The share of the weights [out, in] that lie beyond the levels of their group."""
    out, groups = levels.scales.shape
    steps = (weight.view(out, groups, -1) / levels.scales.unsqueeze(-1)).round_()
    zeros = levels.zeros.unsqueeze(-1)
    return float(((steps < -zeros) | (steps > MAX_INT4 - zeros)).float().mean())


def compensated(
    weights: Sequence[Tensor], levels: Sequence[Levels], inputs_gram: Tensor
) -> tuple[list[Tensor], str]:
    """Steps with a small output error tr(D H D^T), D = weight - dequantized, and the fallback that was needed.

    weights: float32 [out, in] of linears that read the same inputs; inputs_gram: their H = X^T X, [in, in], which
    counts with CHANNEL_DAMPING. No output's error is then larger than with the nearest steps on the same levels.
    Channels whose input is always zero are rounded to nearest. fallback: see inverse_factor.
    """
    # Outputs are independent of each other, so one sweep does all linears.
    weight = torch.cat(list(weights))
    joined = Levels(*(torch.cat(parts) for parts in zip(*levels, strict=True)))
    nearest = nearest_steps(weight.view(*joined.scales.shape, -1), joined).view(weight.shape)
    order = sweep_order(inputs_gram)
    with damped_channels(inputs_gram):
        factor, fallback = inverse_factor(inputs_gram, order)
        if factor is not None:
            fitted, error = refined(weight, joined, gptq_sweep(weight, joined, factor, order), inputs_gram)
            better = error < _output_error(weight, nearest, joined, inputs_gram)
            nearest = torch.where(better.unsqueeze(1), fitted, nearest)
    return list(torch.split(nearest, [len(part) for part in weights])), fallback


@contextmanager
def damped_channels(gram: Tensor) -> Iterator[None]:
    """Add CHANNEL_DAMPING to the diagonal inside the `with` block; in place, as H may be large."""
    diagonal = gram.diagonal().clone()
    gram.diagonal().mul_(1 + CHANNEL_DAMPING)
    try:
        yield
    finally:
        gram.diagonal().copy_(diagonal)


def sweep_order(gram: Tensor) -> Tensor:
    """Channels with the largest inputs first (GPTQ's act-order): all others can still compensate their errors."""
    return torch.argsort(gram.diagonal(), descending=True, stable=True)


def inverse_factor(gram: Tensor, order: Tensor) -> tuple[Tensor | None, str]:
    """The upper U with U^T U = (H + damping)^-1 for channels in this order, and the fallback, or "".

    At most two matrices of H's size exist beside it at a time: they decide which GPU a wide layer fits on.
    """
    lower, fallback = _cholesky_from_last(gram, order)
    if lower is None:
        return None, fallback
    inverse = torch.eye(len(lower), dtype=lower.dtype, device=lower.device)
    torch.linalg.solve_triangular(lower, inverse, upper=False, out=inverse)
    del lower
    if not isfinite(float(inverse.sum())):
        return None, NO_FACTOR
    return inverse.flip(0, 1), fallback


def conditional_variances(gram: Tensor) -> Tensor:
    """The variance of each channel that those after it in the sweep do not explain, [in]; damped."""
    order = sweep_order(gram)
    lower, _ = _cholesky_from_last(gram, order)
    if lower is None:
        return gram.diagonal()
    return torch.empty_like(gram.diagonal()).index_copy_(0, order.flip(0), lower.diagonal().square())


def _cholesky_from_last(gram: Tensor, order: Tensor) -> tuple[Tensor | None, str]:
    """The lower L with L L^T = H + damping, for the channels from the last one of this order to the first, and the
    fallback. L turned around is upper, and so is its inverse.
    """
    order = order.flip(0)
    diagonal = gram.diagonal()
    for damping in DAMPING:
        # A channel that is always zero is correlated with no other; any positive number will do.
        added = damping * diagonal.mean() + (diagonal <= 0).to(gram.dtype)
        damped = gram[order.unsqueeze(1), order]
        damped.diagonal().add_(added[order])
        lower, failed = torch.linalg.cholesky_ex(damped)
        del damped
        if not bool(failed) and isfinite(float(lower.diagonal().sum())):
            return lower, "" if damping == DAMPING[0] else f"damping {damping:g}"
    return None, NO_FACTOR


def gptq_sweep(weight: Tensor, levels: Levels, factor: Tensor, order: Tensor) -> Tensor:
    """GPTQ: column by column in this order, each one's error spread over the columns that are not yet rounded.

    factor: as from inverse_factor, [in, in], its channels in this order.
    """
    columns = weight.shape[1]
    by_group = _by_column(levels, columns, order)
    pivots = factor.diagonal().tolist()
    free = weight.t()[order].contiguous()  # channels as rows: each step reads and writes contiguous memory
    steps = torch.empty_like(free)
    for start in range(0, columns, BLOCK):
        stop = min(start + BLOCK, columns)
        errors = torch.empty_like(free[start:stop])
        for column, error in zip(range(start, stop), errors, strict=True):
            scale, lowest, highest = by_group[column]
            chosen = torch.div(free[column], scale, out=steps[column]).round_().clamp_(lowest, highest)
            torch.addcmul(free[column], chosen, scale, value=-1, out=error).div_(pivots[column])
            free[column + 1 : stop].addr_(factor[column, column + 1 : stop], error, alpha=-1)
        free[stop:].addmm_(factor[start:stop, stop:].t(), errors, alpha=-1)
    return torch.empty_like(steps).index_copy_(0, order, steps).t().contiguous()


def refined(weight: Tensor, levels: Levels, steps: Tensor, gram: Tensor) -> tuple[Tensor, Tensor]:
    """Coordinate descent: each integer to the best one while all others stay. No output's error can grow.

    The steps, and tr(D H D^T) by output, [out].
    """
    columns = weight.shape[1]
    by_group = _by_column(levels, columns, torch.arange(columns))
    diagonal = gram.diagonal().tolist()
    chosen = steps.t().contiguous()
    # H (W - W')^T: minus half of the error's gradient with respect to the dequantized weights.
    scales = levels.scales.t().repeat_interleave(columns // levels.scales.shape[1], dim=0)
    residual = gram @ (weight.t() - chosen * scales)
    best = torch.empty_like(chosen[0])
    for start in list(range(0, columns, BLOCK)) * REFINEMENTS:
        stop = min(start + BLOCK, columns)
        near, moves = residual[start:stop].clone(), torch.zeros_like(residual[start:stop])
        for column, move in zip(range(start, stop), moves, strict=True):
            if diagonal[column] > 0:
                scale, lowest, highest = by_group[column]
                now = chosen[column]
                torch.addcdiv(now, near[column - start], scale, value=1 / diagonal[column], out=best)
                best.round_().clamp_(lowest, highest)
                torch.sub(best, now, out=move).mul_(scale)
                near[column - start + 1 :].addr_(gram[column, column + 1 : stop], move, alpha=-1)
                now.copy_(best)
        residual.addmm_(gram[:, start:stop], moves, alpha=-1)
    error = scales.mul_(chosen).sub_(weight.t()).mul_(residual).sum(dim=0).neg_()
    return chosen.t().contiguous(), error


def _by_column(levels: Levels, columns: int, order: Tensor) -> list[tuple[Tensor, Tensor, Tensor]]:
    """For each column in this order its group's scale, lowest and highest step, [out] each."""
    lowest = (-levels.zeros).t().contiguous()
    groups = list(zip(levels.scales.t().contiguous(), lowest, lowest + MAX_INT4, strict=True))
    return [groups[group] for group in (order // (columns // len(groups))).tolist()]


def _output_error(weight: Tensor, steps: Tensor, levels: Levels, gram: Tensor) -> Tensor:
    """tr(D H D^T) by output, [out]."""
    out, groups = levels.scales.shape
    difference = weight - (steps.view(out, groups, -1) * levels.scales.unsqueeze(-1)).view(weight.shape)
    return ((difference @ gram) * difference).sum(dim=1)
