"""Quantize decoder layers one at a time: load from the source, quantize into a file, unload.

Only one layer's weights, and the next one's while they are read, are in memory. A killed run resumes with the
layer after the last complete file.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bot.checkpoint.arguments import Arguments
from bot.checkpoint.capture import LayerInputs
from bot.checkpoint.constants import TOKENS_AT_ONCE
from bot.checkpoint.layerwise import inputs_of_layers, run_layer
from bot.checkpoint.skeleton import Skeleton, load_tensors, read_ahead, unload
from bot.quantize.layerfile import (
    FinishedLayer,
    HiddenStates,
    Measured,
    finished_layer,
    hidden_path,
    layer_path,
    load_quantized,
    open_layer,
    quantized_path,
    write_hidden,
    write_layer,
)
from bot.records import ExpertTokens, ModuleError, Progress, Recipe

TRACE_TOKENS = 64  # enough to tell inputs apart; a layer is run some ten times to be traced

_log = logging.getLogger("awq_bot")


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantizeContext:
    """What quantizing the layers of a model needs.

    blocks: int64 [samples, seq_len]. linears_to_quantize: their full paths. folder: for one file per
    layer. fingerprint: changes with everything that a finished layer depends on.
    """

    skeleton: Skeleton
    blocks: Tensor
    linears_to_quantize: frozenset[str]
    folder: Path
    fingerprint: str
    device: torch.device
    recipe: Recipe
    progress: Progress

    @property
    def blocks_at_once(self) -> int:
        return max(1, TOKENS_AT_ONCE // self.blocks.shape[1])


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerRun:
    """The inputs of one layer, and where its outputs go.

    short: the inputs of all layers for the first TRACE_TOKENS tokens of the first block alone; None if there are
    no more, or if a layer needs what others have handed on. hidden: what the source's layers before have computed;
    quantized: what the quantized ones have, None if that is not followed. positions: how many first_block gives;
    all if None.
    """

    index: int
    arguments: Arguments
    short: LayerInputs | None
    hidden: HiddenStates
    quantized: HiddenStates | None
    folder: Path
    blocks_at_once: int
    positions: int | None = None

    def shortened(self) -> LayerRun:
        """To try something out on few tokens."""
        if self.short is None:
            return self
        # Not TRACE_TOKENS: a model may put states of its own before those of the tokens, as CPM-Ant does.
        positions = self.short.hidden.shape[1]
        return replace(self, arguments=self.short.arguments[self.index], positions=positions)

    def states(self) -> Iterator[Tensor]:
        """The layer's inputs, [blocks, seq_len, hidden], some blocks at a time, on the CPU."""
        return self.hidden.read(hidden_path(self.folder, self.index), blocks=self.blocks_at_once)

    def quantized_states(self) -> Iterator[Tensor]:
        """What the quantized layers before have computed, as `states`."""
        assert self.quantized is not None
        return self.quantized.read(quantized_path(self.folder, self.index), blocks=self.blocks_at_once)

    def outputs(self, stored: HiddenStates) -> Iterator[Tensor]:
        """The outputs that store_outputs has written, as `states`."""
        return stored.read(hidden_path(self.folder, self.index + 1), blocks=self.blocks_at_once)

    def first_block(self) -> Tensor:
        return next(self.hidden.read(hidden_path(self.folder, self.index), blocks=1))[:, : self.positions]

    def first_arguments(self, device: torch.device) -> dict[str, Any]:
        """Those that belong to the first block."""
        return self.arguments.of(slice(0, 1), device=device)

    def forward(self, layer: nn.Module) -> HiddenStates:
        """Run the layer on all inputs."""
        total, start = self.hidden.shape[0], count(0, self.blocks_at_once)
        return self.store_outputs(
            run_layer(layer, part, self.arguments, start=next(start), total=total, blocks=self.blocks_at_once)
            for part in self.states()
        )

    def run_quantized(self, layer: nn.Module, number: int, part: Tensor) -> Tensor:
        """Run the quantized layer on one part of its states."""
        start, total = number * self.blocks_at_once, self.hidden.shape[0]
        return run_layer(layer, part, self.arguments, start=start, total=total, blocks=len(part))

    def forward_quantized(self, layer: nn.Module) -> HiddenStates:
        """Run the quantized layer on all of its states."""
        return self.store_quantized(
            self.run_quantized(layer, number, part) for number, part in enumerate(self.quantized_states())
        )

    def store_quantized(self, outputs: Iterable[Tensor]) -> HiddenStates:
        """Write the quantized layer's outputs to disk."""
        return write_hidden(quantized_path(self.folder, self.index + 1), outputs)

    def store_outputs(self, outputs: Iterable[Tensor]) -> HiddenStates:
        """Write them to disk, for the next layer."""
        return write_hidden(hidden_path(self.folder, self.index + 1), outputs)


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantizedLayer:
    """One layer as it will be stored. source_outputs: the outputs of the source's layer; quantized_outputs: of the
    quantized layer after the quantized ones before it.
    """

    tensors: Mapping[str, Tensor]
    modules: tuple[ModuleError, ...]
    source_outputs: HiddenStates
    quantized_outputs: HiddenStates | None = None
    max_activation: float
    experts: tuple[ExpertTokens, ...] = ()


