"""What the decoder layers hold, and which weights and blocks are refused."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn
from transformers import PreTrainedConfig

from bot.checkpoint.selection import Mixture, Selection
from bot.errors import QuantizationError, UnsupportedModelError
from bot.quantize.architectures import (
    check_blocks,
    check_dtypes,
    linears_inside,
    matrices_inside,
    mixtures_inside,
)
from bot.records import TensorInfo


class Router(nn.Module):
    def __init__(self, experts: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(experts, 8))


def block(*, router: int, experts: int, wider: int = 0) -> nn.Module:
    """A router and a list of linears. wider: how many outputs the last of them has more."""
    sizes = [8] * (experts - 1) + [8 + wider]
    made = nn.Module()
    made.router, made.experts = Router(router), nn.ModuleList(nn.ModuleDict({"w": nn.Linear(8, n)}) for n in sizes)
    return made


def test_equal_modules_beside_a_router_are_a_mixture() -> None:
    layers = nn.ModuleList([nn.ModuleDict({"mlp": block(router=3, experts=3)})])
    assert mixtures_inside(layers, "model.layers") == (Mixture(path="model.layers.0.mlp.experts", experts=3),)
    assert mixtures_inside(layers[0]) == (Mixture(path="mlp.experts", experts=3),)


@pytest.mark.parametrize(
    "other",
    [block(router=4, experts=3), block(router=3, experts=3, wider=8), block(router=1, experts=1)],
    ids=["no router of this size", "of different sizes", "one"],
)
def test_other_lists_are_none(other: nn.Module) -> None:
    assert mixtures_inside(nn.ModuleList([other])) == ()


def test_what_is_not_packed_is_listed_by_the_path_of_its_mixture() -> None:
    layers = nn.ModuleList([nn.ModuleDict({"attn": nn.Linear(8, 8), "mlp": block(router=2, experts=2)})])
    linears = linears_inside(layers, "layers")
    assert list(linears) == ["layers.0.attn", "layers.0.mlp.experts.0.w", "layers.0.mlp.experts.1.w"]

    def listed(*packed: str) -> tuple[str, ...]:
        return matrices_inside(layers, "layers", Selection(packed=packed, left_out={}, left_out_share=0))

    assert listed(*linears) == ("layers.0.mlp.router",)
    assert listed("layers.0.attn") == ("layers.0.mlp.router", "layers.0.mlp.experts")


def test_weights_that_are_not_floats_are_refused() -> None:
    with pytest.raises(UnsupportedModelError, match="F8_E4M3"):
        check_dtypes({"a": TensorInfo(name="a", dtype="F8_E4M3", shape=(8, 8))})


@pytest.mark.parametrize(
    ("blocks", "problem"),
    [
        (torch.tensor([[1, 100]]), "token 100 is not in the model's vocabulary of 100"),
        (torch.zeros(2, 9, dtype=torch.int64), "9 tokens, the model reads 8"),
        (torch.zeros(8, dtype=torch.int64), "not \\[samples, seq_len\\]"),
    ],
)
def test_blocks_that_the_model_cannot_read_are_refused(blocks: torch.Tensor, problem: str) -> None:
    config = PreTrainedConfig(max_position_embeddings=8)
    model = SimpleNamespace(get_input_embeddings=lambda: nn.Embedding(100, 4), config=config)
    with pytest.raises(QuantizationError, match=problem):
        check_blocks(blocks, model)
