"""AutoAWQ 0.2.9, one layer at a time: its own search, and ours in its place. The only importer of awq.

Method `awq` is AutoAWQ's search for scales and clipping (https://arxiv.org/abs/2306.00978) and plain rounding.
Method `awq+gptq` searches both from Gram matrices, and rounds with the error compensation of GPTQ
(https://arxiv.org/abs/2210.17323). In both AutoAWQ's tables say what can be scaled, and its code scales it.
"""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Iterator, Mapping
from math import isfinite
from typing import Any

import torch
from torch import Tensor, nn

from bot.checkpoint.layerwise import hidden_states_of, to_device
from bot.errors import QuantizationError, UnsupportedModelError
from bot.quantize.architectures import shared_inputs
from bot.quantize.layer import (
    LayerReference,
    QuantizedLinear,
    Scale,
    fit_linears,
    is_scalable,
    layer_tensors,
    measure,
    name_of,
    reference_of,
    round_linears,
    scaled_inputs,
    weights_of,
)
from bot.quantize.layerfile import FinishedLayer, HiddenStates, largest
from bot.quantize.search import InputStats, best_scaling, collect_input_stats, diagonal_grams, grouped_energy
from bot.quantize.walk import LayerRun, QuantizeContext, QuantizedLayer, quantize_remaining_layers

# AutoAWQ announces its end in a DeprecationWarning on import, and resets the warning filters to have it shown.
with warnings.catch_warnings(record=True):
    from awq.models.auto import AWQ_CAUSAL_LM_MODEL_MAP
    from awq.models.base import TRANSFORMERS_AUTO_MAPPING_DICT
    from awq.quantize.quantizer import AwqQuantizer
    from awq.quantize.scale import apply_clip, apply_scale

_EQUIVALENT = 1e-3  # relative: float32 rounding stays far below, a wrong scaling is far above

_BROKEN = "The file upstream is broken: report it to its author. Nothing was published."
_OUT_OF_RANGE = "Its activations exceed the range of its dtype on this text: try other calibration text."
_NOTHING_TO_DO = "This version cannot quantize it; put it on `hold:` in the watchlist."


def check_known(model: Any, layers: nn.ModuleList) -> None:
    """Raises UnsupportedModelError unless AutoAWQ knows it as a causal language model with just these layers.

    AutoAWQ names the list of layers for each type: `get_model_layers` in
    https://github.com/casper-hansen/AutoAWQ/tree/v0.2.9/awq/models.
    """
    model_type = model.config.model_type
    if TRANSFORMERS_AUTO_MAPPING_DICT.get(model_type) != "AutoModelForCausalLM":
        raise UnsupportedModelError(
            f"AutoAWQ has no causal language model of type {model_type!r}", hint=_NOTHING_TO_DO
        )
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # one of its classes prints the model
            known = AWQ_CAUSAL_LM_MODEL_MAP[model_type].get_model_layers(model)
    except AttributeError as error:
        raise UnsupportedModelError(
            f"AutoAWQ does not know this kind of {model_type!r}: {error}", hint=_NOTHING_TO_DO
        ) from error
    if known is not layers:
        raise UnsupportedModelError(
            f"AutoAWQ does not know this kind of {model_type!r}: its decoder layers are elsewhere",
            hint=_NOTHING_TO_DO,
        )


@torch.no_grad()
def quantize_layers(context: QuantizeContext, *, quantizer: type[LayerwiseQuantizer]) -> tuple[FinishedLayer, ...]:
    """Quantize every decoder layer, each into its own file as soon as it is done; existing files are kept.

    Raises QuantizationError naming layer and module when numbers are not finite, UnsupportedModelError when
    AutoAWQ's scaling does not fit the model.
    """
    model = context.skeleton.model
    wrapped = AWQ_CAUSAL_LM_MODEL_MAP[model.config.model_type](
        model, model.config.model_type, False, model.config, None, None
    )
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


