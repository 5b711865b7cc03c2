"""What is refused before any download, and with which words; and the committed table against the two libraries."""

from __future__ import annotations

import warnings
from importlib.metadata import version
from typing import Any

import pytest

from bot.records import Recipe, TensorInfo
from bot.watch.refusals import support_table, unsupported_reason
from tests.support.tiny_models import CONFIGS, VARIANTS
from tests.support.watch import QWEN3_4B


def linear(name: str, out: int, columns: int, dtype: str = "BF16") -> TensorInfo:
    return TensorInfo(name=f"model.layers.0.{name}.weight", dtype=dtype, shape=(out, columns))


TENSORS = (
    TensorInfo(name="model.embed_tokens.weight", dtype="BF16", shape=(151, 2560)),
    TensorInfo(name="model.layers.0.input_layernorm.weight", dtype="F32", shape=(2560,)),
    linear("self_attn.q_proj", 4096, 2560),
    linear("mlp.up_proj", 9728, 2560),
    linear("mlp.down_proj", 2560, 9728),
)


def test_a_model_that_can_be_quantized_has_no_reason() -> None:
    assert unsupported_reason(QWEN3_4B, TENSORS, Recipe()) is None
    typed_only = {key: value for key, value in QWEN3_4B.items() if key != "architectures"}
    assert unsupported_reason(typed_only, TENSORS, Recipe()) is None
    odd = linear("self_attn.o_proj", 2560, 9700)
    left_out = Recipe(modules_to_not_convert=("model.layers.0.self_attn.o_proj",))
    assert unsupported_reason(QWEN3_4B, (*TENSORS, odd), left_out) is None


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"model_type": None}, "config.json has no model_type"),
        ({"model_type": ["qwen3"]}, "config.json has no model_type"),
        ({"model_type": "gpt2"}, "model_type 'gpt2': AutoAWQ 0.2.9 does not know it"),
        ({"model_type": "noway"}, "model_type 'noway': AutoAWQ 0.2.9 does not know it, nor does transformers"),
        ({"model_type": "llava"}, "model_type 'llava': it is not a causal language model of text alone"),
        ({"architectures": ["Qwen3ForSequenceClassification"]}, "Qwen3ForSequenceClassification is not a causal"),
        ({"quantization_config": {"quant_method": "gptq"}}, "it is quantized already (gptq)"),
        ({"quantization_config": "odd"}, "it is quantized already (quantization_config)"),
        ({"model_type": "opt", "do_layer_norm_before": False}, "model_type 'opt' with do_layer_norm_before false"),
    ],
)
def test_config_is_refused_in_words(change: dict[str, Any], reason: str) -> None:
    assert (unsupported_reason(QWEN3_4B | change, TENSORS, Recipe()) or "").startswith(reason)


@pytest.mark.parametrize(
    ("tensor", "reason"),
    [
        (linear("mlp.down_proj", 2560, 9700), ": 9700 input channels are not a multiple of"),
        (linear("mlp.up_proj", 100, 2560), ": 100 output channels are not a multiple of 8"),
        (linear("mlp.up_proj", 128, 2560, "F8_E4M3"), " is F8_E4M3, not one of F16, BF16, F32"),
    ],
)
def test_the_first_bad_tensor_is_named(tensor: TensorInfo, reason: str) -> None:
    bad_too = linear("mlp.gate_proj", 7, 7)
    found = unsupported_reason(QWEN3_4B, (*TENSORS, tensor, bad_too), Recipe()) or ""
    assert found.startswith(f"{tensor.name} {list(tensor.shape)}{reason}")


def test_weights_without_layers_are_refused() -> None:
    reason = unsupported_reason(QWEN3_4B, TENSORS[:1], Recipe())
    assert reason == "its layers hold no linears that could be quantized"


def test_table_covers_what_the_two_libraries_know() -> None:
    with warnings.catch_warnings(record=True):
        from awq.models.auto import AWQ_CAUSAL_LM_MODEL_MAP  # noqa: PLC0415
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES  # noqa: PLC0415

    table = support_table()
    assert list(table["types"]) == sorted(AWQ_CAUSAL_LM_MODEL_MAP)
    assert table["unknown_to_autoawq"] == sorted(
        set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES) - set(AWQ_CAUSAL_LM_MODEL_MAP)
    )
    assert set(CONFIGS) == set(AWQ_CAUSAL_LM_MODEL_MAP) & set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


def test_table_was_made_with_the_pinned_versions() -> None:
    for name, used in support_table()["versions"].items():
        assert used == version(name)


def test_what_the_bot_promises_is_in_the_table() -> None:
    types = support_table()["types"]
    assert types["qwen3"] is types["llama"] is types["mistral"] is types["qwen2"] is None
    assert "experts" in types["mixtral"]
    tried = {(model_type, *sorted(when.items())) for model_type, when in VARIANTS}
    assert {(row["model_type"], *sorted(row["when"].items())) for row in support_table()["variants"]} <= tried
