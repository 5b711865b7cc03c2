"""AutoAWQ, layer by layer: its own search, and ours in its place. The only importer of awq."""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Iterator, Mapping
from math import isfinite
from typing import Any

import torch
from torch import Tensor, nn

from bot.checkpoint.layerwise import first, to_device
from bot.errors import QuantizationError, UnsupportedModelError
from bot.quantize.architectures import shared_inputs
from bot.quantize.layer import (
    LayerReference,
    QuantizedLinear,
    Scales,
    fit_linears,
    layer_tensors,
    measure,
    remember,
    round_linears,
    weights_of,
)
from bot.quantize.layerfile import FinishedLayer, HiddenStates, largest
from bot.quantize.search import Inputs, best_scaling, diagonal_grams, grouped_energy, watched
from bot.quantize.walk import LayerRun, Quantized, Work, walk

# AutoAWQ says goodbye in a DeprecationWarning when it is imported, and resets the filters to have it seen.
with warnings.catch_warnings(record=True):
    from awq.models.auto import AWQ_CAUSAL_LM_MODEL_MAP
    from awq.models.base import TRANSFORMERS_AUTO_MAPPING_DICT
    from awq.quantize.quantizer import AwqQuantizer
    from awq.quantize.scale import apply_clip, apply_scale

_EQUIVALENT = 1e-3  # relative; rounding of float32 stays far below, a wrong scaling is far above

_BROKEN = "The file upstream is broken: tell its author. Nothing was published."
_OUT_OF_RANGE = "Its activations leave the range of its dtype on this text: try other calibration text."
_NOTHING_TO_DO = "It cannot be quantized by this version; put it on `hold:` on the watchlist."


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
def quantize_layers(work: Work, *, quantizer: type[LayerwiseQuantizer]) -> tuple[FinishedLayer, ...]:
    """Quantize every decoder layer, each into its own file as soon as it is done; files that are there are kept.

    Raises QuantizationError naming layer and module when numbers are not finite, UnsupportedModelError when
    AutoAWQ's scaling does not fit the model.
    """
    model = work.skeleton.model
    wrapped = AWQ_CAUSAL_LM_MODEL_MAP[model.config.model_type](
        model, model.config.model_type, False, model.config, None, None
    )
    wrapped.quantize(
        quant_config={
            "zero_point": work.recipe.zero_point,
            "q_group_size": work.recipe.group_size,
            "w_bit": work.recipe.bits,
            "version": work.recipe.version,
        },
        quantizer_cls=quantizer,
        work=work,
    )
    finished: tuple[FinishedLayer, ...] = wrapped.quantizer.finished
    return finished


