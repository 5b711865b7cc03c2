"""What can be scaled in a layer, on layers of a few modules that are known in every detail."""

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from bot.quantize.scaling import Group, Scale, scale_channels, unscaled
from bot.quantize.trace import Trace, still_holds, trace_layer

HIDDEN, INNER, HEADS = 32, 48, 4
STATES = torch.randn(1, 64, HIDDEN, generator=torch.Generator().manual_seed(1))


class Norm(nn.Module):
    """RMSNorm; offset: what is added to the weight."""

    def __init__(self, channels: int = HIDDEN, *, offset: float = 0.0) -> None:
        super().__init__()
        self.weight, self.offset = nn.Parameter(torch.ones(channels)), offset

    def forward(self, states: Tensor) -> Tensor:
        normed = states * torch.rsqrt(states.pow(2).mean(-1, keepdim=True) + 1e-6)
        return normed * (self.offset + self.weight)


class Attention(nn.Module):
    """alternating: the first query head reads the first head of values, the second the second, and so on."""

    def __init__(self, *, kv_heads: int = HEADS, alternating: bool = False) -> None:
        super().__init__()
        self.head_dim, self.repeats, self.alternating = HIDDEN // HEADS, HEADS // kv_heads, alternating
        self.q, self.k = nn.Linear(HIDDEN, HIDDEN), nn.Linear(HIDDEN, kv_heads * self.head_dim)
        self.v, self.o = nn.Linear(HIDDEN, kv_heads * self.head_dim), nn.Linear(HIDDEN, HIDDEN)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.o(self.attend(self.q(inputs), self.k(inputs), self.v(inputs)))  # type: ignore[no-any-return]

    def attend(self, *parts: Tensor) -> Tensor:
        query, key, value = (part.view(*part.shape[:2], -1, self.head_dim).transpose(1, 2) for part in parts)
        if self.alternating:
            key, value = (each.repeat(1, self.repeats, 1, 1) for each in (key, value))
        else:
            key, value = (each.repeat_interleave(self.repeats, dim=1) for each in (key, value))
        mixed = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        return mixed.transpose(1, 2).flatten(2)


class MergedAttention(Attention):
    """Queries, keys and values in one matrix."""

    def __init__(self, *, kv_heads: int) -> None:
        super().__init__(kv_heads=kv_heads)
        self.sizes = [HIDDEN, kv_heads * self.head_dim, kv_heads * self.head_dim]
        self.qkv = nn.Linear(HIDDEN, sum(self.sizes))
        del self.q, self.k, self.v

    def forward(self, inputs: Tensor) -> Tensor:
        return self.o(self.attend(*self.qkv(inputs).split(self.sizes, dim=-1)))  # type: ignore[no-any-return]


class Dense(nn.Module):
    """fc1, an activation, fc2."""

    def __init__(self, activation: Callable[[Tensor], Tensor] = functional.relu) -> None:
        super().__init__()
        self.fc1, self.fc2, self.activation = nn.Linear(HIDDEN, INNER), nn.Linear(INNER, HIDDEN), activation

    def forward(self, inputs: Tensor) -> Tensor:
        return self.fc2(self.activation(self.fc1(inputs)))  # type: ignore[no-any-return]


class Gated(nn.Module):
    """Gate and up in one matrix; up_first: in which order."""

    def __init__(self, *, up_first: bool) -> None:
        super().__init__()
        self.both, self.down, self.up_first = nn.Linear(HIDDEN, 2 * INNER), nn.Linear(INNER, HIDDEN), up_first

    def forward(self, inputs: Tensor) -> Tensor:
        one, other = self.both(inputs).chunk(2, dim=-1)
        gate, up = (other, one) if self.up_first else (one, other)
        return self.down(functional.silu(gate) * up)  # type: ignore[no-any-return]


class Layer(nn.Module):
    """A norm before a block. also_residual: the normed states are what the block's output is added to."""

    def __init__(self, norm: nn.Module, block: nn.Module, *, also_residual: bool = False) -> None:
        super().__init__()
        self.norm, self.block, self.also_residual = norm, block, also_residual

    def forward(self, states: Tensor) -> Tensor:
        normed = self.norm(states)
        return (normed if self.also_residual else states) + self.block(normed)  # type: ignore[no-any-return]


class Router(nn.Module):
    """A router that is no linear."""

    def __init__(self, experts: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(experts, HIDDEN))

    def forward(self, tokens: Tensor) -> Tensor:
        return functional.linear(tokens, self.weight).softmax(dim=-1)


class Mixture(nn.Module):
    def __init__(self, router: nn.Module, experts: int) -> None:
        super().__init__()
        self.router, self.experts = router, nn.ModuleList([Dense() for _ in range(experts)])

    def forward(self, inputs: Tensor) -> Tensor:
        flat = inputs.flatten(0, 1)
        scores, chosen = self.router(flat).topk(2, dim=-1)
        total = torch.zeros_like(flat)
        for number, expert in enumerate(self.experts):
            token, place = torch.where(chosen == number)
            total.index_add_(0, token, expert(flat[token]) * scores[token, place].unsqueeze(-1))
        return total.view_as(inputs)


