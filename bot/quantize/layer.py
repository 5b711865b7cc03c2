"""One decoder layer: the reference it is measured against, its quantized linears, and their output errors."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from bot.checkpoint.gemm import pack
from bot.checkpoint.rounding import Rounded, dequantize, round_to_nearest, to_rounded
from bot.checkpoint.skeleton import Skeleton
from bot.errors import QuantizationError
from bot.quantize.rounding import clipped_share, compensated
from bot.quantize.scaling import Scale, unscaled
from bot.quantize.search import InputStats, best_levels, diagonal_blocks, gram, relative_errors
from bot.records import ModuleError

Linears = Mapping[str, nn.Linear]  # name within the layer


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerReference:
    """The weights before rounding, float32 [out, in], and the Gram matrices of their inputs [in, in].

    The source's, or those corrected for what was quantized before them.
    """

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
    linears: Linears, inputs: Mapping[str, Tensor], together: Iterable[Sequence[str]], *, device: torch.device
) -> LayerReference:
    """together: the linears that share an input, whose Gram matrix is computed once."""
    grams: dict[str, Tensor] = {}
    for first, *others in together:
        grams |= dict.fromkeys((first, *others), gram(inputs[first], device=device))
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


def fit_by_input(
    index: int, linears: Linears, inputs: Mapping[str, InputStats], scales: Sequence[Scale], *, group_size: int
) -> dict[str, QuantizedLinear]:
    """Ranges and integers for the scaled weights; linears that read the same scaled inputs go together.

    inputs: statistics of the scaled inputs; a linear without any is rounded to nearest.
    """
    together: dict[int, list[str]] = {}
    for name in linears:
        if name in inputs:
            together.setdefault(id(inputs[name]), []).append(name)
    ratios = ratios_of(scales)
    quantized: dict[str, QuantizedLinear] = {}
    for names in together.values():
        weights = {name: linears[name].weight.detach().float() for name in names}
        quantized |= fit(index, weights, inputs[names[0]].gram, group_size=group_size, ratios=ratios)
    unseen = {name: linear for name, linear in linears.items() if name not in inputs}
    for name, rounded in round_linears(index, unseen, {}, group_size=group_size).items():
        quantized[name] = replace(rounded, fallback="plain rounding")
    return quantized


def ratios_of(scales: Sequence[Scale]) -> dict[str, float | None]:
    """AWQ's alpha by the linear that reads what was scaled."""
    return {name: scale.ratio for scale in scales for name in scale.group.readers}


def fit(
    index: int,
    weights: Mapping[str, Tensor],
    inputs_gram: Tensor,
    *,
    group_size: int,
    ratios: Mapping[str, float | None],
) -> dict[str, QuantizedLinear]:
    """Ranges and integers that keep the outputs close, for linears that read the same scaled inputs.

    weights: float32 [out, in]; inputs_gram: H of those inputs, [in, in]. Raises QuantizationError naming layer and
    module.
    """
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
    """The output error of each linear against the weights and inputs of `before`, and that of plain rounding."""
    modules = []
    for name, weight in before.weights.items():
        if name not in before.grams:  # nothing reached it
            continue
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


def layer_tensors(
    layer: nn.Module, path: str, quantized: Mapping[str, QuantizedLinear], skeleton: Skeleton
) -> dict[str, Tensor]:
    """The layer's tensors as a checkpoint holds them, under their stored names: packed linears, and the rest.

    path: the layer's in the model. Tensors that transformers makes from others are left out: those are copied.
    """
    tensors: dict[str, Tensor] = {}
    for key, value in layer.state_dict().items():
        linear, origin = key.removesuffix(".weight"), skeleton.origins.get(f"{path}.{key}")
        if origin is None:  # a buffer that the model computes for itself
            continue
        if linear in quantized and key != linear:
            packed = pack(*quantized[linear].rounded)
            stem = origin.name.removesuffix(".weight")
            tensors |= {f"{stem}.{part}": tensor for part, tensor in packed._asdict().items()}
        elif origin.name in skeleton.stored or key.rpartition(".")[0] in quantized:
            tensors[origin.name] = value
    return tensors
