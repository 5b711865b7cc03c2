"""AutoAWQ's search, layer by layer. The only importer of awq."""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bot.errors import QuantizationError, UnsupportedModelError
from bot.quantize.architectures import shared_inputs
from bot.quantize.capture import LayerInputs, capture_layer_inputs
from bot.quantize.layer import Scales, layer_tensors, measure, remember, round_linears
from bot.quantize.layerfile import FinishedLayer, Measured, finished_layer, layer_path, write_layer
from bot.quantize.search import diagonal_grams, grouped_energy
from bot.records import Progress, Recipe

# AutoAWQ says goodbye in a DeprecationWarning when it is imported, and resets the filters to have it seen.
with warnings.catch_warnings(record=True):
    from awq.models.auto import AWQ_CAUSAL_LM_MODEL_MAP
    from awq.models.base import TRANSFORMERS_AUTO_MAPPING_DICT
    from awq.quantize.quantizer import AwqQuantizer
    from awq.quantize.scale import apply_clip, apply_scale

_TOKENS_AT_ONCE = 16_384  # in one forward pass of a layer
_EQUIVALENT = 1e-3  # relative; rounding of float32 stays far below, a wrong scaling is far above

_BROKEN = "The file upstream is broken: tell its author. Nothing was published."
_OUT_OF_RANGE = "Its activations leave the range of its dtype on this text: try other calibration text."
_NOTHING_TO_DO = "It cannot be quantized by this version; put it on `hold:` on the watchlist."


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What the quantizer needs beyond AutoAWQ's own settings.

    blocks: int64 [samples, seq_len]. chosen: full paths of the linears to quantize. names: the source's name for
    each tensor of the model that the source has. key: what a finished layer's file must have been made with.
    """

    blocks: Tensor
    chosen: frozenset[str]
    names: Mapping[str, str]
    folder: Path
    key: str
    device: torch.device
    recipe: Recipe
    progress: Progress


def decoder_layers(model: Any) -> tuple[str, nn.ModuleList]:
    """The list of decoder layers and its path in the model.

    Raises UnsupportedModelError for a type that AutoAWQ does not take as a causal language model.
    """
    model_type = model.config.model_type
    if TRANSFORMERS_AUTO_MAPPING_DICT.get(model_type) != "AutoModelForCausalLM":
        raise UnsupportedModelError(
            f"AutoAWQ has no causal language model of type {model_type!r}", hint=_NOTHING_TO_DO
        )
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # one of its classes prints the model
            layers = AWQ_CAUSAL_LM_MODEL_MAP[model_type].get_model_layers(model)
    except AttributeError as error:
        raise UnsupportedModelError(
            f"AutoAWQ does not know this kind of {model_type!r}: {error}", hint=_NOTHING_TO_DO
        ) from error
    return next(name for name, module in model.named_modules() if module is layers), layers


@torch.no_grad()
def quantize_layers(model: Any, work: Work, *, quantizer: type[LayerwiseQuantizer]) -> tuple[FinishedLayer, ...]:
    """Quantize every decoder layer, each into its own file as soon as it is done; files that are there are kept.

    The model is consumed: the layers' weights are gone afterwards. Raises QuantizationError naming layer and
    module when numbers are not finite, UnsupportedModelError when AutoAWQ's scaling does not fit the model.
    """
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
    return tuple(wrapped.quantizer.finished)


class LayerwiseQuantizer(AwqQuantizer):  # type: ignore[misc]
    """AutoAWQ's search on our calibration blocks, its damage on CPUs cured, its rounding and saving replaced."""

    def __init__(self, *args: Any, work: Work, **kwargs: Any) -> None:
        self._work = work
        self.finished: list[FinishedLayer] = []
        self.inps: Tensor
        super().__init__(*args, **kwargs)

    def init_quant(self, n_samples: int = 0, max_seq_len: int = 0) -> tuple[Any, dict[str, Any], Tensor]:
        # AutoAWQ drops samples longer than max_seq_len, and takes every ValueError of the model for its own.
        self._path, layers = decoder_layers(self.model)
        inputs: LayerInputs = capture_layer_inputs(self.model, layers, self._work.blocks)
        self._arguments = inputs.arguments
        return layers, {}, inputs.hidden

    def quantize(self) -> None:
        work, total = self._work, len(self.modules)
        for index, layer in enumerate(self.modules):
            work.progress("quantizing", index, total, "layers")
            layer.to(work.device)
            self.module_kwargs = _moved(self._arguments[index], device=work.device)
            path = layer_path(work.folder, index)
            if finished_layer(path, key=work.key):
                self.inps = self._module_forward(self.inps.to(work.device), layer, self._own(layer))
            else:
                self._quantize_layer(index, layer, path)
            done = finished_layer(path, key=work.key)
            assert done is not None
            self.finished.append(done)
            layer.to("meta")  # what is on the disk needs no memory
        work.progress("quantizing", total, total, "layers")

    def _quantize_layer(self, index: int, layer: nn.Module, path: Path) -> None:
        inside = f"{self._path}.{index}"
        linears, chosen = self._linears(layer, inside)
        first = self.inps[:1].to(self._work.device)
        inputs = self._get_input_feat(layer, linears)
        self._check_finite(index, linears, inputs)
        groups = shared_inputs(self.awq_model.model_type, chosen)
        before = remember(chosen, inputs, groups, device=self._work.device)
        scales = self._search_scales(index, layer, chosen, inputs)
        self._apply_scales(index, layer, first, scales, inputs)
        clipped = self._clip(layer, chosen, inputs)
        peak = max(largest(value) for value in [*inputs.values(), self.inps])
        made = round_linears(index, chosen, clipped, group_size=self.group_size)
        measured = measure(index, before, made, scales, group_size=self.group_size)
        write_layer(
            path,
            layer_tensors(layer, inside, made, self._work.names),
            key=self._work.key,
            measured=Measured(modules=measured, peak=peak),
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
        self.module_kwargs = _moved(self.module_kwargs, device=self._work.device, dtype=torch.float32)
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

    def _check_finite(self, index: int, linears: Mapping[str, nn.Linear], inputs: Mapping[str, Tensor]) -> None:
        for name, linear in linears.items():
            if name not in inputs:
                raise UnsupportedModelError(
                    f"layer {index}, {name}: the calibration blocks never reached it",
                    hint="Give it more calibration samples, or leave the module out with modules_to_not_convert.",
                )
            if not isfinite(largest(linear.weight)):
                raise QuantizationError(f"layer {index}, {name}: its weights hold NaN or infinity", hint=_BROKEN)
            if not isfinite(largest(inputs[name])):
                raise QuantizationError(
                    f"layer {index}, {name}: its inputs hold NaN or infinity", hint=_OUT_OF_RANGE
                )
        if not isfinite(largest(self.inps)):
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
        blocks = 1 if module_kwargs.get("alibi") is not None else _TOKENS_AT_ONCE // self._work.blocks.shape[1]
        # Some models flatten [samples, seq_len, channels] before their linears.
        rows = blocks if x.dim() == 3 else blocks * self._work.blocks.shape[1]
        outputs = [module(part, **module_kwargs) for part in torch.split(x, max(1, rows))]
        return torch.cat([output[0] if isinstance(output, tuple) else output for output in outputs])


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


def largest(values: Tensor) -> float:
    """The largest absolute value, NaN where there is one; without a second tensor of that size."""
    low, high = torch.aminmax(values)
    return float(torch.maximum(low.abs(), high.abs()))


def _moved(value: Any, *, device: torch.device, dtype: torch.dtype | None = None) -> Any:
    """The same arguments on device, their floats in dtype."""
    if isinstance(value, Tensor):
        return value.to(device=device, dtype=dtype if value.is_floating_point() else None)
    if isinstance(value, dict):
        return {key: _moved(item, device=device, dtype=dtype) for key, item in value.items()}
    if isinstance(value, tuple):
        return tuple(_moved(item, device=device, dtype=dtype) for item in value)
    return value
