"""AWQ's scaling: channels are divided where they are computed and multiplied where they are read.

https://arxiv.org/abs/2306.00978, section 3.2. Which channels can be scaled, trace.py finds out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from bot.quantize.search import NOT_SHARED, InputStats, SharedHeads

Names = tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Channels that can be scaled. producer: the norm or linear that computes them; readers: what multiplies them.

    Readers are linears, and routers that hold a weight [experts, hidden] themselves. offset: 1 for norms that
    multiply by 1 + weight. blocks: a merged linear has so many equal blocks of rows, such as one for each head. Of
    each block the last rows compute the channels, or with first_rows the first ones. heads: which heads read the
    same channels.
    """

    producer: str
    readers: Names
    offset: float = 0.0
    blocks: int = 1
    first_rows: bool = False
    heads: SharedHeads = NOT_SHARED


class Scale(NamedTuple):
    """A scaling that was chosen. factors: [channels]; ratio: AWQ's alpha, see search.Scaling."""

    group: Group
    factors: Tensor
    ratio: float | None = None

    def for_reader(self, device: torch.device) -> Tensor:
        """By which the inputs of the readers are divided, [in]."""
        return self.group.heads.repeat(self.factors.to(device))


@torch.no_grad()
def scale_channels(layer: nn.Module, group: Group, factors: Tensor) -> None:
    """Divide what the producer computes by the factors, [channels], and multiply what the readers read."""
    producer: Any = layer.get_submodule(group.producer)
    factors = factors.to(producer.weight.device, producer.weight.dtype)
    if producer.weight.dim() == 1:
        producer.weight.add_(group.offset).div_(factors).sub_(group.offset)
        if getattr(producer, "bias", None) is not None:
            producer.bias.div_(factors)
    else:
        for parameter in (producer.weight, producer.bias):
            if parameter is not None:
                rows = _computing(parameter, group, len(factors))
                rows.div_(factors.view(*rows.shape[:2], *[1] * (rows.dim() - 2)))
    for name in group.readers:
        weight: Any = layer.get_submodule(name).weight
        weight.mul_(group.heads.repeat(factors))


def _computing(parameter: Tensor, group: Group, channels: int) -> Tensor:
    """Of a linear's weight or bias, [out, …], what computes the channels: [blocks, channels / blocks, …]."""
    blocks = parameter.detach().view(group.blocks, -1, *parameter.shape[1:])
    rows = channels // group.blocks
    return blocks[:, :rows] if group.first_rows else blocks[:, -rows:]


def scaled_inputs(inputs: Mapping[str, InputStats], scales: Sequence[Scale]) -> dict[str, InputStats]:
    """Statistics of what each linear reads once the scales are applied; those that shared an input still do."""
    scaled, seen = {}, {}
    for name, before in inputs.items():
        applied = tuple(index for index, scale in enumerate(scales) if name in scale.group.readers)
        if (id(before), applied) not in seen:
            after = before
            for index in applied:
                after = after.scaled(scales[index].for_reader(before.mean.device))
            seen[id(before), applied] = after
        scaled[name] = seen[id(before), applied]
    return scaled


def unscaled(weight: Tensor, name: str, scales: Sequence[Scale]) -> Tensor:
    """The weight [out, in] with the scaling undone, to be compared with the source's."""
    for scale in scales:
        if name in scale.group.readers:
            weight = weight / scale.for_reader(weight.device).to(weight.dtype)
        if name == scale.group.producer:
            by_row = torch.ones(len(weight), device=weight.device, dtype=weight.dtype)
            computing = _computing(by_row, scale.group, len(scale.factors))
            computing.copy_(scale.factors.view_as(computing))
            weight = weight * by_row.unsqueeze(1)
    return weight


def unscaled_gram(scaled: Tensor, name: str, scales: Sequence[Scale]) -> Tensor:
    """The Gram matrix [in, in] of a linear's inputs, with their scaling undone."""
    for scale in scales:
        if name in scale.group.readers:
            factors = scale.for_reader(scaled.device)
            scaled = scaled * factors * factors.unsqueeze(1)
    return scaled