class AttentionByHead(Attention):
    """Queries, keys and values in one matrix: those of the first head of values and its readers, then the next."""

    def __init__(self, *, kv_heads: int) -> None:
        super().__init__(kv_heads=kv_heads)
        self.kv_heads = kv_heads
        self.qkv = nn.Linear(HIDDEN, kv_heads * (self.repeats + 2) * self.head_dim)
        del self.q, self.k, self.v

    def forward(self, inputs: Tensor) -> Tensor:
        parts = self.qkv(inputs).view(*inputs.shape[:2], self.kv_heads, self.repeats + 2, self.head_dim)
        query, key, value = parts[..., :-2, :], parts[..., -2, :], parts[..., -1, :]
        return self.o(self.attend(query.flatten(2), key.flatten(2), value.flatten(2)))  # type: ignore[no-any-return]


class GatedLinearAttention(nn.Module):
    """The end of it: each head is normed by the same weight, and gated. offset: what is added to that weight."""

    def __init__(self, *, offset: float) -> None:
        super().__init__()
        self.v, self.z, self.o = (nn.Linear(HIDDEN, HIDDEN) for _ in range(3))
        self.norm = Norm(HIDDEN // HEADS, offset=offset)

    def forward(self, inputs: Tensor) -> Tensor:
        heads = self.norm(self.v(inputs).view(*inputs.shape[:2], HEADS, -1))
        return self.o(heads.flatten(2) * functional.silu(self.z(inputs)))  # type: ignore[no-any-return]


def randomized(layer: nn.Module) -> nn.Module:
    random = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(parameter + 0.3 * torch.randn(parameter.shape, generator=random))
    return layer.requires_grad_(False).eval()


def traced(layer: nn.Module) -> Trace:
    """The trace; the weights are afterwards what they were, bit for bit."""
    before = {name: value.clone() for name, value in layer.state_dict().items()}
    trace = trace_layer(layer, lambda: layer(STATES), STATES)
    for name, value in layer.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert not any(module._forward_hooks for module in layer.modules())
    return trace


def readers(trace: Trace) -> Mapping[str, Any]:
    return {group.producer: group.readers for group in trace.groups}


@pytest.mark.parametrize("offset", [0.0, 1.0])
def test_a_norm_feeds_all_linears_that_read_its_output(offset: float) -> None:
    layer = randomized(Layer(Norm(offset=offset), Attention()))
    trace = traced(layer)
    assert trace.inputs == (("block.q", "block.k", "block.v"), ("block.o",))
    assert trace.groups[0] == Group(producer="norm", readers=("block.q", "block.k", "block.v"), offset=offset)


def test_the_bias_of_a_norm_is_scaled_with_it() -> None:
    layer = randomized(Layer(nn.LayerNorm(HIDDEN), Dense()))
    (norm, fc1) = traced(layer).groups
    assert norm == Group(producer="norm", readers=("block.fc1",))
    expected, bias = layer(STATES), layer.get_parameter("norm.bias").clone()
    for group in (norm, fc1):
        scale_channels(layer, group, torch.linspace(0.5, 3, HIDDEN if group is norm else INNER))
    assert torch.allclose(layer(STATES), expected, atol=1e-5)
    assert torch.allclose(layer.get_parameter("norm.bias"), bias / torch.linspace(0.5, 3, HIDDEN))


def test_values_are_scaled_for_the_output() -> None:
    trace = traced(randomized(Layer(Norm(), Attention())))
    assert trace.groups[1] == Group(producer="block.v", readers=("block.o",))
    assert trace.dropped == ()


@pytest.mark.parametrize("kv_heads", [1, 2, HEADS])
@pytest.mark.parametrize("attention", [Attention, MergedAttention, AttentionByHead])
def test_values_are_scaled_by_the_same_factors_for_all_heads_that_read_them(
    attention: type[Attention], kv_heads: int
) -> None:
    layer = randomized(Layer(Norm(), attention(kv_heads=kv_heads)))
    trace = traced(layer)
    assert trace.dropped == ()
    (_, group) = trace.groups
    producer = "block.v" if attention is Attention else "block.qkv"
    assert (group.producer, group.readers) == (producer, ("block.o",))
    assert group.heads.readers == HEADS // kv_heads

    expected, before = layer(STATES), layer.get_parameter(f"{producer}.weight").clone()
    factors = torch.linspace(0.5, 3, kv_heads * HIDDEN // HEADS)
    scale_channels(layer, group, factors)
    assert torch.allclose(layer(STATES), expected, atol=1e-5)
    computing = torch.arange(len(before))[-len(factors) :]
    if attention is AttentionByHead:
        computing = torch.arange(len(before)).view(kv_heads, -1)[:, -HIDDEN // HEADS :].flatten()
    before[computing] /= factors.unsqueeze(1)
    assert torch.allclose(layer.get_parameter(f"{producer}.weight"), before)
    scaled = layer.get_parameter(f"{producer}.weight").clone()
    before[computing] *= factors.unsqueeze(1)
    assert torch.allclose(unscaled(scaled, producer, [Scale(group, factors)]), before)


@pytest.mark.parametrize("offset", [0.0, 1.0])
def test_a_norm_of_each_head_is_scaled_for_the_output(offset: float) -> None:
    layer = randomized(Layer(Norm(), GatedLinearAttention(offset=offset)))
    trace = traced(layer)
    assert trace.dropped == ()
    (_, group) = trace.groups
    assert (group.producer, group.readers, group.offset) == ("block.norm", ("block.o",), offset)
    assert group.heads.readers == HEADS
    expected = layer(STATES)
    scale_channels(layer, group, torch.linspace(0.5, 3, HIDDEN // HEADS))
    assert torch.allclose(layer(STATES), expected, atol=1e-5)


def test_values_whose_heads_are_read_in_another_order_are_not_scaled() -> None:
    trace = traced(randomized(Layer(Norm(), Attention(kv_heads=2, alternating=True))))
    assert readers(trace) == {"norm": ("block.q", "block.k", "block.v")}
    assert trace.dropped == (("block.o",),)


@pytest.mark.parametrize(("activation", "scaled"), [(functional.relu, True), (functional.gelu, False)])
def test_channels_are_scaled_through_relu_but_not_through_gelu(
    activation: Callable[[Tensor], Tensor], scaled: bool
) -> None:
    trace = traced(randomized(Layer(Norm(), Dense(activation))))
    assert readers(trace) == {"norm": ("block.fc1",)} | ({"block.fc1": ("block.fc2",)} if scaled else {})
    assert trace.dropped == (() if scaled else (("block.fc2",),))


@pytest.mark.parametrize("up_first", [False, True])
def test_only_up_is_scaled_in_a_matrix_that_also_holds_the_gate(up_first: bool) -> None:
    layer = randomized(Layer(Norm(), Gated(up_first=up_first)))
    (_, group) = traced(layer).groups
    assert group == Group(producer="block.both", readers=("block.down",), first_rows=up_first)
    expected, weight = layer(STATES), layer.get_parameter("block.both.weight").clone()
    scale_channels(layer, group, torch.full((INNER,), 2.0))
    assert torch.allclose(layer(STATES), expected, atol=1e-5)
    changed = (layer.get_parameter("block.both.weight") != weight).any(dim=1)
    assert changed.tolist() == ([True] * INNER + [False] * INNER if up_first else [False] * INNER + [True] * INNER)


def test_a_norm_whose_output_is_also_added_is_not_scaled() -> None:
    trace = traced(randomized(Layer(Norm(), Dense(), also_residual=True)))
    assert readers(trace) == {"block.fc1": ("block.fc2",)}
    assert trace.dropped == (("block.fc1",),)


@pytest.mark.parametrize("router", [Router(4), nn.Linear(HIDDEN, 4)], ids=["own class", "linear"])
def test_a_router_and_all_experts_read_the_norm_before_a_mixture(router: nn.Module) -> None:
    trace = traced(randomized(Layer(Norm(), Mixture(router, 4))))
    (group,) = trace.groups
    assert group.producer == "norm"
    assert set(group.readers) == {"block.router"} | {f"block.experts.{expert}.fc1" for expert in range(4)}
    (experts,) = trace.experts
    assert (experts.mixture.path, experts.mixture.experts) == ("block.experts", 4)
    assert experts.inputs == (("fc1",), ("fc2",))
    assert experts.groups == (Group(producer="fc1", readers=("fc2",)),)
    # A router of a class of its own is no linear that could be quantized.
    assert trace.inputs == ((("block.router",),) if isinstance(router, nn.Linear) else ())


def test_a_trace_holds_for_a_layer_that_is_put_together_in_the_same_way() -> None:
    trace = traced(randomized(Layer(Norm(), Mixture(Router(4), 4))))
    other = randomized(Layer(Norm(), Mixture(Router(4), 4)))
    for parameter in other.parameters():
        parameter.mul_(1.5)
    before = {name: value.clone() for name, value in other.state_dict().items()}
    assert still_holds(trace, other, lambda: other(STATES), STATES)
    assert all(torch.equal(value, before[name]) for name, value in other.state_dict().items())


@pytest.mark.parametrize(
    "changed",
    [
        Layer(Norm(offset=1.0), Dense()),
        Layer(Norm(), Dense(functional.gelu)),
        Layer(Norm(), Dense(), also_residual=True),
    ],
    ids=["offset", "activation", "residual"],
)
def test_a_trace_does_not_hold_for_a_layer_that_computes_something_else(changed: nn.Module) -> None:
    trace = traced(randomized(Layer(Norm(), Dense())))
    randomized(changed)
    assert not still_holds(trace, changed, lambda: changed(STATES), STATES)