class LayerwiseQuantizer(AwqQuantizer):  # type: ignore[misc]  # awq has no types
    """Method `awq`: AutoAWQ's search on our calibration blocks, with its CPU bug fixed, without its saving."""

    def __init__(self, *args: Any, context: QuantizeContext, **kwargs: Any) -> None:
        self._context = context
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
        self.module_kwargs = dict(run.arguments)
        self.inps = torch.cat(list(run.states())).to(self._context.device)
        linears, chosen = self._linears(layer, inside)
        inputs = self._get_input_feat(layer, linears)
        outputs = run.store_outputs(torch.split(self.inps, run.blocks_at_once))
        self._check_finite(index, linears, {name: largest(seen) for name, seen in inputs.items()}, outputs)
        groups = shared_inputs(self.awq_model.model_type, chosen)
        before = reference_of(chosen, inputs, groups, device=self._context.device)
        scales = self._search_scales(index, layer, chosen, inputs)
        self._apply_scales(index, layer, run.first_block(), scales, inputs)
        clipped = self._clip(layer, chosen, inputs)
        quantized = round_linears(index, chosen, clipped, group_size=self.group_size)
        return QuantizedLayer(
            tensors=layer_tensors(layer, inside, quantized, self._context.skeleton.names),
            modules=measure(index, before, quantized, scales, group_size=self.group_size),
            source_outputs=outputs,
            max_activation=max(outputs.peak, *(largest(seen) for seen in inputs.values())),
        )

    def _linears(self, layer: nn.Module, inside: str) -> tuple[dict[str, nn.Linear], dict[str, nn.Linear]]:
        """All linears of the layer by name, and those to quantize. inside: the layer's path."""
        linears = {name: module for name, module in layer.named_modules() if isinstance(module, nn.Linear)}
        return linears, {
            name: linears[name] for name in linears if f"{inside}.{name}" in self._context.linears_to_quantize
        }

    def _search_scales(
        self, index: int, layer: nn.Module, chosen: Mapping[str, nn.Linear], inputs: Mapping[str, Any]
    ) -> list[Scale]:
        """inputs: what each linear reads, in the form that _search_best_scale takes."""
        scales: list[Scale] = []
        with _naming(index, self.awq_model.model_type):
            for entry in self.awq_model.get_layers_for_scaling(layer, inputs, self.module_kwargs):
                if is_scalable(entry, chosen.values(), name_of(layer, entry["prev_op"])):
                    scales.append(Scale(*self._search_best_scale(layer, **entry)))
            for _, consumers, factors in scales:
                if not bool((torch.isfinite(factors) & (factors > 0)).all()):
                    raise QuantizationError(
                        f"the scales for {', '.join(consumers)} are not finite", hint=_OUT_OF_RANGE
                    )
        return scales

    def _apply_scales(
        self,
        index: int,
        layer: nn.Module,
        first: Tensor,
        scales: list[Scale],
        inputs: dict[str, Tensor] | None = None,
    ) -> None:
        """Apply the scales, to the layer and to inputs. first: one block's hidden states, to check the result on.

        Leaves the layer in float32: rounded to half precision, the norms would lose what the scaling gains.
        """
        layer.float()
        first = first.to(self._context.device)
        self.module_kwargs = to_device(self.module_kwargs, device=self._context.device, dtype=torch.float32)
        expected = self._module_forward(first.float(), layer, self._kwargs_of(layer))
        with _naming(index, self.awq_model.model_type):
            apply_scale(layer, scales, input_feat_dict=inputs)
        layer.to(self._context.device)
        got = self._module_forward(first.float(), layer, self._kwargs_of(layer))
        # Compared by what the layer adds to its input: the input itself may be far larger.
        if (got - expected).norm() > _EQUIVALENT * (expected - first.float()).norm():
            raise UnsupportedModelError(
                f"layer {index}: AutoAWQ's scaling changes what this {self.awq_model.model_type} computes",
                hint=_NOTHING_TO_DO,
            )

    def _clip(
        self, layer: nn.Module, chosen: Mapping[str, nn.Linear], inputs: Mapping[str, Tensor]
    ) -> dict[str, float]:
        """Search the clipping and apply it. Returns the share of each linear's weights that it changed."""
        limits = self._search_best_clip(layer, chosen, inputs)
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
        """peaks: the largest absolute value that each linear read."""
        for name, linear in linears.items():
            if name not in peaks:
                raise UnsupportedModelError(
                    f"layer {index}, {name}: the calibration blocks never reached it",
                    hint="Give it more calibration samples, or leave the module out with modules_to_not_convert.",
                )
            if not isfinite(largest(linear.weight)):
                raise QuantizationError(f"layer {index}, {name}: its weights hold NaN or infinity", hint=_BROKEN)
            if not isfinite(peaks[name]):
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


