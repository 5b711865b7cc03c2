"""Method `awq+gptq`: scales and ranges searched on Gram matrices, and rounding that compensates its errors.

See search.py and rounding.py. A layer runs once; statistics of the inputs replace the inputs themselves.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

from torch import Tensor, nn

from bot.quantize.autoawq import LayerwiseQuantizer, check_scale, name_layer
from bot.quantize.layer import LayerReference, fit_by_input, layer_tensors, measure, weights_of
from bot.quantize.layerfile import largest
from bot.quantize.mixture import RoutedTokens, collect_routed, quantize_experts, readings_of_experts
from bot.quantize.scaling import Group, Scale, scaled_inputs
from bot.quantize.search import InputStats, Reading, best_scaling, collect_input_stats
from bot.quantize.walk import LayerRun, QuantizedLayer


class CompensatedQuantizer(LayerwiseQuantizer):
    """Method `awq+gptq`: one forward pass collects statistics of the inputs; everything is searched on these."""

    def _quantize_layer(self, run: LayerRun, layer: nn.Module) -> QuantizedLayer:
        index, inside = run.index, f"{self._path}.{run.index}"
        trace = self._trace(run, layer)
        linears, chosen = self._linears(layer, inside)
        mixtures = [traced.mixture for traced in trace.experts]
        dense = {
            name: each for name, each in chosen.items() if not any(mixture.holds(name) for mixture in mixtures)
        }
        tokens = self._context.blocks.numel()
        with (
            collect_input_stats(linears, trace.inputs) as inputs,
            collect_routed(layer, mixtures, total=tokens) as routed,
        ):
            outputs = run.forward(layer)
        self._check_finite(index, linears, {name: largest(seen.peak) for name, seen in inputs.items()}, outputs)
        before = LayerReference(
            weights=weights_of(dense), grams={name: inputs[name].gram for name in dense if name in inputs}
        )
        scales = []
        for group in self._usable(layer, trace, index):
            readings, means = self._readings(layer, group, chosen, inputs, routed)
            if not readings:  # no token reached them
                continue
            with name_layer(index):
                found = best_scaling(readings, means[0], group_size=self.group_size)
                scales.append(check_scale(Scale(group, found.factors.cpu(), found.ratio)))
        self._apply_scales(run, layer, scales)
        scaled = scaled_inputs(inputs, scales)
        quantized = fit_by_input(index, dense, scaled, scales, group_size=self.group_size)
        modules = list(measure(index, before, quantized, scales, group_size=self.group_size))
        peaks = [outputs.peak, *(largest(seen.peak) for seen in scaled.values())]
        del before, inputs, scaled
        for traced in trace.experts:
            if any(traced.mixture.holds(name) for name in chosen):
                experts, errors, peak = quantize_experts(
                    index, layer, traced, routed[traced.mixture.path], scales, group_size=self.group_size
                )
                quantized |= experts
                modules += errors
                peaks.append(peak)
        return QuantizedLayer(
            tensors=layer_tensors(layer, inside, quantized, self._context.skeleton),
            modules=tuple(modules),
            source_outputs=outputs,
            max_activation=max(peaks),
            experts=tuple(tokens.tokens(index) for tokens in routed.values()),
        )

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
