"""Method `awq+gptq`: scales and ranges searched on Gram matrices, and rounding that compensates its errors.

See search.py, in_turn.py and rounding.py. The source's layer runs once, for statistics. Then the layer runs on
what the quantized layers before it have computed, and its linears are quantized in turn while it does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn

from bot.checkpoint.constants import CORRECTED_TOKENS
from bot.checkpoint.device import dtypes_of, in_float32
from bot.checkpoint.layerwise import call_layer
from bot.errors import UnsupportedModelError
from bot.quantize.autoawq import LayerwiseQuantizer, among, check_scale, name_layer
from bot.quantize.correction import Writer, find_writers, keep_source
from bot.quantize.in_turn import Turns, fit_in_turn
from bot.quantize.layer import (
    LayerReference,
    Linears,
    QuantizedLinear,
    fit_by_input,
    layer_tensors,
    measure,
    weights_of,
)
from bot.quantize.layerfile import HiddenStates, largest
from bot.quantize.mixture import RoutedTokens, collect_routed, quantize_experts, readings_of_experts
from bot.quantize.scaling import Group, Names, Scale, scaled_inputs
from bot.quantize.search import InputStats, Reading, best_scaling, collect_input_stats
from bot.quantize.trace import Trace
from bot.quantize.walk import LayerRun, QuantizedLayer
from bot.records import ModuleError


class CompensatedQuantizer(LayerwiseQuantizer):
    """Method `awq+gptq`: one forward pass collects statistics of the inputs, a second one quantizes."""

    def _quantize_layer(self, run: LayerRun, layer: nn.Module) -> QuantizedLayer:
        index, inside, dtypes = run.index, f"{self._path}.{run.index}", dtypes_of(layer)
        trace = self._trace(run, layer)
        run, total = self._batched(run, layer), self._context.blocks.numel()
        searched = total if run.quantized is not None else None
        linears, chosen = self._linears(layer, inside)
        mixtures = [traced.mixture for traced in trace.experts]
        dense = {
            name: each for name, each in chosen.items() if not any(mixture.holds(name) for mixture in mixtures)
        }
        stops = among(trace.inputs, dense) if run.quantized is not None else []
        writers = self._writers(run, layer, stops)
        with (
            collect_input_stats(linears, trace.inputs, total=searched) as inputs,
            collect_routed(layer, mixtures, total=total) as routed,
            keep_source(layer, [first for first, *_ in stops], writers) as source,
        ):
            outputs = run.forward(layer)
        self._check_finite(index, linears, {name: largest(seen.peak) for name, seen in inputs.items()}, outputs)
        source_weights = weights_of(dense) if run.quantized is None else {}
        scales = self._scales(run, layer, trace, chosen=chosen, inputs=inputs, routed=routed)
        self._apply_scales(run, layer, scales)
        scaled = scaled_inputs(inputs, scales)
        peaks = [outputs.peak, *(largest(seen.peak) for seen in scaled.values())]
        experts, errors, expert_peaks = self._experts(
            index, layer, trace, chosen=chosen, routed=routed, scales=scales
        )
        if run.quantized is None:  # layers hand on more than their outputs, so there is no second run
            grams = {name: inputs[name].gram for name in dense if name in inputs}
            before = LayerReference(weights=source_weights, grams=grams)
            quantized = fit_by_input(index, dense, scaled, scales, group_size=self.group_size)
            quantized_outputs = None
        else:
            del inputs, scaled
            source.stream[None] = _first_tokens(run, outputs)
            quantized, before, quantized_outputs = fit_in_turn(
                Turns(
                    run=run,
                    layer=layer,
                    linears=dense,
                    stops=stops,
                    source=source,
                    writers=writers,
                    scales=scales,
                    experts=experts,
                    dtypes=dtypes,
                    group_size=self.group_size,
                )
            )
            self._check_finite(index, {}, {}, quantized_outputs)
            peaks.append(quantized_outputs.peak)
        modules = [*measure(index, before, quantized, scales, group_size=self.group_size), *errors]
        return QuantizedLayer(
            tensors=layer_tensors(layer, inside, quantized | experts, self._context.skeleton),
            modules=tuple(modules),
            source_outputs=outputs,
            quantized_outputs=quantized_outputs,
            max_activation=max(*peaks, *expert_peaks),
            experts=tuple(tokens.tokens(index) for tokens in routed.values()),
        )

    def _batched(self, run: LayerRun, layer: nn.Module) -> LayerRun:
        """With one block at a time where the layer's arguments are made for one, as ALiBi biases are."""
        two = next(run.states())[:2].to(self._context.device)
        if len(two) < 2:
            return run
        try:
            call_layer(layer, two, run.arguments.of(slice(0, 2), device=self._context.device))
        except (UnsupportedModelError, torch.OutOfMemoryError):  # a run of one block raises it again
            return replace(run, blocks_at_once=1)
        return run

    def _writers(self, run: LayerRun, layer: nn.Module, stops: Sequence[Names]) -> dict[str, Writer]:
        """Of the linears that share their inputs with no others."""
        short = run.shortened()
        states = short.first_block().to(self._context.device).float()
        alone = [names[0] for names in stops if len(names) == 1]
        with in_float32(layer):
            return find_writers(layer, partial(self._forward, short, layer, states), states, alone)

    def _scales(
        self,
        run: LayerRun,
        layer: nn.Module,
        trace: Trace,
        *,
        chosen: Linears,
        inputs: Mapping[str, InputStats],
        routed: Mapping[str, RoutedTokens],
    ) -> list[Scale]:
        scales = []
        for group in self._usable(layer, trace, run.index):
            readings, means = self._readings(layer, group, chosen, inputs, routed)
            if not readings:  # no token reached them
                continue
            with name_layer(run.index):
                found = best_scaling(readings, means[0], group.heads, group_size=self.group_size)
                if found is not None:
                    scales.append(check_scale(Scale(group, found.factors.cpu(), found.ratio)))
        return scales

    def _experts(
        self,
        index: int,
        layer: nn.Module,
        trace: Trace,
        *,
        chosen: Linears,
        routed: Mapping[str, RoutedTokens],
        scales: Sequence[Scale],
    ) -> tuple[dict[str, QuantizedLinear], list[ModuleError], list[float]]:
        """The quantized experts of all mixtures, their errors, and the largest activations."""
        quantized: dict[str, QuantizedLinear] = {}
        errors: list[ModuleError] = []
        peaks = []
        for traced in trace.experts:
            if any(traced.mixture.holds(name) for name in chosen):
                found, measured, peak = quantize_experts(
                    index, layer, traced, routed[traced.mixture.path], scales, group_size=self.group_size
                )
                quantized |= found
                errors += measured
                peaks.append(peak)
        return quantized, errors, peaks

    def _readings(
        self,
        layer: nn.Module,
        group: Group,
        chosen: Mapping[str, nn.Linear],
        inputs: Mapping[str, InputStats],
        routed: Mapping[str, RoutedTokens],
    ) -> tuple[list[Reading], list[Tensor]]:
        """How the linears of a group read its channels, and the mean absolute value of each channel."""
        readings = []
        by_input: dict[int, list[str]] = {}
        for name in group.readers:
            if name in chosen and name in inputs:
                by_input.setdefault(id(inputs[name]), []).append(name)
        for names in by_input.values():
            stats = inputs[names[0]]
            readings.append(Reading([chosen[name].weight for name in names], partial(getattr, stats, "gram")))
        means = [inputs[names[0]].mean for names in by_input.values()]
        for tokens in routed.values():
            experts = list(readings_of_experts(layer, tokens, group.readers, device=self._context.device))
            readings += experts
            if experts and not means:
                means.append(tokens.mean(self._context.device))
        return readings, means


def _first_tokens(run: LayerRun, outputs: HiddenStates) -> Tensor:
    """Of the source's layer, [tokens, hidden], on the CPU."""
    found, tokens = [], 0
    for part in run.outputs(outputs):
        if tokens >= CORRECTED_TOKENS:
            break
        found.append(part.flatten(0, -2))
        tokens += len(found[-1])
    return torch.cat(found)