class CompensatedQuantizer(LayerwiseQuantizer):
    """Method `awq+gptq`: one forward pass collects statistics of the inputs; everything is searched on these."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._ratios: dict[str, float] = {}
        super().__init__(*args, **kwargs)

    def _quantize_layer(self, run: LayerRun, layer: nn.Module) -> QuantizedLayer:
        index, inside = run.index, f"{self._path}.{run.index}"
        self.module_kwargs = dict(run.arguments)
        linears, chosen = self._linears(layer, inside)
        groups = shared_inputs(self.awq_model.model_type, linears)
        with collect_input_stats(linears, groups) as inputs:
            outputs = run.forward(layer)
        self._check_finite(index, linears, {name: largest(seen.peak) for name, seen in inputs.items()}, outputs)
        before = LayerReference(weights=weights_of(chosen), grams={name: inputs[name].gram for name in chosen})
        self._ratios = {}
        scales = self._search_scales(index, layer, chosen, inputs)
        self._apply_scales(index, layer, run.first_block(), scales)
        scaled = scaled_inputs(inputs, scales)
        quantized = self._fit(index, chosen, scaled)
        return QuantizedLayer(
            tensors=layer_tensors(layer, inside, quantized, self._context.skeleton.names),
            modules=measure(index, before, quantized, scales, group_size=self.group_size),
            source_outputs=outputs,
            max_activation=max(outputs.peak, *(largest(seen.peak) for seen in scaled.values())),
        )

    def _search_best_scale(self, module: nn.Module, *args: Any, kwargs: Any = None, **others: Any) -> Any:
        readers, inputs = others["layers"], others["inp"]  # InputStats in place of AutoAWQ's tokens
        names = tuple(name_of(module, reader) for reader in readers)
        weights = [reader.weight.detach().float() for reader in readers]
        scaling = best_scaling(weights, inputs.gram, inputs.mean, group_size=self.group_size)
        self._ratios |= dict.fromkeys(names, scaling.ratio)
        return name_of(module, others["prev_op"]), names, scaling.factors.cpu()

    def _fit(
        self, index: int, chosen: Mapping[str, nn.Linear], inputs: Mapping[str, InputStats]
    ) -> dict[str, QuantizedLinear]:
        """Ranges and integers for the scaled weights; linears that read the same scaled inputs go together."""
        together: dict[int, list[str]] = {}
        for name in chosen:
            together.setdefault(id(inputs[name]), []).append(name)
        quantized: dict[str, QuantizedLinear] = {}
        for names in together.values():
            quantized |= fit_linears(
                index,
                {name: chosen[name] for name in names},
                inputs[names[0]].gram,
                group_size=self.group_size,
                ratios=self._ratios,
            )
        return {name: quantized[name] for name in chosen}


@contextlib.contextmanager
def _naming(index: int, model_type: str) -> Iterator[None]:
    """AutoAWQ's exceptions, and ours, as errors that name the layer."""
    try:
        yield
    except QuantizationError as error:
        raise QuantizationError(f"layer {index}: {error.message}", hint=error.hint) from error
    except (AttributeError, KeyError, NotImplementedError, TypeError) as error:
        raise UnsupportedModelError(
            f"layer {index}: AutoAWQ does not know this kind of {model_type!r}: {error}", hint=_NOTHING_TO_DO
        ) from error
    except Exception as error:
        # It asserts on NaN, and raises a bare Exception when no step of the grid has a finite loss.
        if isinstance(error, AssertionError) or type(error) is Exception:
            raise QuantizationError(
                f"layer {index}: the search found no finite scales: {error}", hint=_OUT_OF_RANGE
            ) from error
        raise
