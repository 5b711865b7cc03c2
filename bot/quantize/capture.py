"""What reaches the decoder layers: the first one's hidden states, and every one's other arguments."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


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

    def stand_in(index: int, signature: inspect.Signature) -> Any:
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

    for index, layer in enumerate(layers):
        # Replacing forward, not the module: models read attributes of their layers.
        layer.forward = stand_in(index, inspect.signature(layer.forward))
    try:
        for block in blocks:
            _run(model, block)
    finally:
        for layer in layers:
            del layer.forward
    return LayerInputs(hidden=torch.cat(hidden), arguments=tuple(arguments))


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
    for name in ("past_key_values", "past_key_value", "layer_past", "use_cache"):
        others.pop(name, None)
    return states, others
