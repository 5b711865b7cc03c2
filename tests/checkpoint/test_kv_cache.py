"""What a model keeps of each token, by published figures of known models; and no figure where it is not known."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bot.checkpoint.kv_cache import kv_cache
from bot.records import KVCache, TensorInfo
from tests.support.factories import CONFIG, layer_tensors


def linears(name: str, width: int, layers: int, *, packed: bool = False) -> tuple[TensorInfo, ...]:
    shape, ending = ((64, width // 8), "qweight") if packed else ((width, 64), "weight")
    return tuple(
        TensorInfo(name=f"model.layers.{number}.self_attn.{name}.{ending}", dtype="I32", shape=shape)
        for number in range(layers)
    )


QWEN3_4B: dict[str, Any] = {
    "model_type": "qwen3",
    "hidden_size": 2560,
    "num_hidden_layers": 36,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "max_position_embeddings": 40_960,
    "use_sliding_window": False,
    "sliding_window": None,
}
# Of each: what `transformers.DynamicCache` holds in bytes after so many tokens, or what vLLM's log says for MLA.
GEMMA3_4B = {
    "model_type": "gemma3",
    "text_config": {
        "model_type": "gemma3_text",
        "hidden_size": 2560,
        "num_hidden_layers": 34,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 256,
        "sliding_window": 1024,
    },
}
DEEPSEEK_V3 = {
    "model_type": "deepseek_v3",
    "num_hidden_layers": 61,
    "num_attention_heads": 128,
    "num_key_value_heads": 128,
    "kv_lora_rank": 512,
    "qk_rope_head_dim": 64,
}
MISTRAL_V1 = {
    "model_type": "mistral",
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "sliding_window": 4096,
}
PHI3 = {
    "model_type": "phi3",
    "hidden_size": 3072,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "sliding_window": None,
}


@pytest.mark.parametrize(
    ("config", "tensors", "at_8k"),
    [
        (QWEN3_4B, linears("k_proj", 1024, 36), 8192 * 147_456),
        (QWEN3_4B, linears("k_proj", 1024, 36, packed=True), 8192 * 147_456),
        # 5 of 34 layers are full: the 6th, 12th, 18th, 24th and 30th.
        (GEMMA3_4B, linears("k_proj", 1024, 34), (5 * 8192 + 29 * 1024) * 2 * 4 * 256 * 2),
        (DEEPSEEK_V3, linears("kv_a_proj_with_mqa", 576, 62), 8192 * 61 * 576 * 2),
        (MISTRAL_V1, linears("k_proj", 1024, 32), 4096 * 32 * 2 * 1024 * 2),
        (MISTRAL_V1 | {"sliding_window": None}, linears("k_proj", 1024, 32), 8192 * 32 * 2 * 1024 * 2),
        (PHI3, linears("qkv_proj", 3 * 3072, 32), 8192 * 32 * 2 * 3072 * 2),
        (
            QWEN3_4B | {"use_sliding_window": True, "sliding_window": 512, "max_window_layers": 30},
            linears("k_proj", 1024, 36),
            (30 * 8192 + 6 * 512) * 2 * 1024 * 2,
        ),
        (
            QWEN3_4B | {"layer_types": ["full_attention"] * 36},
            linears("k_proj", 1024, 36),
            8192 * 147_456,
        ),
        (CONFIG, layer_tensors(), 8192 * 2 * 2 * 2 * 64 * 2),
    ],
)
def test_the_cache_of_known_models(config: dict[str, Any], tensors: tuple[TensorInfo, ...], at_8k: int) -> None:
    found = kv_cache(config, tensors)
    assert found.problem == ""
    assert found.contexts == (8192, 32_768)
    assert found.size_bytes(8192) == at_8k


KEYS = linears("k_proj", 1024, 36)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"model_type": "qwen3_next"}, "layers of the type qwen3_next"),
        ({"model_type": "mamba2"}, "layers of the type mamba2"),
        ({"model_type": ["qwen3"]}, "layers of the type \\['qwen3'\\]"),
        ({"model_type": "minicpm3"}, "layers of the type minicpm3"),
        ({"num_hidden_layers": 10**9}, "no sensible number of layers"),
        ({"num_hidden_layers": True}, "no sensible number of layers"),
        ({"num_key_value_heads": -8}, "num_key_value_heads in config.json is no size"),
        ({"num_key_value_heads": 4}, "do not agree"),
        ({"num_key_value_heads": None}, "do not agree"),
        ({"head_dim": "128"}, "head_dim in config.json is no size"),
        ({"head_dim": None}, "do not agree"),
        ({"head_dim": 10**30}, "head_dim in config.json is no size"),
        ({"num_hidden_layers": 37}, "do not agree"),
        ({"layer_types": ["linear_attention"] * 36}, "layers of the type linear_attention"),
        ({"layer_types": ["full_attention"] * 35}, "does not list each layer"),
        ({"layer_types": "full_attention"}, "does not list each layer"),
        ({"layer_types": ["sliding_attention"] * 36}, "other settings of a window"),
        ({"use_sliding_window": True}, "max_window_layers in config.json is no size"),
        ({"model_type": "mistral", "sliding_window": "4096"}, "sliding_window in config.json is no size"),
        ({"model_type": "gemma2"}, "sliding_window in config.json is no size"),
        ({"model_type": "gemma2", "sliding_window_pattern": 0}, "sliding_window_pattern"),
        ({"model_type": "qwen3_moe", "attention_chunk_size": 8192}, "config.json sets attention_chunk_size"),
        ({"model_type": "smollm3", "use_sliding_window": True}, "config.json sets use_sliding_window"),
    ],
)
def test_no_figure_where_it_is_not_known(change: dict[str, Any], why: str) -> None:
    found = kv_cache(QWEN3_4B | change, KEYS)
    assert found.layers == ()
    with pytest.raises(AssertionError, match=why):
        raise AssertionError(found.problem)


def test_mistral_that_leaves_its_window_to_the_default_gets_no_figure() -> None:
    silent = {key: value for key, value in MISTRAL_V1.items() if key != "sliding_window"}
    assert "whether attention has a window" in kv_cache(silent, linears("k_proj", 1024, 32)).problem


@pytest.mark.parametrize(("most", "contexts"), [(40_960, (8192, 32_768)), (8192, (8192,)), (2048, (2048,))])
def test_contexts_that_the_model_does_not_read_are_left_out(most: int, contexts: tuple[int, ...]) -> None:
    assert kv_cache(QWEN3_4B | {"max_position_embeddings": most}, KEYS).contexts == contexts


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from([*QWEN3_4B]), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=200, deadline=None)
@given(st.dictionaries(st.sampled_from([*QWEN3_4B, "layer_types", "text_config"]), ANYTHING))
def test_any_config_gives_a_figure_or_a_reason(change: dict[str, Any]) -> None:
    found = kv_cache(QWEN3_4B | change, KEYS)
    assert isinstance(found, KVCache)
    assert bool(found.layers) != bool(found.problem)
    assert found.size_bytes(32_768) < 10**18