class LayerwiseQuantizer(AwqQuantizer):  # type: ignore[misc]  # awq has no types
    """AutoAWQ's search on our calibration blocks, its damage on CPUs cured, its rounding and saving replaced."""

    def __init__(self, *args: Any, work: Work, **kwargs: Any) -> None:
        self._work = work
        self.finished: tuple[FinishedLayer, ...] = ()
        super().__init__(*args, **kwargs)

    def init_quant(self, n_samples: int = 0, max_seq_len: int = 0) -> tuple[Any, dict[str, Any], Tensor]:
        # AutoAWQ drops samples longer than max_seq_len, and takes every ValueError of the model for its own.
        self._path = self._work.skeleton.path
        return self._work.skeleton.layers, {}, torch.empty(0)

    def quantize(self) -> None:
        self.finished = walk(self._work, self._quantize_layer)

    def _quantize_layer(self, run: LayerRun, layer: nn.Module) -> Quantized:
        index, inside = run.index, f"{self._path}.{run.index}"
        self.module_kwargs = dict(run.arguments)
        self.inps = torch.cat(list(run.states())).to(self._work.device)
        linears, chosen = self._linears(layer, inside)
        inputs = self._get_input_feat(layer, linears)
        outputs = run.keep(torch.split(self.inps, run.blocks_at_once))
        self._check_finite(index, linears, {name: largest(seen) for name, seen in inputs.items()}, outputs)
        groups = shared_inputs(self.awq_model.model_type, chosen)
        before = remember(chosen, inputs, groups, device=self._work.device)
        scales = self._search_scales(index, layer, chosen, inputs)
        self._apply_scales(index, layer, run.first_block(), scales, inputs)
        clipped = self._clip(layer, chosen, inputs)
        made = round_linears(index, chosen, clipped, group_size=self.group_size)
        return Quantized(
            tensors=layer_tensors(layer, inside, made, self._work.skeleton.names),
            modules=measure(index, before, made, scales, group_size=self.group_size),
            outputs=outputs,
            peak=max(outputs.peak, *(largest(seen) for seen in inputs.values())),
        )

    def _linears(self, layer: nn.Module, inside: str) -> tuple[dict[str, nn.Linear], dict[str, nn.Linear]]:
        """All linears of the layer by name, and those to quantize. inside: the layer's path."""
        linears = {name: module for name, module in layer.named_modules() if isinstance(module, nn.Linear)}
        return linears, {name: linears[name] for name in linears if f"{inside}.{name}" in self._work.chosen}

    def _search_scales(
        self, index: int, layer: nn.Module, chosen: Mapping[str, nn.Linear], inputs: Mapping[str, Any]
    ) -> Scales:
        """inputs: what each linear reads, in the form that _search_best_scale takes."""
        scales: Scales = []
        with _naming(index, self.awq_model.model_type):
            for entry in self.awq_model.get_layers_for_scaling(layer, inputs, self.module_kwargs):
                if _is_scalable(entry, chosen.values(), name_of(layer, entry["prev_op"])):
                    scales.append(self._search_best_scale(layer, **entry))
            for _, read_by, by in scales:
                if not bool((torch.isfinite(by) & (by > 0)).all()):
                    raise QuantizationError(
                        f"the scales for {', '.join(read_by)} are not finite", hint=_OUT_OF_RANGE
                    )
        return scales

    def _apply_scales(
        self, index: int, layer: nn.Module, first: Tensor, scales: Scales, inputs: dict[str, Tensor] | None = None
    ) -> None:
        """Apply the scales, to the layer and to inputs. first: one block's hidden states, to try it on.

        Leaves the layer in float32: in half precision the norms would lose what the scaling gains.
        """
        layer.float()
        first = first.to(self._work.device)
        self.module_kwargs = to_device(self.module_kwargs, device=self._work.device, dtype=torch.float32)
        wanted = self._module_forward(first.float(), layer, self._own(layer))
        with _naming(index, self.awq_model.model_type):
            apply_scale(layer, scales, input_feat_dict=inputs)
        layer.to(self._work.device)
        got = self._module_forward(first.float(), layer, self._own(layer))
        # What a layer adds to its input, because the input itself may be far larger.
        if (got - wanted).norm() > _EQUIVALENT * (wanted - first.float()).norm():
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
        layer.to(self._work.device)
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

    def _own(self, layer: nn.Module) -> dict[str, Any]:
        own: dict[str, Any] = self._sanitize_kwargs(self.module_kwargs, layer)
        return own

    def _search_best_scale(self, module: nn.Module, *args: Any, kwargs: Any = None, **others: Any) -> Any:
        # AutoAWQ takes keys out of kwargs, which all of a layer's searches share.
        return super()._search_best_scale(module, *args, kwargs=dict(kwargs or {}), **others)

    def _compute_best_scale(self, x: Any, w_mean: Any, x_mean: Any, module2inspect: Any, *args: Any) -> Any:
        # AutoAWQ's backup is {k: v.cpu()}, which on a CPU is the weights themselves: after the first step of the
        # grid they stay scaled, and the file looks fine. So it gets a state_dict that really is a copy.
        taken = module2inspect.state_dict
        module2inspect.state_dict = lambda: {key: value.clone() for key, value in taken().items()}
        try:
            return super()._compute_best_scale(x, w_mean, x_mean, module2inspect, *args)
        finally:
            del module2inspect.state_dict

    def _compute_best_clip(
        self, w: Tensor, input_feat: Tensor, n_grid: int = 20, max_shrink: float = 0.5, n_sample_token: int = 512
    ) -> Tensor:
        # AutoAWQ's own asserts that the output channels divide by 64, and multiplies every channel with every
        # token anew at each step. Same tokens, same grid, same error, with the tokens multiplied out once.
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
        blocks = 1 if module_kwargs.get("alibi") is not None else self._work.blocks_at_once
        # Some models flatten [samples, seq_len, channels] before their linears.
        rows = blocks if x.dim() == 3 else blocks * self._work.blocks.shape[1]
        return torch.cat([first(module(part, **module_kwargs)) for part in torch.split(x, rows)])


