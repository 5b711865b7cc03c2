"""A model run in three steps: what comes before its decoder layers, each layer in turn, what comes after.

The first and the last step are the model's own code, run with the layers' `forward` replaced.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from bot.checkpoint.arguments import Arguments
from bot.checkpoint.capture import LayerInputs, capture_layer_inputs, replaced_forward
from bot.checkpoint.skeleton import Skeleton, load_tensors, unload
from bot.errors import BotError, UnsupportedModelError

_CPU = torch.device("cpu")
_CPU_IS_FULL = "can't allocate memory"  # of torch's allocator, which raises a RuntimeError


def inputs_of_layers(skeleton: Skeleton, blocks: Tensor) -> LayerInputs:
    """Like capture_layer_inputs, but loads the weights before the layers first and unloads them afterwards."""
    load_tensors(skeleton.model, skeleton.tensors_before(), device=_CPU)
    captured = capture_layer_inputs(skeleton.model, skeleton.layers, blocks)
    unload(skeleton.model)
    return captured


def call_layer(layer: nn.Module, states: Tensor, arguments: Mapping[str, Any]) -> Any:
    """What the layer returns. Raises UnsupportedModelError with whatever the model's own code raises."""
    try:
        return layer(states, **arguments)
    except (BotError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        if isinstance(error, RuntimeError) and _CPU_IS_FULL in str(error):
            raise MemoryError(str(error)) from error
        raise UnsupportedModelError(
            f"{type(layer).__name__} does not run: {type(error).__name__}: {error}",
            hint="Put it on `hold:` on the watchlist.",
        ) from error


@torch.no_grad()
def run_layer(
    layer: nn.Module, states: Tensor, arguments: Arguments, *, start: int, total: int, blocks: int
) -> Tensor:
    """The layer's outputs for states [samples, seq_len, hidden], which are the samples from `start` of `total`.

    blocks: run together. The states go to the layer's device; the outputs stay there.
    """
    device = next(layer.parameters()).device
    outputs = []
    for offset in range(0, len(states), max(1, blocks)):
        part = states[offset : offset + max(1, blocks)].to(device)
        samples = slice(start + offset, start + offset + len(part))
        used = arguments.of(samples, device=device)
        try:
            output = call_layer(layer, part, used)
        except UnsupportedModelError:
            # Most arguments broadcast from a batch of one, but some, such as ALiBi biases, are made for one size.
            if len(part) == 1:
                raise
            outputs += [
                run_layer(layer, state, arguments, start=samples.start + place, total=total, blocks=1)
                for place, state in enumerate(torch.split(part, 1))
            ]
            continue
        outputs.append(hidden_states_of(output))
        arguments.keep(samples, used, output, total=total)
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs)


@torch.no_grad()
def logits_after(model: Any, layers: nn.ModuleList, states: Tensor, tokens: Tensor, outputs: int) -> Tensor:
    """The logits from the last layer's states: float [samples, seq_len, vocabulary].

    tokens: int64 [samples, seq_len]; outputs: how many values a layer returns, see output_count. NaN where the
    model reads more than the last layer's states.
    """

    # A model that also reads what earlier layers return must not be given something plausible.
    unknown = torch.full_like(states, torch.nan)
    last = len(layers) - 1

    def replacement(index: int, signature: inspect.Signature) -> Callable[..., Any]:
        def forward(*args: Any, **kwargs: Any) -> Any:
            returned = states if index == last else unknown
            return (returned, *[None] * (outputs - 1)) if outputs else returned

        return forward

    embedding = model.get_input_embeddings()

    def unused(index: int, signature: inspect.Signature) -> Callable[..., Any]:
        # Ignored by the replaced layers; the input embedding may not be loaded.
        return lambda ids, *args, **kwargs: states.new_full((*ids.shape, embedding.embedding_dim), torch.nan)

    with replaced_forward(layers, replacement), replaced_forward([embedding], unused):
        logits: Tensor = model(input_ids=tokens.to(states.device), use_cache=False).logits
    return logits


def output_count(output: Any) -> int:
    """How many values a layer returned as a tuple; 0 for a single tensor."""
    return len(output) if isinstance(output, tuple) else 0


def hidden_states_of(output: Any) -> Tensor:
    """The states among what a layer returned."""
    states: Tensor = output[0] if isinstance(output, tuple) else output
    return states
