"""Experts as linears compute what transformers' own module computes from its 3-D parameters."""

import copy
from typing import Any

import pytest
import torch
import transformers
from accelerate import init_empty_weights
from torch import Tensor, nn

from bot.checkpoint.experts import Part, SeparateExperts, separate_experts
from tests.support import tiny_models
from tests.support.tiny_configs import merged, tiny_settings

# One type for each layout of the parameters. [experts, out, in] is the usual one.
LAYOUTS = {
    "qwen3_moe": "gate above up",
    "mixtral": "gate above up",
    "granitemoe": "gate above up, stored in one tensor",
    "aria_text": "transposed",
    "openai_privacy_filter": "transposed, with biases",
    "gpt_oss": "transposed, rows of gate and up take turns, with biases, and an activation of its own",
    "nemotron_h": "no gate",
    "muse_spark_text": "a norm after each expert",
    "llama4_text": "called with the tokens of all experts, sorted",
}
SORTED = {"llama4_text"}


def mixture_of(model_type: str) -> tuple[nn.Module, str]:
    """A module that holds a type's experts as `experts`, with random values; and the path of the experts."""
    settings = merged(tiny_models.CONFIGS.get(model_type) or tiny_settings(model_type), {})
    config = transformers.AutoConfig.for_model(model_type, **settings)
    with init_empty_weights(include_buffers=False):
        model = transformers.AutoModel.from_config(config)
    model.set_experts_implementation("eager")
    path = next(
        name
        for name, module in model.named_modules()
        if hasattr(module, "is_transposed") or type(module).__name__ == "Llama4TextExperts"
    )
    experts = model.get_submodule(path).to_empty(device="cpu").requires_grad_(False).eval()
    random = torch.Generator().manual_seed(0)
    for parameter in experts.parameters():
        parameter.copy_(0.3 * torch.randn(parameter.shape, generator=random))
    return nn.ModuleDict({"experts": experts}), "experts"


def separated(model: nn.Module) -> tuple[Any, dict[str, tuple[Part, ...]]]:
    """A copy with linears in place of the parameters, and their values taken over; and what replaced what."""
    other = copy.deepcopy(model)
    parts = separate_experts(other)
    values = {
        f"{name.rpartition('.')[0]}.{part.name}": part.of(model.get_parameter(name)[part.expert])
        for name, pieces in parts.items()
        for part in pieces
    }
    missing, unexpected = other.load_state_dict(values, strict=False, assign=True)
    assert not unexpected
    assert not [key for key in missing if other.get_parameter(key).is_meta]
    return other.get_submodule("experts"), parts


def calls(model_type: str, experts: Any, *, tokens: int = 40) -> tuple[Tensor, ...]:
    """Arguments of the experts: random tokens, and which experts read them."""
    random = torch.Generator().manual_seed(1)
    (hidden,) = {each.in_features for name, each in experts.named_modules() if name.endswith("up_proj")}
    count = experts.num_experts
    states = torch.randn(tokens, hidden, generator=random)
    if model_type in SORTED:
        routed = torch.rand(count, tokens, 1, generator=random).round()
        return ((states * routed).flatten(0, 1),)
    chosen = torch.rand(tokens, count, generator=random).topk(2, dim=-1).indices
    return states, chosen, torch.rand(tokens, 2, generator=random)


@pytest.mark.parametrize("model_type", LAYOUTS)
def test_linears_compute_what_the_parameters_compute(model_type: str) -> None:
    model, path = mixture_of(model_type)
    expected = model.get_submodule(path)
    experts, _ = separated(model)
    arguments = calls(model_type, experts)
    assert isinstance(experts, SeparateExperts)
    assert torch.allclose(experts(*arguments), expected(*arguments), rtol=1e-4, atol=1e-4)
    if model_type not in SORTED:
        reversed_order = [each.flip(0) for each in arguments]
        assert torch.allclose(experts(*reversed_order).flip(0), experts(*arguments), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("model_type", LAYOUTS)
def test_every_value_is_in_one_linear(model_type: str) -> None:
    model, path = mixture_of(model_type)
    experts, parts = separated(model)
    fused = {name: value for name, value in model.get_submodule(path).named_parameters() if value.dim() > 1}
    assert set(parts) == {f"{path}.{name}" for name in fused}
    linears = [value for name, value in experts.named_parameters() if name.partition(".")[0].isdecimal()]
    before = torch.cat([value.flatten() for value in fused.values()]).sort().values
    assert torch.equal(torch.cat([value.flatten() for value in linears]).sort().values, before)


@pytest.mark.parametrize("model_type", LAYOUTS)
def test_one_expert_reads_the_tokens_that_are_routed_to_it(model_type: str) -> None:
    model, _ = mixture_of(model_type)
    experts, _ = separated(model)
    arguments = calls(model_type, experts)
    hidden, rows = experts.routed(*arguments)
    total = torch.zeros_like(hidden)
    for expert, index in enumerate(rows):
        output = experts.run(expert, hidden[index])
        if model_type not in SORTED:
            _, chosen, weights = arguments
            output = output * (weights * (chosen == expert))[index].sum(dim=-1, keepdim=True)
        total[index] += output
    expected = experts(*arguments)
    if model_type in SORTED:  # only what an expert reads is a token of the layer; the rest is zero
        expected = expected[arguments[0].any(dim=-1)]
    assert torch.allclose(total, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("model_type", ["qwen3_moe", "gpt_oss"])
def test_a_token_without_an_expert_adds_nothing(model_type: str) -> None:
    model, path = mixture_of(model_type)
    experts, _ = separated(model)
    hidden, chosen, weights = calls(model_type, experts)
    masked = torch.zeros_like(chosen, dtype=torch.bool)
    masked[::3, 0] = True
    expected = model.get_submodule(path)(hidden, chosen, weights.masked_fill(masked, 0))
    got = experts(hidden, chosen.masked_fill(masked, experts.num_experts), weights)
    assert torch.allclose(got, expected, rtol=1e-4, atol=1e-4)
    _, rows = experts.routed(hidden, chosen.masked_fill(masked, experts.num_experts), weights)
    assert sum(map(len, rows)) == int((~masked).sum())


def test_the_linears_of_an_expert_have_the_usual_names() -> None:
    model, _ = mixture_of("gpt_oss")
    experts, _ = separated(model)
    linears = {name: each for name, each in experts.named_modules() if isinstance(each, nn.Linear)}
    assert set(linears) == {
        f"{expert}.{name}_proj" for expert in range(experts.num_experts) for name in ("gate", "up", "down")
    }
    assert all(each.bias is not None for each in linears.values())


def test_parameters_of_another_form_are_left_as_they_are() -> None:
    class Other(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gate_up_proj = nn.Parameter(torch.zeros(2, 4, 4))
            self.down_proj = nn.Parameter(torch.zeros(2, 4, 2))

    model = nn.ModuleDict({"experts": Other()})
    assert separate_experts(model) == {}
    assert type(model["experts"]) is Other
    assert [name for name, _ in model.named_parameters()] == ["experts.gate_up_proj", "experts.down_proj"]
