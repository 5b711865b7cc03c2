"""AutoAWQ 0.2.9, one layer at a time: its own search, and ours in its place. The only importer of awq.

Method `awq` is AutoAWQ's search for scales and clipping (https://arxiv.org/abs/2306.00978) and plain rounding.
Method `awq+gptq` searches both from Gram matrices, and rounds with the error compensation of GPTQ
(https://arxiv.org/abs/2210.17323). In both what can be scaled is traced, so that AutoAWQ needs no table.
"""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator, Mapping
from functools import partial
from math import isfinite
from typing import Any

import torch
from torch import Tensor, nn

from bot.checkpoint.arguments import to_device
from bot.checkpoint.device import in_float32
from bot.checkpoint.layerwise import call_layer, hidden_states_of
from bot.errors import QuantizationError, UnsupportedModelError
from bot.quantize.layer import layer_tensors, measure, reference_of, round_linears
from bot.quantize.layerfile import FinishedLayer, HiddenStates, largest
from bot.quantize.scaling import Group, Scale, scale_channels
from bot.quantize.search import (
    NOT_SHARED,
    diagonal_grams,
    grouped_energy,
)
from bot.quantize.trace import Trace, equivalent, still_holds, trace_layer
from bot.quantize.walk import LayerRun, QuantizeContext, QuantizedLayer, quantize_remaining_layers

# AutoAWQ announces its end in a DeprecationWarning on import, and resets the warning filters to have it shown.
with warnings.catch_warnings(record=True):
    from awq.models.auto import AWQ_CAUSAL_LM_MODEL_MAP
    from awq.models.base import TRANSFORMERS_AUTO_MAPPING_DICT, BaseAWQForCausalLM
    from awq.quantize.quantizer import AwqQuantizer
    from awq.quantize.scale import apply_clip

_log = logging.getLogger("awq_bot")

_BROKEN = "The file upstream is broken: report it to its author. Nothing was published."
_OUT_OF_RANGE = "Its activations exceed the range of its dtype on this text: try other calibration text."
_NOTHING_TO_DO = "This version cannot quantize it; put it on `hold:` in the watchlist."
_OTHER_METHOD = "Set `method: awq+gptq` in the entry's recipe."


@torch.no_grad()
def quantize_layers(context: QuantizeContext, *, quantizer: type[LayerwiseQuantizer]) -> tuple[FinishedLayer, ...]:
    """Quantize every decoder layer, each into its own file as soon as it is done; existing files are kept.

    Raises QuantizationError naming layer and module when numbers are not finite, UnsupportedModelError for what
    the method cannot do.
    """
    model = context.skeleton.model
    model_type = model.config.model_type
    _register(model_type)
    wrapped = AWQ_CAUSAL_LM_MODEL_MAP[model_type](model, model_type, False, model.config, None, None)
    wrapped.quantize(
        quant_config={
            "zero_point": context.recipe.zero_point,
            "q_group_size": context.recipe.group_size,
            "w_bit": context.recipe.bits,
            "version": context.recipe.version,
        },
        quantizer_cls=quantizer,
        context=context,
    )
    finished: tuple[FinishedLayer, ...] = wrapped.quantizer.finished
    return finished


def _register(model_type: str) -> None:
    """Make a type known to AutoAWQ, in the maps in which it looks for its own."""
    AWQ_CAUSAL_LM_MODEL_MAP.setdefault(model_type, type("TracedAWQForCausalLM", (BaseAWQForCausalLM,), {}))
    TRANSFORMERS_AUTO_MAPPING_DICT.setdefault(model_type, "AutoModelForCausalLM")


