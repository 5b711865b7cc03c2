"""Our own search, in AutoAWQ's place: the same scalings, ranges and integers chosen from Gram matrices."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from bot.quantize.architectures import shared_inputs
from bot.quantize.autoawq import LayerwiseQuantizer, name_of
from bot.quantize.hidden import largest
from bot.quantize.inputs import Inputs, watched
from bot.quantize.layer import Before, Made, Scales, fit_linears, layer_tensors, measure, weights_of
from bot.quantize.search import best_scaling
from bot.quantize.walk import Quantized, Turn


class GramQuantizer(LayerwiseQuantizer):
    """AutoAWQ's table of what can be scaled, and none of its forward passes but the one that sees the inputs."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._ratios: dict[str, float] = {}
        super().__init__(*args, **kwargs)

    def _quantize_layer(self, turn: Turn, layer: nn.Module) -> Quantized:
        index, inside = turn.index, f"{self._path}.{turn.index}"
        self.module_kwargs = dict(turn.arguments)
        linears, chosen = self._linears(layer, inside)
        groups = shared_inputs(self.awq_model.model_type, linears)
        with watched(linears, groups) as inputs:
            outputs = turn.run(layer)
        self._check_finite(index, linears, {name: largest(seen.peak) for name, seen in inputs.items()}, outputs)
        before = Before(weights=weights_of(chosen), grams={name: inputs[name].gram for name in chosen})
        self._ratios = {}
        scales = self._search_scales(index, layer, chosen, inputs)
        self._apply_scales(index, layer, turn.first_block(), scales)
        scaled = _scaled(inputs, scales)
        made = self._fit(index, chosen, scaled)
        return Quantized(
            tensors=layer_tensors(layer, inside, made, self._work.skeleton.names),
            modules=measure(index, before, made, scales, group_size=self.group_size),
            outputs=outputs,
            peak=max(outputs.peak, *(largest(seen.peak) for seen in scaled.values())),
        )

    def _search_best_scale(self, module: nn.Module, *args: Any, kwargs: Any = None, **others: Any) -> Any:
        readers, inputs = others["layers"], others["inp"]  # Inputs in the place of AutoAWQ's tokens
        names = tuple(name_of(module, reader) for reader in readers)
        weights = [reader.weight.detach().float() for reader in readers]
        scaling = best_scaling(weights, inputs.gram, inputs.mean, group_size=self.group_size)
        self._ratios |= dict.fromkeys(names, scaling.ratio)
        return name_of(module, others["prev_op"]), names, scaling.by.cpu()

    def _fit(self, index: int, chosen: Mapping[str, nn.Linear], inputs: Mapping[str, Inputs]) -> dict[str, Made]:
        """Ranges and integers for the scaled weights; linears that read the same scaled inputs in one go."""
        together: dict[int, list[str]] = {}
        for name in chosen:
            together.setdefault(id(inputs[name]), []).append(name)
        made: dict[str, Made] = {}
        for names in together.values():
            made |= fit_linears(
                index,
                {name: chosen[name] for name in names},
                inputs[names[0]].gram,
                group_size=self.group_size,
                ratios=self._ratios,
            )
        return {name: made[name] for name in chosen}


def _scaled(inputs: Mapping[str, Inputs], scales: Scales) -> dict[str, Inputs]:
    """What each linear reads once the scales are applied; those that shared an input share what it became."""
    scaled, seen = {}, {}
    for name, before in inputs.items():
        applied = tuple(at for at, (_, read_by, _) in enumerate(scales) if name in read_by)
        if (id(before), applied) not in seen:
            after = before
            for at in applied:
                after = after.scaled(scales[at][2].to(before.mean.device))
            seen[id(before), applied] = after
        scaled[name] = seen[id(before), applied]
    return scaled
