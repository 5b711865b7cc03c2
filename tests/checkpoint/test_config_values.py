"""Sizes in config.json that are no sizes, or that no model can have."""

from __future__ import annotations

from typing import Any

import pytest

from bot.checkpoint.config_values import check_values, doubtful_value, most_tokens, quantized_as
from bot.errors import UnsupportedModelError
from tests.support.factories import CONFIG, layer_tensors

TENSORS = layer_tensors()
TOWER = {"vision_config": {"num_hidden_layers": 10**9}}


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"hidden_size": "128"}, "hidden_size is '128', not a positive whole number"),
        ({"hidden_size": 128.0}, "hidden_size is 128.0, not a"),
        ({"hidden_size": True}, "hidden_size is True, not a"),
        ({"hidden_size": {"a": 1}}, "hidden_size is {'a': 1}, not a"),
        ({"hidden_size": -256}, "hidden_size is -256, not a"),
        ({"num_attention_heads": 0}, "num_attention_heads is 0, not a positive whole number"),
        ({"num_attention_heads": [4, "4"]}, "num_attention_heads is '4', not a"),
        ({"text_config": {"vocab_size": 0}}, "vocab_size is 0, not a"),
        ({"num_key_value_heads": -1}, "num_key_value_heads is -1, not a whole number"),
        ({"max_position_embeddings": 10**12}, "max_position_embeddings is 1000000000000, more than any model has"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers is 1000000000, and the weights hold 24 tensors"),
        ({"num_hidden_layers": len(TENSORS) + 1}, "num_hidden_layers is 25, and the weights hold 24 tensors"),
        (TOWER, "num_hidden_layers is 1000000000, and the weights hold 24 tensors"),
        ({"audio_config": {"encoder": TOWER}}, "num_hidden_layers is 1000000000, and the weights hold 24 tensors"),
        ({"hidden_size": "9" * 4000}, "hidden_size is '9999"),
    ],
)
def test_a_size_that_is_none_is_named(change: dict[str, Any], problem: str) -> None:
    with pytest.raises(UnsupportedModelError) as caught:
        check_values(CONFIG | change, TENSORS)
    assert caught.value.message.startswith(f"config.json: {problem}")
    assert len(caught.value.message) < 150


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"num_hidden_layers": len(TENSORS)},
        {"num_attention_heads": [4, 8], "num_key_value_heads": [1, 2], "intermediate_size": [768, 512]},
        {"head_dim": None, "n_inner": None, "num_experts": 0, "intermediate_size": 0},
        {"max_position_embeddings": 10_485_760},
        {"rope_theta": -1.5, "sliding_window": -1, "vision_config": {"hidden_size": "wide"}},
    ],
)
def test_what_models_have_is_accepted(change: dict[str, Any]) -> None:
    check_values(CONFIG | change, TENSORS)


@pytest.mark.parametrize(
    ("settings", "method"),
    [
        ({"quantization_config": {"quant_method": "gptq"}}, "gptq"),
        ({"quantization_config": {}}, "quantization_config"),
        ({"quantization_config": "odd"}, "quantization_config"),
        ({"quantization_config": {"quant_method": "a\x1b[31m\nb"}}, "a[31m b"),
        ({"text_config": {"quantization_config": {"quant_method": "fp8"}}}, "fp8"),
        ({"quantization": {"group_size": 64, "bits": 4}}, "MLX"),
        ({"quantization": "none"}, None),
        ({"quantization_config": None}, None),
        ({}, None),
    ],
)
def test_a_model_that_is_quantized_already_says_how(settings: dict[str, Any], method: str | None) -> None:
    assert quantized_as(CONFIG | settings) == method


@pytest.mark.parametrize(
    ("pad", "doubtful"), [(2047, False), (-1, False), (None, False), (2048, True), (-2049, True)]
)
def test_a_padding_token_outside_of_the_vocabulary_is_doubtful(pad: int | None, doubtful: bool) -> None:
    found = doubtful_value(CONFIG | {"pad_token_id": pad})
    assert found == (f"config.json: pad_token_id is {pad}, and vocab_size 2048" if doubtful else None)


ABSURD: tuple[object, ...] = (0, -1, True, "2048", 2048.0, float("inf"), [])


@pytest.mark.parametrize(
    ("config", "most"),
    [
        ({"max_position_embeddings": 2048}, 2048),
        ({"n_positions": 1024}, 1024),
        ({"max_position_embeddings": None, "n_positions": 7}, 7),
        ({"max_position_embeddings": 9, "text_config": {"max_position_embeddings": 256}}, 256),
        ({"model_type": "opt", "max_position_embeddings": 2048}, 2048),
        ({"model_type": "roberta", "max_position_embeddings": 514, "pad_token_id": 1}, 512),
        ({"model_type": "xmod", "max_position_embeddings": 514, "pad_token_id": None}, 512),
        ({"model_type": "roberta", "max_position_embeddings": 1, "pad_token_id": 1}, None),
        ({"max_position_embeddings": 10**30}, 10**30),
        ({}, None),
        *[({"max_position_embeddings": absurd}, None) for absurd in ABSURD],
    ],
)
def test_how_many_tokens_a_model_reads_is_taken_from_its_config(config: dict[str, Any], most: int | None) -> None:
    assert most_tokens(config) == most
