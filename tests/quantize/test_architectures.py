"""The table of shared inputs against AutoAWQ's own, and which linears a recipe selects."""

from __future__ import annotations

import warnings
from collections import defaultdict
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from torch import nn

from bot.checkpoint.skeleton import decoder_layers
from bot.errors import QuantizationError, UnsupportedModelError, WatchlistError
from bot.quantize.architectures import (
    SHARED_INPUTS,
    check_blocks,
    check_dtypes,
    merged_with,
    select_linears,
    shared_inputs,
)
from bot.records import Recipe, TensorInfo
from tests.support.tiny_models import CONFIGS

with warnings.catch_warnings(record=True):
    from awq.models.auto import AWQ_CAUSAL_LM_MODEL_MAP


def first_layer(model_type: str) -> nn.Module:
    settings = CONFIGS[model_type]
    heads = settings.get("num_attention_heads", 4)
    config = transformers.AutoConfig.for_model(model_type, **settings | {"num_key_value_heads": heads})
    with torch.device("meta"):
        model: Any = transformers.AutoModelForCausalLM.from_config(config)
    return decoder_layers(model)[1][0]


@pytest.mark.parametrize("model_type", sorted(SHARED_INPUTS))
def test_table_says_what_autoawq_says(model_type: str) -> None:
    layer = first_layer(model_type)
    names = {module: name for name, module in layer.named_modules()}
    linears = {name for module, name in names.items() if isinstance(module, nn.Linear)}
    feats: dict[str, None] = defaultdict(lambda: None)
    entries = AWQ_CAUSAL_LM_MODEL_MAP[model_type].get_layers_for_scaling(layer, feats, {})
    groups = SHARED_INPUTS[model_type]

    assert {name for group in groups for name in group} == linears
    for entry in entries:
        readers = {names[reader] for reader in entry["layers"]}
        assert [group for group in groups if readers & set(group)] == [
            group for group in groups if readers <= set(group)
        ]


def test_a_linear_that_no_table_knows_is_alone() -> None:
    assert shared_inputs("bloom", ["a", "b"]) == (("a",), ("b",))
    assert shared_inputs("llama", ["self_attn.k_proj", "self_attn.q_proj", "extra"]) == (
        ("self_attn.q_proj", "self_attn.k_proj"),
        ("extra",),
    )


def test_servers_merge_within_one_layer_only() -> None:
    linears = [f"model.layers.{i}.mlp.{name}" for i in (0, 1) for name in ("gate_proj", "up_proj", "down_proj")]
    assert merged_with("model.layers.1.mlp.up_proj", linears) == tuple(linears[3:5])
    assert merged_with("model.layers.1.mlp.down_proj", linears) == ("model.layers.1.mlp.down_proj",)


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


@pytest.mark.parametrize("left_out", [(), ("model.layers.1.mlp.down_proj",)])
def test_all_linears_are_quantized_but_those_left_out_by_full_path(left_out: tuple[str, ...]) -> None:
    recipe = Recipe(modules_to_not_convert=left_out)
    assert select_linears(LINEARS, recipe=recipe) == tuple(name for name in LINEARS if name not in left_out)


@pytest.mark.parametrize(
    ("left_out", "problem"),
    [
        (("mlp.down_proj",), "no linear 'mlp.down_proj'"),
        (("model.layers.1.mlp.up_proj",), "without model.layers.1.mlp.gate_proj"),
        (("model.layers.1.self_attn.q_proj", "model.layers.1.self_attn.v_proj"), "without .*k_proj"),
        (("model.layers.1.mlp.gate",), "servers would also leave out model.layers.1.mlp.gate_proj for"),
    ],
)
def test_what_readers_would_misunderstand_is_refused(left_out: tuple[str, ...], problem: str) -> None:
    with pytest.raises(WatchlistError, match=problem):
        select_linears(LINEARS, recipe=Recipe(modules_to_not_convert=left_out))


@pytest.mark.parametrize(
    ("shape", "problem"),
    [
        ((256, 320), "a.b: 320 input channels are not a multiple of the group size 128"),
        ((260, 256), "a.b: 260 output"),
    ],
)
def test_shapes_that_do_not_divide_are_refused_by_name(shape: tuple[int, int], problem: str) -> None:
    with pytest.raises(UnsupportedModelError, match=problem):
        select_linears({"a.b": shape}, recipe=Recipe())


def test_module_with_a_bad_shape_can_be_left_out() -> None:
    linears = {"a.b": (256, 320), "a.c": (256, 256)}
    assert select_linears(linears, recipe=Recipe(modules_to_not_convert=("a.b",))) == ("a.c",)


def test_nothing_to_quantize_is_refused() -> None:
    with pytest.raises(UnsupportedModelError, match="no linear is left"):
        select_linears({"a": (8, 128)}, recipe=Recipe(modules_to_not_convert=("a",)))


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
    model = SimpleNamespace(
        get_input_embeddings=lambda: nn.Embedding(100, 4), config=SimpleNamespace(max_position_embeddings=8)
    )
    with pytest.raises(QuantizationError, match=problem):
        check_blocks(blocks, model)
