"""Quantize the experts of a layer one after the other, each on the tokens that the router sends to it.

The inputs of a mixture are kept once, with an index list for each expert; those of experts that are modules of
their own, once for each of them. Statistics of an expert's inputs exist only while that expert is quantized, so
memory does not grow with the number of experts.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from statistics import fmean, median
from typing import Any

import torch
from torch import Tensor, nn

from bot.checkpoint.constants import EXPERT_TOKENS
from bot.checkpoint.experts import SeparateExperts
from bot.checkpoint.selection import Mixture
from bot.quantize.layer import LayerReference, Linears, QuantizedLinear, fit_by_input, measure, round_linears
from bot.quantize.scaling import Group, Scale, scale_channels, scaled_inputs, unscaled, unscaled_gram
from bot.quantize.search import InputStats, Reading, best_scaling, collect_input_stats, gram
from bot.quantize.trace import TracedExperts
from bot.records import ExpertTokens, ModuleError

_TOKENS = 8192  # that an expert is run on at a time


class RoutedTokens:
    """What the experts of one mixture read while the layer ran. total: the tokens on which it runs."""

    def __init__(self, mixture: Mixture, total: int) -> None:
        self.mixture = mixture
        self._total = total
        self._inputs: list[Tensor] = []
        self._length = 0
        self._rows: list[list[Tensor]] = [[] for _ in range(mixture.experts)]

    def add(self, inputs: Tensor, rows: Mapping[int, Tensor]) -> None:
        """inputs: [tokens, hidden]; rows: which of them each expert reads."""
        for expert, index in rows.items():
            self._rows[expert].append(index.cpu() + self._length)
        self._inputs.append(inputs.detach().reshape(-1, inputs.shape[-1]).cpu())
        self._length += len(self._inputs[-1])

    def joined(self) -> None:
        """To be called when the layer has run."""
        self._inputs = [torch.cat(self._inputs)] if self._inputs else []
        self._rows = [[torch.cat(rows)] if rows else [torch.empty(0, dtype=torch.int64)] for rows in self._rows]

    def count(self, expert: int) -> int:
        return len(self._rows[expert][0])

    def share(self, expert: int) -> float:
        """Of the layer's tokens."""
        return self.count(expert) / self._total

    def of(self, expert: int) -> Tensor:
        """The tokens of one expert, [tokens, hidden], on the CPU, filled up from those of the whole layer."""
        if not self._inputs:
            return torch.empty(0)
        rows, everything = self._rows[expert][0], self._inputs[0]
        if len(rows) < EXPERT_TOKENS:
            step = max(1, self._length // EXPERT_TOKENS)
            rows = torch.cat((rows, torch.arange(0, self._length, step)[: EXPERT_TOKENS - len(rows)]))
        return everything[rows]

    def mean(self, device: torch.device) -> Tensor:
        """Mean absolute value of each channel over all tokens, [hidden]."""
        total = torch.zeros(self._inputs[0].shape[1], device=device)
        for part in torch.split(self._inputs[0], _TOKENS):
            total += part.to(device=device, dtype=torch.float32).abs().sum(dim=0)
        return total / self._length

    def tokens(self, layer: int) -> ExpertTokens:
        counts = [self.count(expert) for expert in range(self.mixture.experts)]
        return ExpertTokens(
            layer=layer,
            experts=len(counts),
            lowest=min(counts),
            median=float(median(counts)),
            unseen=sum(count == 0 for count in counts),
        )


@contextmanager
def collect_routed(
    layer: nn.Module, mixtures: Sequence[Mixture], *, total: int
) -> Iterator[dict[str, RoutedTokens]]:
    """Collect what the experts read inside the `with` block, by the mixture's path. total: the layer's tokens."""
    found = {mixture.path: RoutedTokens(mixture, total) for mixture in mixtures}
    handles = []
    for path, tokens in found.items():
        module = layer.get_submodule(path)
        if isinstance(module, SeparateExperts):
            handles.append(module.register_forward_pre_hook(_of_call(tokens), with_kwargs=True))
        else:
            for expert in range(tokens.mixture.experts):
                handles.append(
                    module.get_submodule(str(expert)).register_forward_pre_hook(_of_expert(tokens, expert))
                )
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()
    for tokens in found.values():
        tokens.joined()


def _of_call(tokens: RoutedTokens) -> Any:
    def record(module: SeparateExperts, args: Any, kwargs: Any) -> None:
        hidden, rows = module.routed(*args, **kwargs)
        tokens.add(hidden, dict(enumerate(rows)))

    return record


def _of_expert(tokens: RoutedTokens, expert: int) -> Any:
    def record(module: nn.Module, args: Any) -> None:
        inputs = args[0].reshape(-1, args[0].shape[-1])
        tokens.add(inputs, {expert: torch.arange(len(inputs))})

    return record


def readings_of_experts(
    layer: nn.Module, routed: RoutedTokens, readers: Sequence[str], *, device: torch.device
) -> Iterator[Reading]:
    """How the experts read the mixture's input. readers: those of a group; others are ignored."""
    by_expert: dict[int, list[str]] = {}
    for name in readers:
        if (expert := routed.mixture.expert_of(name)) is not None:
            by_expert.setdefault(expert, []).append(name)
    for expert, names in by_expert.items():
        if routed.count(expert):
            weights = [layer.get_parameter(f"{name}.weight") for name in names]
            yield Reading(weights, _gram_of(routed, expert, device), routed.share(expert))


def _gram_of(routed: RoutedTokens, expert: int, device: torch.device) -> Any:
    def compute() -> Tensor:
        tokens = routed.of(expert)
        return gram(tokens, device=device) / len(tokens)

    return compute


def quantize_experts(
    index: int,
    layer: nn.Module,
    traced: TracedExperts,
    routed: RoutedTokens,
    scales: Sequence[Scale],
    *,
    group_size: int,
) -> tuple[dict[str, QuantizedLinear], list[ModuleError], float]:
    """All experts of a mixture of layer `index`, whose inputs are scaled already by `scales`.

    Returns the quantized linears, their errors on average over the experts, and the largest activation.
    """
    quantized: dict[str, QuantizedLinear] = {}
    errors: list[ModuleError] = []
    peak = 0.0
    for expert in range(traced.mixture.experts):
        prefix = f"{traced.mixture.path}.{expert}"
        module = layer.get_submodule(prefix)
        linears = _linears_of(module)
        outer = _inside(traced.mixture, expert, scales)
        tokens = routed.of(expert)
        if len(tokens):
            with collect_input_stats(linears, traced.inputs) as inputs:
                _run_expert(layer.get_submodule(traced.mixture.path), expert, tokens, outer)
            found, measured = _quantize_expert(index, module, traced, inputs, outer, group_size=group_size)
            peak = max(peak, *(float(stats.peak.max()) for stats in inputs.values()))
        else:  # no token has reached any expert of the layer
            found, measured = round_linears(index, linears, {}, group_size=group_size), ()
        quantized |= {f"{prefix}.{name}": each for name, each in found.items()}
        errors += measured
    return quantized, _averaged(index, traced.mixture, errors), peak


def _linears_of(module: nn.Module) -> Linears:
    return {name: each for name, each in module.named_modules() if isinstance(each, nn.Linear)}


def _inside(mixture: Mixture, expert: int, scales: Sequence[Scale]) -> list[Scale]:
    """The scales of what this expert reads, by names inside of it."""
    found = []
    for scale in scales:
        readers = tuple(mixture.inside(name) for name in scale.group.readers if mixture.expert_of(name) == expert)
        if readers:
            found.append(scale._replace(group=Group(producer="", readers=readers)))
    return found


def _run_expert(experts: nn.Module, expert: int, tokens: Tensor, outer: Sequence[Scale]) -> None:
    """Run an expert, whose inputs are scaled, on its tokens."""
    device = next(experts.parameters()).device
    for part in torch.split(tokens, _TOKENS):
        scaled = part.to(device=device, dtype=torch.float32)
        for scale in outer:
            scaled = scaled / scale.factors.to(device)
        if isinstance(experts, SeparateExperts):
            experts.run(expert, scaled)
        else:
            experts.get_submodule(str(expert))(scaled)


def _quantize_expert(
    index: int,
    module: nn.Module,
    traced: TracedExperts,
    inputs: Mapping[str, InputStats],
    outer: Sequence[Scale],
    *,
    group_size: int,
) -> tuple[dict[str, QuantizedLinear], tuple[ModuleError, ...]]:
    linears = _linears_of(module)
    before = LayerReference(
        weights={name: unscaled(each.weight.detach().clone(), name, outer) for name, each in linears.items()},
        grams={name: unscaled_gram(stats.gram, name, outer) for name, stats in inputs.items()},
    )
    inner = []
    for group in traced.groups:
        weights = [module.get_parameter(f"{name}.weight") for name in group.readers]
        stats = inputs[group.readers[0]]
        reading = Reading(weights, partial(getattr, stats, "gram"))
        found = best_scaling([reading], stats.mean, group_size=group_size)
        if found is not None:
            inner.append(Scale(group, found.factors, found.ratio))
    for scale in inner:
        scale_channels(module, scale.group, scale.factors)
    scales = [*outer, *inner]
    quantized = fit_by_input(index, linears, scaled_inputs(inputs, inner), scales, group_size=group_size)
    return quantized, measure(index, before, quantized, scales, group_size=group_size)


def _averaged(index: int, mixture: Mixture, errors: Sequence[ModuleError]) -> list[ModuleError]:
    by_name: dict[str, list[ModuleError]] = {}
    for error in errors:
        by_name.setdefault(error.module, []).append(error)
    return [_average(index, f"{mixture.path}.*.{name}", each) for name, each in by_name.items()]


def _average(index: int, name: str, errors: Sequence[ModuleError]) -> ModuleError:
    fallbacks = [error.fallback for error in errors if error.fallback]
    ratios = [error.ratio for error in errors if error.ratio is not None]
    return ModuleError(
        layer=index,
        module=name,
        relative_error=fmean(error.relative_error for error in errors),
        relative_error_rounding=fmean(error.relative_error_rounding for error in errors),
        ratio=fmean(ratios) if ratios else None,
        clipped_share=fmean(error.clipped_share for error in errors),
        fallback=f"{fallbacks[0]} for {len(fallbacks)} of {len(errors)} experts" if fallbacks else "",
    )
