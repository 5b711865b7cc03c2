"""Weights to 4-bit integers. Pure tensor code."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from bot.errors import QuantizationError

LEVELS = 15  # the largest 4-bit integer
# A group of nothing but zeros still needs a scale; the value is AutoAWQ's.
SMALLEST_RANGE = 1e-5


class Rounded(NamedTuple):
    """q: uint8 0..15 [out, in]; scales: float16 [out, in/g]; zeros: uint8 0..15 [out, in/g]."""

    q: Tensor
    scales: Tensor
    zeros: Tensor


def round_to_nearest(weight: Tensor, *, group_size: int) -> Rounded:
    """Each group of group_size input channels of weight [out, in] to the nearest of 16 evenly spaced levels.

    The integers are chosen for the float16 scales that a reader will multiply them with, not for more exact
    ones that nobody stores. Raises QuantizationError when a weight is not finite or float16 holds no such scale.
    """
    out, columns = weight.shape
    groups = weight.to(torch.float32).view(out, columns // group_size, group_size)
    # The zero point is one of the 16 levels, so a group that lies on one side of zero must reach to zero.
    low = groups.amin(dim=-1).clamp(max=0)
    high = groups.amax(dim=-1).clamp(min=0)
    scales = ((high - low).clamp(min=SMALLEST_RANGE) / LEVELS).to(torch.float16)
    if not bool(torch.isfinite(scales).all()):
        raise QuantizationError(
            "a weight is not finite, or too large for a float16 scale", hint="Are the weights upstream broken?"
        )
    step = scales.to(torch.float32)
    zeros = torch.round(-low / step).clamp(0, LEVELS)
    q = torch.round(groups / step.unsqueeze(-1)).add_(zeros.unsqueeze(-1)).clamp_(0, LEVELS)
    return Rounded(q.to(torch.uint8).view(out, columns), scales, zeros.to(torch.uint8))


def restore(rounded: Rounded) -> Tensor:
    """The float32 weight [out, in] that a reader computes: (q - zero) * scale."""
    out, groups = rounded.scales.shape
    steps = rounded.q.view(out, groups, -1).to(torch.float32) - rounded.zeros.to(torch.float32).unsqueeze(-1)
    return (steps * rounded.scales.to(torch.float32).unsqueeze(-1)).view(rounded.q.shape)
