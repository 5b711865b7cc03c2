"""A model run in three steps computes what it computes in one."""

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import nn

from bot.checkpoint.arguments import Arguments
from bot.checkpoint.capture import capture_layer_inputs
from bot.checkpoint.layerwise import call_layer, hidden_states_of, logits_after, output_count, run_layer
from bot.checkpoint.skeleton import decoder_layers
from bot.errors import QuantizationError, UnsupportedModelError
from tests.support import tiny_models

CPU = torch.device("cpu")
# gemma2's layers alternate between two masks, which differ as the blocks are longer than its window; bloom's and
# mpt's return tuples and take an ALiBi bias; opt and gpt2's kind add positions before the layers.
SPECIAL = ["bloom", "gemma2", "gpt_bigcode", "mpt", "opt"]
OTHERS = ["cohere", "falcon", "gpt_neox", "gptj", "llama", "phi3", "qwen3"]


def loaded(model_type: str, folder: Path) -> tuple[Any, nn.ModuleList]:
    """As transformers itself loads it."""
    source = tiny_models.build(model_type, folder)
    model = transformers.AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32).eval()
    return model, decoder_layers(model)[1]


@pytest.mark.parametrize("model_type", SPECIAL + OTHERS)
@torch.no_grad()
def test_three_steps_give_the_models_own_logits(model_type: str, tmp_path: Path) -> None:
    model, layers = loaded(model_type, tmp_path)
    blocks = tiny_models.random_blocks(3, 64)
    expected = model(blocks, use_cache=False).logits

    captured = capture_layer_inputs(model, layers, blocks)
    states, outputs = captured.hidden, 0
    assert states.shape == (3, 64, 256)
    for layer, arguments in zip(layers, captured.arguments, strict=True):
        outputs = output_count(layer(states[:1], **arguments.of(slice(0, 1), device=CPU)))
        states = torch.cat(
            [
                run_layer(layer, states[:2], arguments, start=0, total=3, blocks=2),
                run_layer(layer, states[2:], arguments, start=2, total=3, blocks=2),
            ]
        )

    assert torch.allclose(logits_after(model, layers, states, blocks, outputs), expected, atol=1e-4)
    assert torch.equal(model(blocks, use_cache=False).logits, expected)  # no stand-in is left


def test_the_states_are_what_a_layer_returns_first() -> None:
    states = torch.ones(1)
    assert hidden_states_of(states) is hidden_states_of((states, None)) is states
    assert (output_count(states), output_count((states, None))) == (0, 2)


def test_an_error_of_the_models_own_is_named(tmp_path: Path) -> None:
    model, layers = loaded("llama", tmp_path)

    def broken(*args: object, **kwargs: object) -> None:
        raise ValueError("from the model's own code")

    model.model.rotary_emb.forward = broken
    problem = "LlamaForCausalLM does not run layer by layer: ValueError: from the model's own code"
    with pytest.raises(UnsupportedModelError, match=problem):
        capture_layer_inputs(model, layers, tiny_models.random_blocks(1, 8))
    assert all("forward" not in vars(layer) for layer in layers)


class Raising(nn.Module):
    """Raises something unless it is given one sample, or always."""

    def __init__(self, error: Exception, *, always: bool = False) -> None:
        super().__init__()
        self.inside = nn.Linear(4, 4)
        self._error, self._always = error, always

    def forward(self, states: torch.Tensor) -> Any:
        if self._always or len(states) > 1:
            raise self._error
        return self.inside(states)


ALONE = Arguments(index=0, shared={}, by_sample={}, mappings={}, outputs={}, needed=frozenset(), handed_on={})


class OwnError(Exception):
    """Of a model's own code."""


@torch.no_grad()
def test_a_layer_made_for_one_sample_is_run_with_one_whatever_it_raises_for_more() -> None:
    layer, states = Raising(OwnError("one at a time")), torch.ones(3, 2, 4)
    outputs = run_layer(layer, states, ALONE, start=0, total=3, blocks=3)
    assert torch.equal(outputs, layer.inside(states))


@pytest.mark.parametrize(
    "error", [OwnError("no"), RuntimeError("shape mismatch"), KeyError("no"), AssertionError()]
)
def test_what_a_layers_own_code_raises_is_named_and_its_cause_kept(error: Exception) -> None:
    layer = Raising(error, always=True)
    with pytest.raises(UnsupportedModelError, match=f"Raising does not run: {type(error).__name__}") as caught:
        call_layer(layer, torch.ones(1, 2, 4), {})
    assert caught.value.__cause__ is error
    assert caught.value.hint


@pytest.mark.parametrize("error", [MemoryError("full"), torch.OutOfMemoryError("full"), QuantizationError("ours")])
def test_full_memory_and_our_own_errors_stay_what_they_are(error: Exception) -> None:
    with pytest.raises(type(error)) as caught:
        call_layer(Raising(error, always=True), torch.ones(1, 2, 4), {})
    assert caught.value is error


def test_a_full_main_memory_is_not_the_models_fault() -> None:
    """What torch itself says of it."""
    with pytest.raises(RuntimeError) as said:
        torch.empty(1 << 60)
    with pytest.raises(MemoryError):
        call_layer(Raising(said.value, always=True), torch.ones(1, 2, 4), {})