@contextlib.contextmanager
def _naming(index: int, model_type: str) -> Iterator[None]:
    """AutoAWQ's own ways to give up, and ours, with the layer named."""
    try:
        yield
    except QuantizationError as error:
        raise QuantizationError(f"layer {index}: {error.message}", hint=error.hint) from error
    except (AttributeError, KeyError, NotImplementedError, TypeError) as error:
        raise UnsupportedModelError(
            f"layer {index}: AutoAWQ does not know this kind of {model_type!r}: {error}", hint=_NOTHING_TO_DO
        ) from error
    except Exception as error:
        # Its search ends in assertions on NaN, and in a bare Exception when no step of the grid had a finite loss.
        if isinstance(error, AssertionError) or type(error) is Exception:
            raise QuantizationError(
                f"layer {index}: the search found no finite scales: {error}", hint=_OUT_OF_RANGE
            ) from error
        raise


def _is_scalable(entry: dict[str, Any], chosen: Any, made_by: str) -> bool:
    """Whether this entry of AutoAWQ's table helps a chosen linear and leaves the model's function alone."""
    prev_op, readers = entry["prev_op"], entry["layers"]
    if not any(reader is linear for reader in readers for linear in chosen):
        return False
    if isinstance(prev_op, nn.Linear):
        # The channels are the last rows: of up in gate and up, of v in q, k and v when they are equally many.
        parts = (3,) if "qkv" in made_by.lower() else (1, 2)
        return prev_op.out_features in {part * readers[0].in_features for part in parts}
    # Scaling an activation function adds a tensor `act.scales`, for which vLLM's models have no place.
    return any(True for _ in prev_op.parameters())


def name_of(layer: nn.Module, module: nn.Module | None) -> str:
    for name, candidate in layer.named_modules():
        if candidate is module:
            return str(name)
    raise AttributeError("a module that its table names is not in the layer")


class GramQuantizer(LayerwiseQuantizer):
    """AutoAWQ's table of what can be scaled, and none of its forward passes but the one that sees the inputs."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._ratios: dict[str, float] = {}
        super().__init__(*args, **kwargs)

    def _quantize_layer(self, run: LayerRun, layer: nn.Module) -> Quantized:
        index, inside = run.index, f"{self._path}.{run.index}"
        self.module_kwargs = dict(run.arguments)
        linears, chosen = self._linears(layer, inside)
        groups = shared_inputs(self.awq_model.model_type, linears)
        with watched(linears, groups) as inputs:
            outputs = run.run(layer)
        self._check_finite(index, linears, {name: largest(seen.peak) for name, seen in inputs.items()}, outputs)
        before = LayerReference(weights=weights_of(chosen), grams={name: inputs[name].gram for name in chosen})
        self._ratios = {}
        scales = self._search_scales(index, layer, chosen, inputs)
        self._apply_scales(index, layer, run.first_block(), scales)
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

    def _fit(
        self, index: int, chosen: Mapping[str, nn.Linear], inputs: Mapping[str, Inputs]
    ) -> dict[str, QuantizedLinear]:
        """Ranges and integers for the scaled weights; linears that read the same scaled inputs in one go."""
        together: dict[int, list[str]] = {}
        for name in chosen:
            together.setdefault(id(inputs[name]), []).append(name)
        made: dict[str, QuantizedLinear] = {}
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
