"""Layers run one after the other give the model's own logits, whatever they take beside the hidden states."""

import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import nn
from torch.nn.functional import normalize

from bot.checkpoint.capture import capture_layer_inputs
from bot.checkpoint.layerwise import run_layer
from bot.checkpoint.reader import Checkpoint
from bot.checkpoint.skeleton import decoder_layers, open_skeleton
from bot.errors import QuantizationError, UnsupportedModelError
from bot.evaluate.metrics import compare
from bot.evaluate.models import run_layers
from bot.records import no_progress
from tests.support import tiny_models
from tests.support.tiny_configs import VOCABULARY

CPU = torch.device("cpu")
BLOCKS = tiny_models.random_blocks(5, 48)

BY_SAMPLE = ["gemma4_text"]  # inputs for each layer that depend on the tokens; keys that later layers share
TUPLES = ["bamba", "glm_moe_dsa"]
ONE_BATCH_SIZE = ["bloom", "cpmant"]  # position biases of the batch size that the model was called with
REFUSED = {
    "gemma3n_text": r"hidden states of shape \[4, 1, 48, 256\]: the first dimension is not the sample's",
    "xlm": "decoder layer 1 does not read what the layer before it returns",
}


def skeleton_of(model_type: str, folder: Path, **settings: Any) -> Any:
    checkpoint = Checkpoint(tiny_models.build(model_type, folder, **settings))
    return open_skeleton(
        folder, checkpoint.tensors, read=checkpoint.read, dtype=torch.float32, trust_remote_code=False
    )


@torch.no_grad()
def own_logits(folder: Path) -> torch.Tensor:
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    # One sample at a time, as nothing of a sample may depend on the others.
    return torch.cat([model(block.unsqueeze(0), use_cache=False).logits for block in BLOCKS])