class LayerwiseQuantizer(AwqQuantizer):  # type: ignore[misc]  # awq has no types
    """Method `awq`: AutoAWQ's search on our calibration blocks, with its CPU bug fixed, without its saving."""

    def __init__(self, *args: Any, context: QuantizeContext, **kwargs: Any) -> None:
        self._context = context
        self._traces: dict[object, Trace] = {}
        self.finished: tuple[FinishedLayer, ...] = ()
        super().__init__(*args, **kwargs)

    def init_quant(self, n_samples: int = 0, max_seq_len: int = 0) -> tuple[Any, dict[str, Any], Tensor]:
        # AutoAWQ's own drops samples longer than max_seq_len, and swallows every ValueError of the model.
        self._path = self._context.skeleton.path
        return self._context.skeleton.layers, {}, torch.empty(0)

    def quantize(self) -> None:
        self.finished = quantize_remaining_layers(self._context, self._quantize_layer)

    def _quantize_layer(self, run: LayerRun, layer: nn.Module) -> QuantizedLayer:
        index, inside = run.index, f"{self._path}.{run.index}"
        if not run.arguments.same_for_all:
            raise UnsupportedModelError(
                f"layer {index}: AutoAWQ's search needs arguments that are the same for all samples",
                hint=_OTHER_METHOD,
            )
        trace = self._trace(run, layer)
        if trace.experts:
            raise UnsupportedModelError(
                f"layer {index}: AutoAWQ's search does not support mixtures of experts", hint=_OTHER_METHOD
            )
        self.module_kwargs = run.first_arguments(self._context.device)
        self.inps = torch.cat(list(run.states())).to(self._context.device)
        linears, chosen = self._linears(layer, inside)
        inputs = self._get_input_feat(layer, linears)
        outputs = run.store_outputs(torch.split(self.inps, run.blocks_at_once))
        self._check_finite(index, linears, {name: largest(seen) for name, seen in inputs.items()}, outputs)
        before = reference_of(chosen, inputs, among(trace.inputs, chosen), device=self._context.device)
        # AutoAWQ scales values only where each head has its own, and keys are not among them.
        usable = self._usable(layer, trace, index)
        usable = [group for group in usable if group.heads == NOT_SHARED and group.blocks == 1]
        scales = [self._search(index, layer, group, chosen, inputs) for group in usable]
        self._apply_scales(run, layer, scales)
        for group, factors, _ in scales:
            for name in set(group.readers) & set(inputs):
                inputs[name].div_(factors.to(inputs[name].device))
        clipped = self._clip(layer, chosen, inputs)
        quantized = round_linears(index, chosen, clipped, group_size=self.group_size)
        return QuantizedLayer(
            tensors=layer_tensors(layer, inside, quantized, self._context.skeleton),
            modules=measure(index, before, quantized, scales, group_size=self.group_size),
            source_outputs=outputs,
            max_activation=max(outputs.peak, *(largest(seen) for seen in inputs.values())),
        )

    def _trace(self, run: LayerRun, layer: nn.Module) -> Trace:
        """The trace of this layer, or that of an earlier one with the same structure."""
        shapes = tuple((name, tuple(value.shape)) for name, value in layer.named_parameters())
        classes = tuple(type(module).__qualname__ for module in layer.modules())
        short = run.shortened()
        states = short.first_block().to(self._context.device).float()
        once = partial(self._forward, short, layer, states)
        with in_float32(layer):
            trace = self._traces.get((shapes, classes))
            if trace is None or not still_holds(trace, layer, once, states):
                trace = trace_layer(layer, once, states)
                for readers in trace.dropped:
                    _log.debug("layer %d: the inputs of %s are not scaled", run.index, ", ".join(readers[:4]))
                self._traces[shapes, classes] = trace
        return trace

    def _forward(self, run: LayerRun, layer: nn.Module, states: Tensor) -> tuple[Tensor, ...]:
        """The layer on the first block's states, in float32: its hidden states, and what it hands on."""
        arguments = self._first_arguments(run)
        output = call_layer(layer, states.clone(), arguments)
        handed_on = run.arguments.handed_on_by(arguments, output).values()
        return hidden_states_of(output), *(value for values in handed_on for value in values)

    def _first_arguments(self, run: LayerRun) -> dict[str, Any]:
        """In float32."""
        device = self._context.device
        made: dict[str, Any] = to_device(run.first_arguments(device), device=device, dtype=torch.float32)
        return made

    def _usable(self, layer: nn.Module, trace: Trace, index: int) -> list[Group]:
        """The groups outside of experts that have something to quantize, and nothing that is stored in parts."""
        packed, inside = self._context.linears_to_quantize, f"{self._path}.{index}"
        skeleton = self._context.skeleton

        def is_written(name: str) -> bool:
            path = f"{inside}.{name}"
            is_stored = skeleton.origins[f"{path}.weight"].name in skeleton.stored
            return skeleton.why_fixed(f"{path}.weight") is None and (path in packed or is_stored)

        return [
            group
            for group in trace.groups
            if any(f"{inside}.{name}" in packed for name in group.readers)
            and all(is_written(name) for name in (group.producer, *group.readers))
        ]

    def _linears(self, layer: nn.Module, inside: str) -> tuple[dict[str, nn.Linear], dict[str, nn.Linear]]:
        """All linears of the layer by name, and those to quantize. inside: the layer's path."""
        linears = {name: module for name, module in layer.named_modules() if isinstance(module, nn.Linear)}
        return linears, {
            name: linears[name] for name in linears if f"{inside}.{name}" in self._context.linears_to_quantize
        }

    def _search(
        self,
        index: int,
        layer: nn.Module,
        group: Group,
        chosen: Mapping[str, nn.Linear],
        inputs: Mapping[str, Tensor],
    ) -> Scale:
        """AutoAWQ's search, on the output of the smallest module that holds the linears of the group."""
        names = [name for name in group.readers if name in chosen]
        parent = _common_parent(names)
        with name_layer(index):
            _, _, factors = self._search_best_scale(
                layer,
                prev_op=layer.get_submodule(group.producer),
                layers=[chosen[name] for name in names],
                inp=inputs[names[0]],
                module2inspect=layer.get_submodule(parent) if parent else _Side(chosen[name] for name in names),
                kwargs=self.module_kwargs,
            )
            return check_scale(Scale(group, factors))

    def _apply_scales(self, run: LayerRun, layer: nn.Module, scales: list[Scale]) -> None:
        """Leaves the layer in float32: rounded to half precision, the norms would lose what the scaling gains."""
        layer.float()
        first = run.first_block().to(self._context.device).float()
        self.module_kwargs = self._first_arguments(run)
        expected = self._forward(run, layer, first)
        for group, factors, _ in scales:
            scale_channels(layer, group, factors)
        if not equivalent(self._forward(run, layer, first), expected, first):
            raise UnsupportedModelError(
                f"layer {run.index}: scaling changes what this layer computes", hint=_NOTHING_TO_DO
            )

    def _clip(
        self, layer: nn.Module, chosen: Mapping[str, nn.Linear], inputs: Mapping[str, Tensor]
    ) -> dict[str, float]:
        """Search the clipping and apply it. Returns the share of each reached linear's weights that it changed."""
        reached = {name: linear for name, linear in chosen.items() if name in inputs}
        limits = self._search_best_clip(layer, reached, inputs)
        unclipped = {name: chosen[name].weight.detach().cpu().clone() for name, _ in limits}
        apply_clip(layer, limits)
        layer.to(self._context.device)
        return {
            name: float((chosen[name].weight.detach().cpu() != weight).float().mean())
            for name, weight in unclipped.items()
        }

    def _check_finite(
        self, index: int, linears: Mapping[str, nn.Linear], peaks: Mapping[str, float], outputs: HiddenStates
    ) -> None:
        """peaks: the largest absolute value that each linear read; those that no token reached are not in it."""
        for name, linear in linears.items():
            if not isfinite(largest(linear.weight)):
                raise QuantizationError(f"layer {index}, {name}: its weights hold NaN or infinity", hint=_BROKEN)
            if not isfinite(peaks.get(name, 0.0)):
                raise QuantizationError(
                    f"layer {index}, {name}: its inputs hold NaN or infinity", hint=_OUT_OF_RANGE
                )
        if not isfinite(outputs.peak):
            raise QuantizationError(f"layer {index}: its output holds NaN or infinity", hint=_OUT_OF_RANGE)

    def _kwargs_of(self, layer: nn.Module) -> dict[str, Any]:
        kwargs: dict[str, Any] = self._sanitize_kwargs(self.module_kwargs, layer)
        return kwargs

    def _search_best_scale(self, module: nn.Module, *args: Any, kwargs: Any = None, **others: Any) -> Any:
        # AutoAWQ removes keys from kwargs, which all searches of a layer share.
        return super()._search_best_scale(module, *args, kwargs=dict(kwargs or {}), **others)

    def _compute_best_scale(self, x: Any, w_mean: Any, x_mean: Any, module2inspect: Any, *args: Any) -> Any:
        # AutoAWQ backs the weights up as {k: v.cpu()}, which copies nothing on a CPU: after the first step of the
        # grid they stay scaled, without an error. So state_dict returns copies here.
        # https://github.com/casper-hansen/AutoAWQ/blob/v0.2.9/awq/quantize/quantizer.py
        state_dict = module2inspect.state_dict
        module2inspect.state_dict = lambda: {key: value.clone() for key, value in state_dict().items()}
        try:
            return super()._compute_best_scale(x, w_mean, x_mean, module2inspect, *args)
        finally:
            del module2inspect.state_dict

    def _compute_best_clip(
        self, w: Tensor, input_feat: Tensor, n_grid: int = 20, max_shrink: float = 0.5, n_sample_token: int = 512
    ) -> Tensor:
        # AutoAWQ's own asserts that the output channels divide by 64, and multiplies all tokens out again at each
        # step. Same tokens, same grid and same error here, with the tokens multiplied out once.
        columns = w.shape[1]
        tokens = input_feat.reshape(-1, columns)
        tokens = tokens[:: max(1, len(tokens) // n_sample_token)]
        grams = diagonal_grams(tokens, group_size=self.group_size, device=w.device)
        groups = w.float().view(len(w), -1, self.group_size)
        largest = groups.abs().amax(dim=-1, keepdim=True)
        best, lowest = largest.clone(), torch.full_like(largest, torch.inf)
        for step in range(int(max_shrink * n_grid)):
            limit = largest * (1 - step / n_grid)
            clipped = groups.clamp(-limit, limit)
            quantized = self.pseudo_quantize_tensor(clipped.view(w.shape))[0].view(groups.shape)
            error = grouped_energy(quantized - groups, grams).unsqueeze(-1)
            best = torch.where(error < lowest, limit, best)
            lowest = torch.minimum(error, lowest)
        return best

    def _module_forward(self, x: Tensor, module: nn.Module, module_kwargs: dict[str, Any]) -> Tensor:
        # An ALiBi bias is made for one batch size; the other arguments broadcast from a batch of one.
        blocks = 1 if module_kwargs.get("alibi") is not None else self._context.blocks_at_once
        # Some models flatten [samples, seq_len, channels] before their linears.
        rows = blocks if x.dim() == 3 else blocks * self._context.blocks.shape[1]
        return torch.cat([hidden_states_of(module(part, **module_kwargs)) for part in torch.split(x, rows)])


class _Side(nn.Module):
    """Linears that read the same input, as one module: their outputs beside each other."""

    def __init__(self, linears: Any) -> None:
        super().__init__()
        self.linears = nn.ModuleList(linears)

    def forward(self, inputs: Tensor) -> Tensor:
        return torch.cat([linear(inputs) for linear in self.linears], dim=-1)


def _common_parent(names: list[str]) -> str:
    """The smallest module that holds all of these; for one, the linear itself."""
    if len(names) == 1:
        return names[0]
    parts = zip(*(name.split(".") for name in names), strict=False)
    common = []
    for part in parts:
        if len(set(part)) > 1:
            break
        common.append(part[0])
    return ".".join(common)


def among(together: Any, chosen: Mapping[str, Any]) -> list[tuple[str, ...]]:
    found = [tuple(name for name in names if name in chosen) for names in together]
    return [names for names in found if names]


def check_scale(scale: Scale) -> Scale:
    if not bool((torch.isfinite(scale.factors) & (scale.factors > 0)).all()):
        raise QuantizationError(
            f"the scales for {', '.join(scale.group.readers[:4])} are not finite", hint=_OUT_OF_RANGE
        )
    return scale


@contextlib.contextmanager
def name_layer(index: int) -> Iterator[None]:
    """AutoAWQ's exceptions, and ours, as errors that name the layer."""
    try:
        yield
    except QuantizationError as error:
        raise QuantizationError(f"layer {index}: {error.message}", hint=error.hint) from error
    except Exception as error:
        # It asserts on NaN, and raises a bare Exception when no step of the grid has a finite loss.
        if isinstance(error, AssertionError) or type(error) is Exception:
            raise QuantizationError(
                f"layer {index}: the search found no finite scales: {error}", hint=_OUT_OF_RANGE
            ) from error
        raise
