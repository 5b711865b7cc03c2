"""Quantize the linears of a layer in turn, each on what it reads once everything before it is quantized."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from typing import NamedTuple

import torch
from torch import Tensor, nn

from bot.checkpoint.constants import CORRECTED_TOKENS
from bot.checkpoint.device import set_dtypes
from bot.checkpoint.rounding import dequantize
from bot.quantize.correction import SourceStates, Writer, correct
from bot.quantize.layer import (
    LayerReference,
    Linears,
    QuantizedLinear,
    fit,
    ratios_of,
    round_linears,
    weights_of,
)
from bot.quantize.layerfile import HiddenStates
from bot.quantize.paused import PausedRuns
from bot.quantize.scaling import Names, Scale, unscaled, unscaled_gram
from bot.quantize.walk import LayerRun


class InTurn(NamedTuple):
    """The quantized linears, the weights that they were rounded from, and the outputs of the quantized layer."""

    quantized: dict[str, QuantizedLinear]
    before: LayerReference
    outputs: HiddenStates


@dataclass(frozen=True, slots=True, kw_only=True)
class Turns:
    """A layer whose linears are to be quantized in turn.

    layer: in float32, scaled by `scales`. linears: those to quantize, outside of mixtures; stops: the reached ones
    in the order in which they run, those with the same input together. experts: quantized already. dtypes: of its
    parameters and buffers when it runs. source, writers: see correction.py.
    """

    run: LayerRun
    layer: nn.Module
    linears: Linears
    stops: Sequence[Names]
    source: SourceStates
    writers: Mapping[str, Writer]
    scales: Sequence[Scale]
    experts: Mapping[str, QuantizedLinear]
    dtypes: Mapping[str, torch.dtype]
    group_size: int


def fit_in_turn(turns: Turns) -> InTurn:
    """Leaves the layer in float32: the linears as a reader of the artifact has them, everything else as it was."""
    layer, run = turns.layer, turns.run
    weights = weights_of(turns.linears)
    exact = _without(layer, {*turns.linears, *turns.experts})
    quantized = _plain(turns)
    _set_weights(layer, {**quantized, **turns.experts})
    set_dtypes(layer, turns.dtypes)
    targets: dict[str, Tensor] = {}
    grams: dict[str, Tensor] = {}
    parts = list(_parts(run, stop=CORRECTED_TOKENS))
    norms = {writer.before for writer in turns.writers.values()}
    with PausedRuns(
        layer,
        partial(run.run_quantized, layer),
        parts,
        stops=[first for first, *_ in turns.stops],
        norms=[norm for norm in norms if norm is not None],
    ) as runs:
        for names in turns.stops:
            found, wanted, gram = _fit_stop(turns, names, {name: weights.pop(name) for name in names}, runs)
            _set_weights(layer, found)
            quantized |= found
            targets |= {name: unscaled(weight, name, turns.scales) for name, weight in wanted.items()}
            grams |= dict.fromkeys(names, unscaled_gram(gram, names[0], turns.scales))
        numbered = enumerate(_parts(run))
        rest = (run.run_quantized(layer, number, part) for number, part in numbered if number >= len(parts))
        outputs = run.store_quantized(chain(runs.outputs(), rest))
    layer.float()
    for name, value in exact.items():
        layer.get_parameter(name).data.copy_(value)
    return InTurn(quantized, LayerReference(weights=targets, grams=grams), outputs)


def _fit_stop(
    turns: Turns, names: Names, weights: Mapping[str, Tensor], runs: PausedRuns
) -> tuple[dict[str, QuantizedLinear], dict[str, Tensor], Tensor]:
    """The linears that share an input, the corrected weights, and the Gram matrix of what they read."""
    first = names[0]
    wanted, gram = correct(
        {name: turns.linears[name] for name in names},
        weights,
        runs.at(first),
        turns.source,
        writer=turns.writers.get(first),
        factors=_factors(turns.scales, first),
    )
    ratios = ratios_of(turns.scales)
    return fit(turns.run.index, wanted, gram, group_size=turns.group_size, ratios=ratios), wanted, gram


def _without(layer: nn.Module, linears: set[str]) -> dict[str, Tensor]:
    """Copies of all parameters but the weights of these linears."""
    return {
        name: value.detach().clone()
        for name, value in layer.named_parameters()
        if name.removesuffix(".weight") not in linears
    }


def _plain(turns: Turns) -> dict[str, QuantizedLinear]:
    """The linears that no token reaches, rounded to nearest."""
    reached = {name for names in turns.stops for name in names}
    unseen = {name: linear for name, linear in turns.linears.items() if name not in reached}
    rounded = round_linears(turns.run.index, unseen, {}, group_size=turns.group_size)
    return {name: replace(each, fallback="plain rounding") for name, each in rounded.items()}


def _parts(run: LayerRun, *, stop: int | None = None) -> Iterator[Tensor]:
    """What the quantized layers before have computed, some blocks at a time, with no more than `stop` tokens."""
    tokens = 0
    for part in run.quantized_states():
        tokens += part.shape[0] * part.shape[1]
        if stop is not None and tokens > stop:
            return
        yield part


def _factors(scales: Sequence[Scale], name: str) -> Tensor | None:
    """By which the inputs of a linear are divided, [in]; None if they are not."""
    found = None
    for scale in scales:
        if name in scale.group.readers:
            factors = scale.for_reader(scale.factors.device)
            found = factors if found is None else found * factors
    return found


@torch.no_grad()
def _set_weights(layer: nn.Module, quantized: Mapping[str, QuantizedLinear]) -> None:
    """To what a reader of the artifact makes of them."""
    for name, linear in quantized.items():
        layer.get_parameter(f"{name}.weight").copy_(dequantize(linear.rounded))
