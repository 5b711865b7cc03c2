"""The table of shared inputs against AutoAWQ's, on models that are built without weights."""

from __future__ import annotations

import warnings
from collections import defaultdict
from typing import Any

import pytest
import torch
import transformers
from torch import nn

from bot.checkpoint.skeleton import decoder_layers
from bot.quantize.architectures import SHARED_INPUTS, merged_with, shared_inputs
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
