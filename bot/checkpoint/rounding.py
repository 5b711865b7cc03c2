"""Weights to the nearest 4-bit integers, and back. Pure tensor code."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from bot.errors import QuantizationError

MAX_INT4 = 15  # the largest 4-bit integer
# A group of zeros still needs a scale; the value is AutoAWQ's.
SMALLEST_RANGE = 1e-5


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