@pytest.mark.parametrize("at_once", [1, 2, 5])
@pytest.mark.parametrize("model_type", BY_SAMPLE + TUPLES + ONE_BATCH_SIZE)
def test_every_sample_has_the_logits_that_the_model_itself_gives(
    model_type: str, at_once: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bot.evaluate.models.TOKENS_AT_ONCE", at_once * BLOCKS.shape[1])
    final = run_layers(skeleton_of(model_type, tmp_path), BLOCKS, device=CPU, step=lambda: None)
    expected = own_logits(tmp_path)
    for sample in range(len(BLOCKS)):
        (logits,) = final.logits(slice(sample, sample + 1))
        assert torch.allclose(logits, expected[sample], atol=1e-4), sample
    assert torch.allclose(final.logits(slice(1, 4)), expected[1:4], atol=1e-4)
    assert (expected[0] - expected[1]).abs().max() > 0.01


def test_arguments_that_differ_are_kept_for_every_sample(tmp_path: Path) -> None:
    model = tiny_models.load(tiny_models.build("gemma4_text", tmp_path)).eval()
    layers = decoder_layers(model)[1]
    captured = capture_layer_inputs(model, layers, BLOCKS)
    alone = capture_layer_inputs(model, layers, BLOCKS[3:4])
    for arguments, single in zip(captured.arguments, alone.arguments, strict=True):
        assert arguments.by_sample
        assert not arguments.same_for_all
        for name, value in arguments.by_sample.items():
            assert torch.equal(value[3:4], single.shared[name]), name


def test_arguments_that_are_the_same_are_kept_once(tmp_path: Path) -> None:
    model = tiny_models.load(tiny_models.build("llama", tmp_path)).eval()
    captured = capture_layer_inputs(model, decoder_layers(model)[1], BLOCKS)
    assert all(arguments.same_for_all for arguments in captured.arguments)


class Handing(nn.Module):
    """A layer that also returns some channels, a different number in each layer, and may read those of another."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight, self.channels = nn.Parameter(torch.rand(16)), channels

    def forward(self, states: torch.Tensor, others: Any = None) -> tuple[torch.Tensor, torch.Tensor]:
        read = 0.0 if others is None else others.mean(dim=-1, keepdim=True)
        return states * self.weight + read, states[..., : self.channels] * 2


class HandingModel(nn.Module):
    """taken: for each layer the earlier one whose channels it reads."""

    def __init__(self, taken: list[int | None]) -> None:
        super().__init__()
        self.embedding, self.taken = nn.Embedding(VOCABULARY, 16), taken
        self.layers = nn.ModuleList([Handing(index + 1) for index in range(len(taken))])

    def forward(self, input_ids: torch.Tensor, use_cache: bool) -> torch.Tensor:
        states: torch.Tensor = self.embedding(input_ids)
        returned: list[torch.Tensor] = []
        for layer, index in zip(self.layers, self.taken, strict=True):
            states, others = layer(states, None if index is None else returned[index])
            returned.append(others)
        return states


@torch.no_grad()
def run_through(model: Any) -> tuple[torch.Tensor, list[int]]:
    """The states after the last layer, two samples at a time; and how many tensors were kept after each layer."""
    captured = capture_layer_inputs(model, model.layers, BLOCKS)
    states, kept = captured.hidden, []
    for layer, arguments in zip(model.layers, captured.arguments, strict=True):
        states = run_layer(layer, states, arguments, start=0, total=len(BLOCKS), blocks=2)
        kept.append(len(arguments.handed_on))
    return states, kept


@pytest.mark.parametrize(
    ("taken", "kept"),
    [
        ([None, 0, 1, 2], [1, 2, 2, 1]),
        ([None, 0, 0, 0], [1, 1, 1, 1]),
        ([None, None, 0, 1], [1, 2, 2, 1]),
        ([None, None, None, None], [0, 0, 0, 0]),
    ],
    ids=["the layer before", "the first layer", "two layers before", "nothing"],
)
def test_what_layers_return_reaches_the_layers_that_take_it_and_is_kept_no_longer(
    taken: list[int | None], kept: list[int]
) -> None:
    torch.manual_seed(0)
    model = HandingModel(taken)
    with torch.no_grad():
        expected = model(BLOCKS, use_cache=False)
    states, found = run_through(model)
    assert torch.allclose(states, expected)
    assert found == kept


class Summing(nn.Module):
    """A layer that adds to what earlier layers have put into a mapping, and puts something else beside it."""

    def __init__(self, index: int) -> None:
        super().__init__()
        self.weight, self.index = nn.Parameter(torch.rand(16)), index

    def forward(self, states: torch.Tensor, shared: dict[Any, Any]) -> torch.Tensor:
        (total,) = shared.get("total", (torch.zeros(1),))
        shared["total"] = (total + states,)
        if self.index % 2 == 0:
            shared[self.index] = (states[..., :2], states[..., 2:])
        means = torch.stack([len(value) * value[0].mean() for value in shared.values()])
        read: torch.Tensor = states * self.weight + total + means.sum()
        return read


class SummingModel(nn.Module):
    def __init__(self, layers: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, 16)
        self.layers = nn.ModuleList([Summing(index) for index in range(layers)])

    def forward(self, input_ids: torch.Tensor, use_cache: bool) -> torch.Tensor:
        states: torch.Tensor = self.embedding(input_ids)
        shared: dict[Any, Any] = {}
        for layer in self.layers:
            states = layer(states, shared)
        return states


@torch.no_grad()
def test_what_layers_put_into_a_mapping_reaches_later_layers_and_not_themselves() -> None:
    torch.manual_seed(0)
    model: Any = SummingModel(5)
    # One sample at a time, as the layers take means over what they are given.
    expected = torch.cat([model(block.unsqueeze(0), use_cache=False) for block in BLOCKS])
    captured = capture_layer_inputs(model, model.layers, BLOCKS)
    states, kept = captured.hidden, []
    for layer, arguments in zip(model.layers, captured.arguments, strict=True):
        once, again = (run_layer(layer, states, arguments, start=0, total=len(BLOCKS), blocks=1) for _ in range(2))
        assert torch.equal(once, again)
        states = once
        kept.append(len(arguments.handed_on))
    assert torch.allclose(states, expected, rtol=1e-4)
    # A total that was replaced is kept only for the layer that has read it.
    assert kept == [2, 3, 4, 4, 5]


class ComputingModel(HandingModel):
    """Computes what the layers take beside the hidden states from these."""

    def __init__(self, compute: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__([None] * 3)
        self.compute = compute

    def forward(self, input_ids: torch.Tensor, use_cache: bool) -> torch.Tensor:
        states: torch.Tensor = self.embedding(input_ids)
        for layer in self.layers:
            states, _ = layer(states, self.compute(states))
        return states


@pytest.mark.parametrize(
    "compute",
    [
        lambda states: states[..., :2],
        partial(normalize, dim=-1),
        lambda states: states.norm(dim=-1, keepdim=True),
    ],
    ids=["states", "direction", "length"],
)
def test_an_argument_that_is_computed_from_hidden_states_is_refused_by_name(
    compute: Callable[[torch.Tensor], torch.Tensor],
) -> None:
    model = ComputingModel(compute)
    with pytest.raises(
        UnsupportedModelError, match="decoder layer 1 takes 'others', which earlier layers compute"
    ):
        run_through(model)


def test_attention_weights_that_nothing_reads_are_not_kept(tmp_path: Path) -> None:
    model: Any = tiny_models.load(tiny_models.build("bloom", tmp_path)).eval()
    captured = capture_layer_inputs(model, model.transformer.h, BLOCKS)
    for layer, arguments in zip(model.transformer.h, captured.arguments, strict=True):
        run_layer(layer, captured.hidden, arguments, start=0, total=len(BLOCKS), blocks=1)
        assert arguments.handed_on == {}


@pytest.mark.parametrize("model_type", REFUSED)
def test_a_model_that_does_not_run_layer_by_layer_is_refused(model_type: str, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModelError, match=REFUSED[model_type]):
        run_layers(skeleton_of(model_type, tmp_path), BLOCKS, device=CPU, step=lambda: None)


def test_evaluation_says_that_more_than_the_last_layer_is_read(tmp_path: Path) -> None:
    source, artifact = (skeleton_of("inkling2_text", tmp_path / name) for name in ("source", "artifact"))
    with pytest.raises(QuantizationError, match=re.escape("logits are not finite")) as refused:
        compare(source, artifact, BLOCKS, device=CPU, progress=no_progress)
    assert "more than the last layer is read" in str(refused.value.hint)