def quantize_remaining_layers(
    context: QuantizeContext, quantize_layer: Callable[[LayerRun, nn.Module], QuantizedLayer]
) -> tuple[FinishedLayer, ...]:
    """Quantize the layers that have no file yet, and open the files of all."""
    total = len(context.skeleton.layers)
    done = _finished_count(context, total)
    if done < total:
        _quantize_from(context, quantize_layer, done)
    context.progress("quantizing", total, total, "layers")
    for path in (*context.folder.glob("hidden-*.bin"), *context.folder.glob("quantized-*.bin")):
        path.unlink()
    return tuple(open_layer(layer_path(context.folder, index)) for index in range(total))


def _quantize_from(
    context: QuantizeContext, quantize_layer: Callable[[LayerRun, nn.Module], QuantizedLayer], done: int
) -> None:
    """done: how many layers are finished. They are run again, unquantized, if their last outputs are lost."""
    layers = context.skeleton.layers
    hidden, quantized = _last_outputs(context, done)
    start = done if hidden is not None else 0
    captured = inputs_of_layers(context.skeleton, context.blocks)
    depend = any(arguments.depend_on_layers for arguments in captured.arguments)
    if depend:
        start = 0  # what finished layers handed on is not kept
    if start == 0:
        hidden = write_hidden(hidden_path(context.folder, 0), torch.split(captured.hidden, context.blocks_at_once))
        quantized = None if depend else hidden
    arguments = captured.arguments
    short = _short_inputs(context, arguments)
    del captured  # the hidden states are on the disk now
    numbers = range(start, len(layers))
    reads = (partial(context.skeleton.layer_tensors, index) for index in numbers)
    for index, tensors in zip(numbers, read_ahead(reads), strict=True):
        context.progress("quantizing", index, len(layers), "layers")
        layer = layers[index]
        load_tensors(layer, tensors, device=context.device)
        assert hidden is not None
        run = LayerRun(
            index=index,
            arguments=arguments[index],
            short=short,
            hidden=hidden,
            quantized=quantized,
            folder=context.folder,
            blocks_at_once=context.blocks_at_once,
        )
        if index < done:
            hidden, quantized = _run_finished(run, layer, context)
        else:
            hidden, quantized = _quantize(run, layer, context, quantize_layer)
        unload(layer)
        for path in (hidden_path(context.folder, index), quantized_path(context.folder, index)):
            path.unlink(missing_ok=True)


def _last_outputs(context: QuantizeContext, done: int) -> tuple[HiddenStates | None, HiddenStates | None]:
    """Of the finished layers, the source's and the quantized ones, if the files are still there."""
    if not done:
        return None, None
    last = open_layer(layer_path(context.folder, done - 1))
    if not last.outputs.is_at(hidden_path(context.folder, done)):
        return None, None
    if last.quantized_outputs and not last.quantized_outputs.is_at(quantized_path(context.folder, done)):
        return None, None
    return last.outputs, last.quantized_outputs


def _run_finished(
    run: LayerRun, layer: nn.Module, context: QuantizeContext
) -> tuple[HiddenStates, HiddenStates | None]:
    """The outputs of a layer whose file is complete, before and after quantizing."""
    hidden = run.forward(layer)
    finished = open_layer(layer_path(context.folder, run.index))
    if run.quantized is None or finished.quantized_outputs is None:
        return hidden, None
    load_quantized(layer, f"{context.skeleton.path}.{run.index}", finished.file, context.skeleton)
    return hidden, run.forward_quantized(layer)


def _short_inputs(context: QuantizeContext, arguments: Sequence[Arguments]) -> LayerInputs | None:
    if context.blocks.shape[1] <= TRACE_TOKENS or any(each.depend_on_layers for each in arguments):
        return None
    return inputs_of_layers(context.skeleton, context.blocks[:1, :TRACE_TOKENS])


def _quantize(
    run: LayerRun,
    layer: nn.Module,
    context: QuantizeContext,
    quantize_layer: Callable[[LayerRun, nn.Module], QuantizedLayer],
) -> tuple[HiddenStates, HiddenStates | None]:
    started = time.monotonic()
    quantized = quantize_layer(run, layer)
    measured = Measured(
        modules=quantized.modules,
        max_activation=quantized.max_activation,
        duration_s=time.monotonic() - started,
        experts=quantized.experts,
    )
    path = layer_path(context.folder, run.index)
    write_layer(
        path,
        quantized.tensors,
        fingerprint=context.fingerprint,
        measured=measured,
        outputs=quantized.source_outputs,
        quantized_outputs=quantized.quantized_outputs,
    )
    _log.info("layer %d: %.1f s, activations up to %.4g", run.index, measured.duration_s, quantized.max_activation)
    for module in quantized.modules:
        _log.debug(
            "layer %d, %s: relative error %.4g, by plain rounding %.4g; ratio %s, %.2f %% clipped%s",
            run.index,
            module.module,
            module.relative_error,
            module.relative_error_rounding,
            module.ratio,
            100 * module.clipped_share,
            f"; {module.fallback}" if module.fallback else "",
        )
    return quantized.source_outputs, quantized.quantized_outputs


def _finished_count(context: QuantizeContext, total: int) -> int:
    """How many layers, counted from the first, have complete files."""
    files = (layer_path(context.folder, index) for index in range(total))
    return next(
        (index for index, path in enumerate(files) if not finished_layer(path, fingerprint=context.fingerprint)),
        total,
    )
