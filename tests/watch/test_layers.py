"""What headers say about a model's layers, by the committed table."""

from __future__ import annotations

from typing import Any

import pytest

from bot.checkpoint.config_values import layer_count
from bot.records import TensorInfo
from bot.watch.layers import layers_from_headers, model_types, table_version
from tests.support.watch import QWEN3_4B


def tensors(*shapes: tuple[str, tuple[int, ...]]) -> tuple[TensorInfo, ...]:
    return tuple(TensorInfo(name=name, dtype="BF16", shape=shape) for name, shape in shapes)


LAYER = ("self_attn.q_proj.weight", (256, 256)), ("mlp.down_proj.weight", (256, 384))


@pytest.mark.parametrize(
    ("model_type", "prefix"),
    [
        ("qwen3", "model.layers"),
        ("qwen3", "layers"),
        ("gemma3", "language_model.model.layers"),
        ("gemma3", "model.language_model.layers"),
        ("qwen2_vl", "model.layers"),
        ("qwen2_vl", "model.language_model.layers"),
    ],
)
def test_layers_are_found_under_other_prefixes_and_beside_a_vision_tower(model_type: str, prefix: str) -> None:
    config = {"model_type": model_type, "text_config": {"num_hidden_layers": 2}}
    found = layers_from_headers(
        config,
        tensors(
            *((f"vision_tower.encoder.layers.{layer}.fc1.weight", (9999, 999)) for layer in range(2)),
            *((f"{prefix}.{layer}.{name}", shape) for layer in range(3) for name, shape in LAYER),
        ),
        model_types()[model_type],
    )
    path = model_types()[model_type].layers
    assert found.stored_path == prefix
    # The third is for predicting several tokens, which transformers leaves out.
    assert [linear.name for linear in found.linears] == [
        f"{path}.{layer}.{name}" for layer in range(2) for name in ("self_attn.q_proj", "mlp.down_proj")
    ]


def test_experts_stored_together_become_linears() -> None:
    config = {"model_type": "gpt_oss", "num_hidden_layers": 1}
    found = layers_from_headers(
        config,
        tensors(
            ("model.layers.0.mlp.experts.gate_up_proj", (8, 256, 768)),
            ("model.layers.0.mlp.experts.gate_up_proj_bias", (8, 768)),
            ("model.layers.0.mlp.experts.down_proj", (8, 384, 256)),
            ("model.layers.0.mlp.router.weight", (8, 256)),
        ),
        model_types()["gpt_oss"],
    )
    shapes = {linear.name: linear.shape for linear in found.linears}
    assert found.experts == {"model.layers.0.mlp.experts": 8}
    assert len(shapes) == 3 * 8
    assert shapes["model.layers.0.mlp.experts.7.up_proj"] == (384, 256)
    assert shapes["model.layers.0.mlp.experts.0.down_proj"] == (256, 384)
    assert [other.name for other in found.others] == ["model.layers.0.mlp.router"]


def test_stored_names_become_the_models() -> None:
    config = {"model_type": "mixtral", "num_hidden_layers": 1}
    names = [f"model.layers.0.block_sparse_moe.experts.{expert}.w2.weight" for expert in (0, 11)]
    found = layers_from_headers(config, tensors(*((name, (256, 384)) for name in names)), model_types()["mixtral"])
    assert [linear.name for linear in found.linears] == [
        f"model.layers.0.mlp.experts.{expert}.down_proj" for expert in (0, 11)
    ]
    assert found.mixture_of("model.layers.0.mlp.experts.11.down_proj") == "model.layers.0.mlp.experts"
    assert found.mixture_of("model.layers.0.mlp.down_proj") is None


@pytest.mark.parametrize("config", [{}, {"text_config": 5}, {"num_hidden_layers": "two"}, {"n_layer": True}])
def test_nonsense_in_a_config_does_not_stop_the_plan(config: dict[str, Any]) -> None:
    assert layer_count(config) is None
    assert layers_from_headers(config, ()).linears == ()
    odd = tensors(("0.weight", (4, 4)), ("model.layers.weight", (4, 4)), ("a.0", (4,)))
    assert layers_from_headers(config, odd).linears == ()


def test_what_the_bot_promises_is_in_the_table() -> None:
    types = model_types()
    promised = ("qwen3", "llama", "mistral", "gemma3", "qwen3_moe", "mixtral", "gpt_oss", "qwen3_next")
    assert [name for name in promised if types[name].reason] == []
    assert layer_count(QWEN3_4B) == 36
    assert table_version()
