"""Weights to 4-bit integers: rounded to nearest, or with each column compensating the errors of those before it.

The latter is GPTQ's column sweep (https://arxiv.org/abs/2210.17323) on given scales and zeros, then coordinate
descent. Pure tensor code.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from bot.errors import QuantizationError

MAX_INT4 = 15  # the largest 4-bit integer
# A group of zeros still needs a scale; the value is AutoAWQ's.
SMALLEST_RANGE = 1e-5
# Added to H's diagonal, relative to its mean; tried in order until the Cholesky factorization succeeds.
DAMPING = (0.01, 0.1, 1.0)
BLOCK = 128  # columns whose errors are applied to all later columns in one matrix product
REFINEMENTS = 2  # passes of coordinate descent over all integers


class Levels(NamedTuple):
    """The 16 values of each group: (0..15 - zero) * scale.

    Both float32 [out, in/g]; scales are values that float16 holds, zeros integers 0..15.
    """

    scales: Tensor
    zeros: Tensor


class Rounded(NamedTuple):
    """q: uint8 0..15 [out, in]; scales: float16 [out, in/g]; zeros: uint8 0..15 [out, in/g]."""

    q: Tensor
    scales: Tensor
    zeros: Tensor


def levels_between(low: Tensor, high: Tensor) -> Levels:
    """Evenly spaced levels from low to high, any shape [out, in/g].

    Raises QuantizationError when a bound is not finite or float16 holds no such scale.
    """
    # The zero point is one of the 16 levels, so a group that lies on one side of zero must reach to zero.
    low, high = low.clamp(max=0), high.clamp(min=0)
    scales = ((high - low).clamp(min=SMALLEST_RANGE) / MAX_INT4).to(torch.float16).to(torch.float32)
    if not bool(torch.isfinite(scales).all()):
        raise QuantizationError(
            "a weight is not finite, or too large for a float16 scale", hint="Are the weights upstream broken?"
        )
    return Levels(scales, torch.round(-low / scales).clamp_(0, MAX_INT4))


def whole_range(groups: Tensor) -> Levels:
    """Levels from the smallest to the largest weight of each group; groups: [out, in/g, g]."""
    return levels_between(groups.amin(dim=-1), groups.amax(dim=-1))


def nearest_steps(groups: Tensor, levels: Levels) -> Tensor:
    """q - zero of the level nearest to each weight: float32 [out, in/g, g], as groups."""
    zeros = levels.zeros.unsqueeze(-1)
    steps = (groups / levels.scales.unsqueeze(-1)).round_()
    return torch.minimum(torch.maximum(steps, -zeros, out=steps), MAX_INT4 - zeros, out=steps)


def round_to_nearest(weight: Tensor, *, group_size: int) -> Rounded:
    """Round each group of group_size input channels of weight [out, in] to the nearest of 16 evenly spaced levels.

    The integers are chosen for the float16 scales that are stored, not for more exact ones. Raises
    QuantizationError when a weight is not finite or float16 holds no such scale.
    """
    out, columns = weight.shape
    groups = weight.to(torch.float32).view(out, columns // group_size, group_size)
    levels = whole_range(groups)
    return to_rounded(nearest_steps(groups, levels).view(out, columns), levels)


def to_rounded(steps: Tensor, levels: Levels) -> Rounded:
    """Integers and scales in the dtypes of a checkpoint. steps: q - zero, [out, in]."""
    out, groups = levels.scales.shape
    q = steps.view(out, groups, -1) + levels.zeros.unsqueeze(-1)
    return Rounded(
        q.to(torch.uint8).view(steps.shape), levels.scales.to(torch.float16), levels.zeros.to(torch.uint8)
    )


def dequantize(rounded: Rounded) -> Tensor:
    """The float32 weight [out, in], as an AWQ loader dequantizes it: (q - zero) * scale."""
    out, groups = rounded.scales.shape
    steps = rounded.q.view(out, groups, -1).to(torch.float32) - rounded.zeros.to(torch.float32).unsqueeze(-1)
    return (steps * rounded.scales.to(torch.float32).unsqueeze(-1)).view(rounded.q.shape)


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

    weights: float32 [out, in] of linears that read the same inputs; inputs_gram: their H = X^T X, [in, in]. No
    output's error is larger than with the nearest steps on the same levels. Channels whose input is always zero
    are rounded to nearest. fallback: see inverse_factor.
    """
    # Outputs are independent of each other, so one sweep does all linears.
    weight = torch.cat(list(weights))
    joined = Levels(*(torch.cat(parts) for parts in zip(*levels, strict=True)))
    nearest = nearest_steps(weight.view(*joined.scales.shape, -1), joined).view(weight.shape)
    order = sweep_order(inputs_gram)
    factor, fallback = inverse_factor(inputs_gram, order)
    if factor is not None:
        fitted = refined(weight, joined, gptq_sweep(weight, joined, factor, order), inputs_gram)
        error, error_nearest = (_output_error(weight, each, joined, inputs_gram) for each in (fitted, nearest))
        better = error < error_nearest
        nearest = torch.where(better.unsqueeze(1), fitted, nearest)
    return list(torch.split(nearest, [len(part) for part in weights])), fallback


def sweep_order(gram: Tensor) -> Tensor:
    """Channels with the largest inputs first (GPTQ's act-order): all others can still compensate their errors."""
    return torch.argsort(gram.diagonal(), descending=True, stable=True)


def inverse_factor(gram: Tensor, order: Tensor) -> tuple[Tensor | None, str]:
    """The upper U with U^T U = (H + damping)^-1 for channels in this order, and the fallback, or "".

    At most two matrices of H's size exist beside it at a time: they decide which GPU a wide layer fits on.
    """
    diagonal = gram.diagonal()
    for damping in DAMPING:
        # A channel that is always zero is correlated with no other; any positive number will do.
        added = damping * diagonal.mean() + (diagonal <= 0).to(gram.dtype)
        damped = gram[order.unsqueeze(1), order]
        damped.diagonal().add_(added[order])
        lower, failed = torch.linalg.cholesky_ex(damped)
        del damped
        if bool(failed):
            continue
        inverse = torch.cholesky_inverse(lower)
        del lower
        factor, failed = torch.linalg.cholesky_ex(inverse, upper=True)
        del inverse
        if not bool(failed) and bool(torch.isfinite(factor).all()):
            return factor, "" if damping == DAMPING[0] else f"damping {damping:g}"
    return None, "plain rounding"


def conditional_variances(gram: Tensor) -> Tensor:
    """The variance of each channel that those after it in the sweep do not explain, [in]; damped."""
    order = sweep_order(gram)
    factor, _ = inverse_factor(gram, order)
    if factor is None:
        return gram.diagonal()
    return torch.empty_like(gram.diagonal()).index_copy_(0, order, factor.diagonal().square().reciprocal())


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


def refined(weight: Tensor, levels: Levels, steps: Tensor, gram: Tensor) -> Tensor:
    """Coordinate descent: each integer to the best one while all others stay. No output's error can grow."""
    columns = weight.shape[1]
    by_group = _by_column(levels, columns, torch.arange(columns))
    diagonal = gram.diagonal().tolist()
    chosen = steps.t().contiguous()
    # H (W - W')^T: minus half of the error's gradient with respect to the dequantized weights.
    residual = gram @ (
        weight.t() - chosen * levels.scales.t().repeat_interleave(columns // levels.scales.shape[1], dim=0)
    )
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
    return chosen.t().contiguous()


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
