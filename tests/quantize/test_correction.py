"""Corrected weights against least squares over the tokens, and the runs of a layer that pause."""

from functools import partial

import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaRotaryEmbedding

from bot.errors import QuantizationError
from bot.quantize.correction import SourceStates, Writer, correct, find_writers, keep_source
from bot.quantize.paused import Paused, PausedRuns

O_PROJ, DOWN = "self_attn.o_proj", "mlp.down_proj"
NORM = "post_attention_layernorm"
WRITERS = {
    O_PROJ: Writer(linear=O_PROJ, before=None, after=NORM),
    DOWN: Writer(linear=DOWN, before=NORM, after=None),
}


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


class Block(nn.Module):
    """A layer of Llama on its own. parallel: attention and MLP read the same, and are added together."""

    def __init__(self, *, parallel: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        config = LlamaConfig(hidden_size=32, intermediate_size=48, num_attention_heads=4, num_hidden_layers=1)
        config._attn_implementation = "eager"
        self.layer = LlamaDecoderLayer(config, 0).eval()
        self.lm_head = nn.Linear(32, 4)
        self.rotary = LlamaRotaryEmbedding(config)
        self.parallel = parallel

    @torch.no_grad()
    def forward(self, states: Tensor) -> Tensor:
        positions = torch.arange(states.shape[1]).unsqueeze(0)
        embeddings = self.rotary(states, positions)
        output: Tensor
        if not self.parallel:
            output = self.layer(states, position_embeddings=embeddings)
            return output
        read = self.layer.input_layernorm(states)
        attended, _ = self.layer.self_attn(read, position_embeddings=embeddings, attention_mask=None)
        output = states + attended + self.layer.mlp(read)
        return output


def test_writers_are_the_linears_whose_outputs_are_added_to_the_residual_stream() -> None:
    block, states = Block(), numbers(1, 8, 32)
    linears = [name for name, module in block.layer.named_modules() if isinstance(module, nn.Linear)]
    assert find_writers(block.layer, lambda: block(states), states, linears) == WRITERS


def test_what_is_added_together_with_something_else_is_no_writer() -> None:
    block, states = Block(parallel=True), numbers(1, 8, 32)
    assert find_writers(block.layer, lambda: block(states), states, [O_PROJ, DOWN]) == {}


def solved(wanted: Tensor, read: Tensor, weight: Tensor) -> Tensor:
    """By least squares over the tokens, with the same ridge, which few tokens make larger; in double precision."""
    read, wanted, weight = read.double(), wanted.double(), weight.double()
    gram = read.t() @ read
    ridge = (0.01 + 4 * len(gram) / len(read)) * gram.diagonal().mean() * torch.eye(len(gram), dtype=torch.float64)
    right = (wanted - read @ weight.t()).t() @ read
    found: Tensor = (weight + torch.linalg.solve(gram + ridge, right.t()).t()).float()
    return found


def test_the_corrected_weight_makes_of_its_inputs_what_the_source_makes_of_its_own() -> None:
    source, weight = numbers(4000, 24), numbers(16, 24, seed=1)
    factors = torch.exp(numbers(24, seed=2))
    read = (source + 0.1 * source.roll(1, dims=1) + 0.02 * numbers(4000, 24, seed=3)) / factors
    runs = [Paused(part, {}) for part in torch.split(read, 1500)]
    linear = nn.Linear(24, 16, bias=False)
    states = SourceStates(inputs={"v": source})
    found, gram = correct({"v": linear}, {"v": weight * factors}, runs, states, writer=None, factors=factors)
    expected = solved(source @ weight.t(), read, weight * factors)
    assert torch.allclose(gram, read.t() @ read / 4000, atol=1e-4)
    assert torch.allclose(found["v"], expected, rtol=1e-3, atol=1e-3)
    errors = [float((read @ each.t() - source @ weight.t()).norm()) for each in (found["v"], weight * factors)]
    assert errors[0] < 0.5 * errors[1]


def test_the_corrected_weight_of_a_writer_adds_what_the_stream_lacks() -> None:
    read, weight, bias = numbers(4000, 24), numbers(16, 24, seed=1), numbers(16, seed=2)
    stream = numbers(4000, 16, seed=3)
    after = stream + read @ weight.t() + bias
    drifted = stream + 0.3 * torch.tanh(read[:, :16])
    linear = nn.Linear(24, 16)
    linear.bias.data.copy_(bias)
    runs = [
        Paused(part, {"norm": base})
        for part, base in zip(torch.split(read, 1500), torch.split(drifted, 1500), strict=True)
    ]
    writer = Writer(linear="o", before="norm", after=None)
    found, _ = correct(
        {"o": linear}, {"o": weight}, runs, SourceStates(stream={None: after}), writer=writer, factors=None
    )
    assert torch.allclose(found["o"], solved(after - drifted - bias, read, weight), rtol=1e-3, atol=1e-3)
    errors = [float((drifted + read @ each.t() + bias - after).norm()) for each in (found["o"], weight)]
    assert errors[0] < 0.7 * errors[1]


def test_a_channel_that_is_always_zero_leaves_its_weights_as_they_are() -> None:
    read, weight = numbers(100, 8), numbers(4, 8, seed=1)
    read[:, 3] = 0
    states = SourceStates(inputs={"v": read + 0.1})
    found, _ = correct(
        {"v": nn.Linear(8, 4)}, {"v": weight}, [Paused(read, {})], states, writer=None, factors=None
    )
    assert torch.equal(found["v"][:, 3], weight[:, 3])
    assert not torch.equal(found["v"], weight)


def test_runs_pause_before_each_linear_and_go_on_with_its_new_weights() -> None:
    block, states = Block(), numbers(4, 8, 32)
    linears = ["self_attn.q_proj", O_PROJ, "mlp.gate_proj", DOWN]
    with keep_source(block.layer, linears, {}) as before:
        block(states)
    parts = list(torch.split(states, 2))
    seen = {}
    with PausedRuns(block.layer, lambda _, part: block(part), parts, stops=linears, norms=[NORM]) as runs:
        for name in linears:
            paused = list(runs.at(name))
            seen[name] = torch.cat([run.inputs for run in paused])
            block.layer.get_submodule(name).weight.data.mul_(0.5)
        assert all(set(run.stream) == {None, NORM} for run in paused)
        outputs = torch.cat(list(runs.outputs()))
        # The text beyond CORRECTED_TOKENS, which pauses nowhere.
        assert torch.allclose(block(states), outputs, atol=1e-5)
    assert torch.allclose(seen["self_attn.q_proj"], before.inputs["self_attn.q_proj"])
    assert not torch.allclose(seen[O_PROJ], before.inputs[O_PROJ])
    assert torch.allclose(outputs, block(states), atol=1e-5)
    assert not block.layer.mlp.down_proj._forward_pre_hooks


def test_runs_that_are_paused_at_the_end_are_ended() -> None:
    block, left = Block(), []

    def run(number: int, part: Tensor) -> Tensor:
        try:
            return block.forward(part)
        finally:
            left.append(number)

    parts = list(torch.split(numbers(4, 8, 32), 1))
    with PausedRuns(block.layer, run, parts, stops=[O_PROJ, DOWN], norms=[]) as runs:
        list(runs.at(O_PROJ))
        assert left == []
    assert sorted(left) == [0, 1, 2, 3]
    assert not block.layer.self_attn.o_proj._forward_pre_hooks


def test_a_linear_that_some_of_the_text_does_not_reach_is_an_error() -> None:
    block = Block()
    parts = list(torch.split(numbers(2, 8, 32), 1))
    with (
        pytest.raises(QuantizationError, match="lm_head is not reached by all of the text"),
        PausedRuns(block, partial(_only_the_layer, block), parts, stops=["lm_head"], norms=[]) as runs,
    ):
        list(runs.at("lm_head"))


def _only_the_layer(block: Block, number: int, part: Tensor) -> Tensor:
    return block.forward(part)
