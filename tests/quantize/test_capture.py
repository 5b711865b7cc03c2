from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from bot.quantize.autoawq import decoder_layers
from bot.quantize.capture import capture_layer_inputs
from bot.quantize.loading import load_model
from tests.quantize import tiny_models


def loaded(model_type: str, folder: Path) -> tuple[Any, nn.ModuleList]:
    source = tiny_models.build(model_type, folder)
    model = load_model(source, dtype=torch.float32, trust_remote_code=False)
    return model, decoder_layers(model)[1]


@pytest.mark.parametrize("model_type", ["qwen3", "gemma2"])
@torch.no_grad()
def test_layers_run_with_what_was_captured_compute_what_the_model_does(model_type: str, tmp_path: Path) -> None:
    """gemma2's layers alternate between two masks, which differ as the blocks are longer than its window."""
    model, layers = loaded(model_type, tmp_path)
    blocks = tiny_models.random_blocks(3, 64)

    captured = capture_layer_inputs(model, layers, blocks)
    states = captured.hidden
    assert states.shape == (3, 64, 256)
    for layer, arguments in zip(layers, captured.arguments, strict=True):
        states = layer(states, **arguments)

    seen: list[torch.Tensor] = []
    layers[-1].register_forward_hook(lambda module, args, output: seen.append(output))
    model(blocks)
    assert torch.allclose(states, seen[0], atol=1e-4)


def test_an_error_of_the_models_own_is_not_swallowed(tmp_path: Path) -> None:
    model, layers = loaded("llama", tmp_path)

    def broken(*args: object, **kwargs: object) -> None:
        raise ValueError("from the model's own code")

    model.model.rotary_emb.forward = broken
    with pytest.raises(ValueError, match="the model's own code"):
        capture_layer_inputs(model, layers, tiny_models.random_blocks(1, 8))
    assert all("forward" not in vars(layer) for layer in layers)
