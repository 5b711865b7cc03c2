"""The table of shared inputs against AutoAWQ's own, and which linears a recipe selects."""

from collections import defaultdict
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from torch import nn

from bot.checkpoint.skeleton import decoder_layers
from bot.errors import BotError, QuantizationError, UnsupportedModelError, WatchlistError
from bot.quantize.architectures import (
    SHARED_INPUTS,
    check_blocks,
    check_dtypes,
    select_linears,
    shared_inputs,
)
from bot.records import Recipe, TensorInfo
from tests.support.stock_awq import AWQ_CAUSAL_LM_MODEL_MAP
from tests.support.tiny_models import CONFIGS


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


ONE = "model.layers.1"
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


@pytest.mark.parametrize(
    ("linears", "left_out"),
    [
        (LINEARS, ()),
        (LINEARS, (f"{ONE}.mlp.down_proj",)),
        (LINEARS, (f"{ONE}.mlp.gate_proj", f"{ONE}.mlp.up_proj")),
        ({"wrong.shape": (256, 320), "a.c": (256, 256)}, ("wrong.shape",)),
    ],
)
def test_linears_are_left_out_by_full_path(linears: dict[str, tuple[int, int]], left_out: tuple[str, ...]) -> None:
    recipe = Recipe(modules_to_not_convert=left_out)
    assert select_linears(linears, recipe=recipe) == tuple(name for name in linears if name not in left_out)


@pytest.mark.parametrize(
    ("linears", "left_out", "error", "problem"),
    [
        (LINEARS, ("mlp.down_proj",), WatchlistError, "no linear 'mlp.down_proj'"),
        (LINEARS, (f"{ONE}.mlp.up_proj",), WatchlistError, f"without {ONE}.mlp.gate_proj$"),
        (LINEARS, (f"{ONE}.self_attn.q_proj", f"{ONE}.self_attn.v_proj"), WatchlistError, "without .*k_proj"),
        (LINEARS, (f"{ONE}.mlp.gate",), WatchlistError, f"servers would also leave out {ONE}.mlp.gate_proj"),
        ({"a.b": (256, 320)}, (), UnsupportedModelError, "a.b: 320 input channels are not a multiple of .* 128"),
        ({"a.b": (260, 256)}, (), UnsupportedModelError, "a.b: 260 output"),
        ({"a": (8, 128)}, ("a",), UnsupportedModelError, "no linear is left"),
    ],
)
def test_selections_that_readers_misunderstand_or_that_do_not_divide_are_refused(
    linears: dict[str, tuple[int, int]], left_out: tuple[str, ...], error: type[BotError], problem: str
) -> None:
    with pytest.raises(error, match=problem):
        select_linears(linears, recipe=Recipe(modules_to_not_convert=left_out))


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
