from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from bot.checkpoint.inventory import main_dtype
from bot.errors import QuantizationError, UnsupportedModelError, WatchlistError
from bot.quantize.architectures import check_blocks, check_dtypes, select_linears
from bot.records import Recipe, TensorInfo

LINEARS = {
    f"model.layers.{index}.{name}": shape
    for index in (1, 11)
    for name, shape in {
        "self_attn.q_proj": (256, 256),
        "self_attn.k_proj": (80, 256),
        "self_attn.v_proj": (80, 256),
        "mlp.gate": (8, 256),
        "mlp.gate_proj": (512, 256),
        "mlp.up_proj": (512, 256),
        "mlp.down_proj": (256, 512),
    }.items()
}


def test_everything_in_the_layers_is_quantized() -> None:
    assert select_linears(LINEARS, recipe=Recipe()) == tuple(LINEARS)


def test_what_is_left_out_is_left_out_of_that_layer_only() -> None:
    recipe = Recipe(modules_to_not_convert=("model.layers.1.mlp.down_proj",))
    assert set(LINEARS) - set(select_linears(LINEARS, recipe=recipe)) == {"model.layers.1.mlp.down_proj"}


@pytest.mark.parametrize(
    ("left_out", "problem"),
    [
        (("mlp.down_proj",), "no linear 'mlp.down_proj'"),
        (("model.layers.1.mlp.up_proj",), "without model.layers.1.mlp.gate_proj"),
        (("model.layers.1.self_attn.q_proj", "model.layers.1.self_attn.v_proj"), "without .*k_proj"),
        (("model.layers.1.mlp.gate",), "readers would take .* for model.layers.1.mlp.gate_proj"),
    ],
)
def test_what_readers_would_misunderstand_is_refused(left_out: tuple[str, ...], problem: str) -> None:
    with pytest.raises(WatchlistError, match=problem):
        select_linears(LINEARS, recipe=Recipe(modules_to_not_convert=left_out))


@pytest.mark.parametrize(
    ("shape", "problem"),
    [
        ((256, 320), "a.b: 320 input channels are no multiple of the group size 128"),
        ((260, 256), "a.b: 260 output"),
    ],
)
def test_shapes_that_do_not_divide_are_refused_by_name(shape: tuple[int, int], problem: str) -> None:
    with pytest.raises(UnsupportedModelError, match=problem):
        select_linears({"a.b": shape}, recipe=Recipe())


def test_a_module_with_a_bad_shape_can_be_left_out() -> None:
    linears = {"a.b": (256, 320), "a.c": (256, 256)}
    assert select_linears(linears, recipe=Recipe(modules_to_not_convert=("a.b",))) == ("a.c",)


def test_nothing_to_quantize_is_refused() -> None:
    with pytest.raises(UnsupportedModelError, match="no linear is left"):
        select_linears({"a": (8, 128)}, recipe=Recipe(modules_to_not_convert=("a",)))


def info(dtype: str, *shape: int) -> TensorInfo:
    return TensorInfo(name=f"model.{dtype}", dtype=dtype, shape=shape)


def test_the_source_has_the_dtype_of_most_values() -> None:
    tensors = {"a": info("BF16", 100, 10), "b": info("F32", 900), "c": info("I64", 10**6)}
    assert main_dtype(tensors) == "BF16"


def test_weights_that_are_no_floats_are_refused() -> None:
    with pytest.raises(UnsupportedModelError, match="F8_E4M3"):
        check_dtypes({"a": info("F8_E4M3", 8, 8)})


@pytest.mark.parametrize(
    ("blocks", "problem"),
    [
        (torch.tensor([[1, 100]]), "token 100 is not in the model's vocabulary of 100"),
        (torch.zeros(2, 9, dtype=torch.int64), "9 tokens, the model reads 8"),
        (torch.zeros(8, dtype=torch.int64), "not \\[samples, seq_len\\]"),
    ],
)
def test_blocks_that_the_model_cannot_read_are_refused(blocks: torch.Tensor, problem: str) -> None:
    model = SimpleNamespace(
        get_input_embeddings=lambda: nn.Embedding(100, 4), config=SimpleNamespace(max_position_embeddings=8)
    )
    with pytest.raises(QuantizationError, match=problem):
        check_blocks(blocks, model)
