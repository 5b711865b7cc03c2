"""One decoder layer: the reference it is measured against, its quantized linears, and their output errors."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from bot.checkpoint.gemm import pack
from bot.errors import QuantizationError
from bot.quantize.architectures import Groups
from bot.quantize.rounding import Rounded, clipped_share, compensated, dequantize, round_to_nearest, to_rounded
from bot.quantize.search import InputStats, best_levels, diagonal_blocks, gram, relative_errors
from bot.records import ModuleError

Linears = Mapping[str, nn.Linear]  # name within the layer


class Scale(NamedTuple):
    """A scaling, in the order in which AutoAWQ's apply_scale unpacks it.

    producer: the module that computes the channels; its rows are divided by the factors. consumers: the linears
    that read them; their columns are multiplied. factors: [channels].
    """

    producer: str
    consumers: tuple[str, ...]
    factors: Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerReference:
    """The source's weights, float32 [out, in], and the Gram matrices of their inputs [in, in]."""

    weights: Mapping[str, Tensor]
    grams: Mapping[str, Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantizedLinear:
    """clipped_share: of the weights, those beyond the levels. fallback: what was done instead of compensation."""

    rounded: Rounded
    clipped_share: float = 0.0
    ratio: float | None = None
    fallback: str = ""


def reference_of(
    linears: Linears, inputs: Mapping[str, Tensor], groups: Groups, *, device: torch.device
) -> LayerReference:
    """groups: the linears that share an input, whose Gram matrix is computed once."""
    grams: dict[str, Tensor] = {}
    for group in groups:
        grams |= dict.fromkeys(group, gram(inputs[group[0]], device=device))
    return LayerReference(weights=weights_of(linears), grams=grams)


def weights_of(linears: Linears) -> dict[str, Tensor]:
    """Copies in float32, [out, in] each."""
    return {name: linear.weight.detach().to(torch.float32, copy=True) for name, linear in linears.items()}


def round_linears(
    index: int, linears: Linears, clipped: Mapping[str, float], *, group_size: int
) -> dict[str, QuantizedLinear]:
    """The nearest integers for the weights as they are now. Raises QuantizationError naming layer and module."""
    quantized = {}
    for name, linear in linears.items():
        with error_location(index, name):
            rounded = round_to_nearest(linear.weight.detach(), group_size=group_size)
        quantized[name] = QuantizedLinear(rounded=rounded, clipped_share=clipped.get(name, 0.0))
    return quantized


def fit_linears(
    index: int, linears: Linears, inputs_gram: Tensor, *, group_size: int, ratios: Mapping[str, float]
) -> dict[str, QuantizedLinear]:
    """Ranges and integers that keep the outputs close, for linears that read the same scaled inputs.

    inputs_gram: H of those, [in, in]. Raises QuantizationError naming layer and module.
    """
    weights = {name: linear.weight.detach().float() for name, linear in linears.items()}
    grams = diagonal_blocks(inputs_gram, group_size=group_size)
    levels = {}
    for name, weight in weights.items():
        with error_location(index, name):
            levels[name] = best_levels(weight.view(len(weight), -1, group_size), grams)
    steps, fallback = compensated(list(weights.values()), list(levels.values()), inputs_gram)
    return {
        name: QuantizedLinear(
            rounded=to_rounded(chosen, levels[name]),
            clipped_share=clipped_share(weights[name], levels[name]),
            ratio=ratios.get(name),
            fallback=fallback,
        )
        for name, chosen in zip(weights, steps, strict=True)
    }


@contextmanager
def error_location(index: int, name: str) -> Iterator[None]:
    """Name layer and module in a QuantizationError."""
    try:
        yield
    except QuantizationError as error:
        raise QuantizationError(f"layer {index}, {name}: {error.message}", hint=error.hint) from None


def measure(
    index: int,
    before: LayerReference,
    quantized: Mapping[str, QuantizedLinear],
    scales: Sequence[Scale],
    *,
    group_size: int,
) -> tuple[ModuleError, ...]:
    """The output error of each linear on the source's own inputs, and that of plain rounding."""
    modules = []
    for name, weight in before.weights.items():
        ours = unscaled(dequantize(quantized[name].rounded), name, scales)
        plain = dequantize(round_to_nearest(weight, group_size=group_size))
        error, error_rounding = relative_errors(weight, (ours, plain), before.grams[name])
        modules.append(
            ModuleError(
                layer=index,
                module=name,
                relative_error=error,
                relative_error_rounding=error_rounding,
                ratio=quantized[name].ratio,
                clipped_share=quantized[name].clipped_share,
                fallback=quantized[name].fallback,
            )
        )
    return tuple(modules)


def scaled_inputs(inputs: Mapping[str, InputStats], scales: Sequence[Scale]) -> dict[str, InputStats]:
    """Statistics of what each linear reads once the scales are applied; those that shared an input still do."""
    scaled, seen = {}, {}
    for name, before in inputs.items():
        applied = tuple(index for index, scale in enumerate(scales) if name in scale.consumers)
        if (id(before), applied) not in seen:
            after = before
            for index in applied:
                after = after.scaled(scales[index].factors.to(before.mean.device))
            seen[id(before), applied] = after
        scaled[name] = seen[id(before), applied]
    return scaled


def unscaled(weight: Tensor, name: str, scales: Sequence[Scale]) -> Tensor:
    """The weight [out, in] with the scaling undone, to be compared with the source's."""
    for producer, consumers, on_cpu in scales:
        factors = on_cpu.to(device=weight.device, dtype=weight.dtype)
        if name in consumers:
            weight = weight / factors
        if name == producer:
            # A merged linear (gate and up, or q, k and v) computes the scaled channels with its last rows.
            rows = torch.ones(weight.shape[0], device=weight.device, dtype=weight.dtype)
            rows[-len(factors) :] = factors
            weight = weight * rows.unsqueeze(1)
    return weight


def layer_tensors(
    layer: nn.Module, path: str, quantized: Mapping[str, QuantizedLinear], names: Mapping[str, str]
) -> dict[str, Tensor]:
    """The layer's tensors as a checkpoint holds them, under the source's names: packed linears, and the rest.

    path: the layer's in the model; names: the source's name for each tensor of the model that the source has.
    """
    tensors: dict[str, Tensor] = {}
    for key, value in layer.state_dict().items():
        linear, name = key.removesuffix(".weight"), names.get(f"{path}.{key}")
        if name is None:  # a buffer that the model computes for itself
            continue
        if linear in quantized and key != linear:
            packed = pack(*quantized[linear].rounded)
            stem = name.removesuffix(".weight")
            tensors |= {f"{stem}.{part}": tensor for part, tensor in packed._asdict().items()}
        else:
            tensors[name] = value
    return tensors


def is_scalable(entry: dict[str, Any], chosen: Collection[nn.Linear], producer: str) -> bool:
    """Whether this entry of AutoAWQ's table scales the input of a chosen linear without changing the model."""
    prev_op, readers = entry["prev_op"], entry["layers"]
    if not any(reader is linear for reader in readers for linear in chosen):
        return False
    if isinstance(prev_op, nn.Linear):
        # The channels are the last rows: of up in gate and up, of v in q, k and v when they are equally many.
        parts = (3,) if "qkv" in producer.lower() else (1, 2)
        return prev_op.out_features in {part * readers[0].in_features for part in parts}
    # Scaling an activation function adds a tensor `act.scales`, for which vLLM's models have no place.
    return any(True for _ in prev_op.parameters())


def name_of(layer: nn.Module, module: nn.Module | None) -> str:
    for name, candidate in layer.named_modules():
        if candidate is module:
            return str(name)
    raise AttributeError("its table names a module that this layer does not have")
