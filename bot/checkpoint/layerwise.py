"""A model run in three steps: what comes before its decoder layers, each layer in turn, what comes after.

The first and the last step are the model's own code, run with the layers' `forward` replaced.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from bot.checkpoint.skeleton import Skeleton, load_tensors, unload

_CACHES = ("past_key_values", "past_key_value", "layer_past", "use_cache")


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerInputs:
    """hidden: [samples, seq_len, hidden]. arguments: for each layer, as for a batch of one block."""

    hidden: Tensor
    arguments: tuple[dict[str, Any], ...]


class _Captured(Exception):
    """A type of its own, so that no exception of the model is mistaken for it."""


def inputs_of_layers(skeleton: Skeleton, blocks: Tensor) -> LayerInputs:
    """As capture_layer_inputs, with the weights that come before the layers loaded for the duration."""
    load_tensors(skeleton.model, skeleton.tensors_before(), device=torch.device("cpu"))
    captured = capture_layer_inputs(skeleton.model, skeleton.layers, blocks)
    unload(skeleton.model)
    return captured


@torch.no_grad()
def capture_layer_inputs(model: nn.Module, layers: nn.ModuleList, blocks: Tensor) -> LayerInputs:
    """Run blocks (int64 [samples, seq_len]) through what comes before the layers, one at a time, on the CPU.

    Masks may differ between layers (sliding windows), so the arguments of each layer are captured. Exceptions of
    the model's own code pass through.
    """
    hidden: list[Tensor] = []
    arguments: list[dict[str, Any]] = []
    last = len(layers) - 1

    def replacement(index: int, signature: inspect.Signature) -> Callable[..., Any]:
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

    with _replaced_forward(layers, replacement):
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
    return torch.cat(
        [hidden_states_of(layer(part.to(device), **arguments)) for part in torch.split(states, together)]
    )


@torch.no_grad()
def logits_after(model: Any, layers: nn.ModuleList, states: Tensor, outputs: int) -> Tensor:
    """The logits from the last layer's states: float [samples, seq_len, vocabulary].

    outputs: how many values a layer returns, see tuple_length.
    """

    def replacement(index: int, signature: inspect.Signature) -> Callable[..., Any]:
        def forward(*args: Any, **kwargs: Any) -> Any:
            return (states, *[None] * (outputs - 1)) if outputs else states

        return forward

    # Ignored by the layers; without them the model would use its input embedding, which may not be loaded.
    unused = states.new_zeros(*states.shape[:2], model.get_input_embeddings().embedding_dim)
    with _replaced_forward(layers, replacement):
        logits: Tensor = model(inputs_embeds=unused, use_cache=False).logits
    return logits


def tuple_length(output: Any) -> int:
    """How many values a layer returned as a tuple; 0 for a single tensor."""
    return len(output) if isinstance(output, tuple) else 0


def hidden_states_of(output: Any) -> Tensor:
    """The hidden states: what a layer returned, or the first value of its tuple."""
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
def _replaced_forward(
    layers: nn.ModuleList, replacement: Callable[[int, inspect.Signature], Callable[..., Any]]
) -> Iterator[None]:
    for index, layer in enumerate(layers):
        # Replacing forward, not the module: models read attributes of their layers.
        layer.forward = replacement(index, inspect.signature(layer.forward))
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
