"""One decoder layer before and after: what to remember of it, what it becomes, and what that cost."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bot.checkpoint.gemm import pack
from bot.errors import QuantizationError
from bot.quantize.architectures import Groups
from bot.quantize.rounding import Rounded, restore, round_to_nearest
from bot.quantize.search import gram, relative_error
from bot.records import ModuleError

Linears = Mapping[str, nn.Linear]  # name within the layer
# (what makes the channels, what reads them, by how much the latter were multiplied [channels])
Scales = list[tuple[str, tuple[str, ...], Tensor]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Before:
    """The source's weights, float32 [out, in], and the Gram matrices of their inputs [in, in]."""

    weights: Mapping[str, Tensor]
    grams: Mapping[str, Tensor]


def remember(linears: Linears, inputs: Mapping[str, Tensor], groups: Groups, *, device: torch.device) -> Before:
    """groups: the linears that share an input, so that each input is multiplied out once."""
    grams: dict[str, Tensor] = {}
    for group in groups:
        grams |= dict.fromkeys(group, gram(inputs[group[0]], device=device))
    weights = {name: linear.weight.detach().float().clone() for name, linear in linears.items()}
    return Before(weights=weights, grams=grams)


def round_linears(index: int, linears: Linears, *, group_size: int) -> dict[str, Rounded]:
    """Integers for the weights as they are now. Raises QuantizationError naming layer and module."""
    rounded = {}
    for name, linear in linears.items():
        try:
            rounded[name] = round_to_nearest(linear.weight.detach(), group_size=group_size)
        except QuantizationError as error:
            raise QuantizationError(f"layer {index}, {name}: {error.message}", hint=error.hint) from None
    return rounded


def measure(
    index: int,
    before: Before,
    rounded: Mapping[str, Rounded],
    scales: Scales,
    clipped: Mapping[str, float],
    *,
    group_size: int,
) -> tuple[ModuleError, ...]:
    """What each linear lost on the source's own inputs, next to plain rounding of the source's weights."""
    return tuple(
        ModuleError(
            layer=index,
            module=name,
            relative_error=relative_error(
                weight, unscaled(restore(rounded[name]), name, scales), before.grams[name]
            ),
            relative_error_rounding=relative_error(
                weight, restore(round_to_nearest(weight, group_size=group_size)), before.grams[name]
            ),
            clipped_share=clipped.get(name, 0.0),
        )
        for name, weight in before.weights.items()
    )


def unscaled(weight: Tensor, name: str, scales: Scales) -> Tensor:
    """The weight [out, in] with the search's scaling taken back, so that it compares with the source's."""
    for made_by, read_by, by in scales:
        factor = by.to(device=weight.device, dtype=weight.dtype)
        if name in read_by:
            weight = weight / factor
        if name == made_by:
            # A merged linear (gate and up, or q, k and v) makes the scaled channels with its last rows.
            rows = torch.ones(weight.shape[0], device=weight.device, dtype=weight.dtype)
            rows[-len(factor) :] = factor
            weight = weight * rows.unsqueeze(1)
    return weight


def layer_tensors(
    layer: nn.Module, path: str, rounded: Mapping[str, Rounded], names: Mapping[str, str]
) -> dict[str, Tensor]:
    """Everything of the layer as a checkpoint holds it, under the source's names: packed linears, and the rest.

    path: the layer's in the model; names: the source's name for each tensor of the model that the source has.
    """
    tensors: dict[str, Tensor] = {}
    for key, value in layer.state_dict().items():
        linear, name = key.removesuffix(".weight"), names.get(f"{path}.{key}")
        if name is None:  # a buffer that the model computes for itself
            continue
        if linear in rounded and key != linear:
            packed = pack(*rounded[linear])
            stem = name.removesuffix(".weight")
            tensors |= {f"{stem}.{part}": tensor for part, tensor in packed._asdict().items()}
        else:
            tensors[name] = value
    return tensors
