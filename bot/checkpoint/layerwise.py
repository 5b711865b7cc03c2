"""A model run in three steps: what comes before its decoder layers, one layer after the other, what comes after.

The first and the last are the model's own code, run with stand-ins in place of the layers.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

_CACHES = ("past_key_values", "past_key_value", "layer_past", "use_cache")


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerInputs:
    """hidden: [samples, seq_len, hidden]. arguments: for each layer, as for a batch of one block."""

    hidden: Tensor
    arguments: tuple[dict[str, Any], ...]


class _Captured(Exception):
    """Our own, so that no error of the model can be taken for it."""


@torch.no_grad()
def capture_layer_inputs(model: nn.Module, layers: nn.ModuleList, blocks: Tensor) -> LayerInputs:
    """Run blocks (int64 [samples, seq_len]) through what comes before the layers, one at a time, on the CPU.

    Masks may differ from layer to layer (sliding windows), so each layer is asked for its own. An error in the
    model's own code passes through.
    """
    hidden: list[Tensor] = []
    arguments: list[dict[str, Any]] = []
    last = len(layers) - 1

    def stand_in(index: int, signature: inspect.Signature) -> Callable[..., Any]:
        def forward(*args: Any, **kwargs: Any) -> Any:
            states, others = _split(signature, args, kwargs)
            if index == 0:
                hidden.append(states.detach())
            if len(arguments) == len(layers):
                raise _Captured  # later blocks: the arguments are known
            arguments.append(others)
            if index == last:
                raise _Captured
            return states

        return forward

    with _standing_in(layers, stand_in):
        for block in blocks:
            _run(model, block)
    return LayerInputs(hidden=torch.cat(hidden), arguments=tuple(arguments))


@torch.no_grad()
def run_layer(layer: nn.Module, states: Tensor, arguments: Mapping[str, Any], *, blocks: int) -> Tensor:
    """The layer's outputs for states [samples, seq_len, hidden], some blocks at a time.

    arguments: as captured, on the layer's device, where the states go too; the outputs stay there.
    """
    device = next(layer.parameters()).device
    # An ALiBi bias is made for one batch size; the other arguments broadcast from a batch of one.
    together = 1 if arguments.get("alibi") is not None else max(1, blocks)
    return torch.cat([first(layer(part.to(device), **arguments)) for part in torch.split(states, together)])


@torch.no_grad()
def logits_after(model: Any, layers: nn.ModuleList, states: Tensor, outputs: int) -> Tensor:
    """What the model makes of its last layer's states: float [samples, seq_len, vocabulary].

    outputs: how many things a layer returns, as `outputs_of` tells; 0 for a tensor alone.
    """

    def stand_in(index: int, signature: inspect.Signature) -> Callable[..., Any]:
        def forward(*args: Any, **kwargs: Any) -> Any:
            return (states, *[None] * (outputs - 1)) if outputs else states

        return forward

    # Nothing comes of them; without them the input embedding would be asked, which need not be there.
    unused = states.new_zeros(*states.shape[:2], model.get_input_embeddings().embedding_dim)
    with _standing_in(layers, stand_in):
        logits: Tensor = model(inputs_embeds=unused, use_cache=False).logits
    return logits


def outputs_of(output: Any) -> int:
    """How many things a layer returned; 0 for a tensor alone."""
    return len(output) if isinstance(output, tuple) else 0


def first(output: Any) -> Tensor:
    """The states among what a layer returned."""
    states: Tensor = output[0] if isinstance(output, tuple) else output
    return states


def to_device(value: Any, *, device: torch.device, dtype: torch.dtype | None = None) -> Any:
    """The same arguments on device, their floats in dtype."""
    if isinstance(value, Tensor):
        return value.to(device=device, dtype=dtype if value.is_floating_point() else None)
    if isinstance(value, dict):
        return {key: to_device(item, device=device, dtype=dtype) for key, item in value.items()}
    if isinstance(value, tuple):
        return tuple(to_device(item, device=device, dtype=dtype) for item in value)
    return value


@contextmanager
def _standing_in(
    layers: nn.ModuleList, stand_in: Callable[[int, inspect.Signature], Callable[..., Any]]
) -> Iterator[None]:
    for index, layer in enumerate(layers):
        # Replacing forward, not the module: models read attributes of their layers.
        layer.forward = stand_in(index, inspect.signature(layer.forward))
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


def _run(model: nn.Module, block: Tensor) -> None:
    try:
        model(input_ids=block.unsqueeze(0), use_cache=False)
    except _Captured:
        return
    raise RuntimeError("the model never called its last decoder layer")


def _split(signature: inspect.Signature, args: Any, kwargs: Any) -> tuple[Tensor, dict[str, Any]]:
    """The hidden states (the first argument) and the others by name, the cache switched off."""
    bound = signature.bind(*args, **kwargs)
    others = dict(bound.arguments)
    for name, parameter in signature.parameters.items():
        if parameter.kind is parameter.VAR_KEYWORD:
            others.update(others.pop(name, {}))
    states = others.pop(next(iter(signature.parameters)))
    for name in _CACHES:
        others.pop(name, None)
    return states, others
