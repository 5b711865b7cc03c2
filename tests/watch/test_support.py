"""What is refused before any download, and with which words."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from bot.errors import UnsupportedModelError, UpstreamError, WatchlistError
from bot.records import Details, Layers, Recipe, Skip, TensorInfo
from bot.watch.layers import Chosen, layers_from_headers, model_types
from bot.watch.refusals import chosen_or_refusal
from tests.support import watch
from tests.support.factories import details, entry, layer_tensors
from tests.support.watch import moe_tensors

QWEN3_4B = watch.QWEN3_4B | {"num_hidden_layers": 1}
QWEN3_30B_A3B = watch.QWEN3_30B_A3B | {"num_hidden_layers": 1}
TENSORS = layer_tensors(QWEN3_4B)
CODE = {"AutoConfig": "configuration_x.XConfig", "AutoModelForCausalLM": "modeling_x.X"}
UNKNOWN = QWEN3_4B | {"model_type": "noway"}


def found(
    config: dict[str, Any], tensors: tuple[TensorInfo, ...] = TENSORS, recipe: Recipe | None = None, **fields: Any
) -> Chosen | Skip:
    asked = entry(recipe=recipe or Recipe(), trust_remote_code=fields.pop("trust_remote_code", False))
    return chosen_or_refusal(asked, details(config=config, tensors=tensors, **fields))


def refused(*args: Any, **fields: Any) -> Skip:
    skip = found(*args, **fields)
    assert isinstance(skip, Skip), skip
    assert skip.blocked
    return skip


def packed(*args: Any, **fields: Any) -> list[str]:
    chosen = found(*args, **fields)
    assert isinstance(chosen, Chosen), chosen
    return [linear.name for linear in chosen.packed]


def resized(
    changes: dict[str, tuple[int, int]], tensors: tuple[TensorInfo, ...] = TENSORS
) -> tuple[TensorInfo, ...]:
    """The same header with other shapes, by the last parts of the linears' names."""
    return tuple(
        replace(
            tensor,
            shape=next((new for name, new in changes.items() if f"{name}.weight" in tensor.name), tensor.shape),
        )
        for tensor in tensors
    )


def test_a_model_that_can_be_quantized_is_not_refused() -> None:
    assert len(packed(QWEN3_4B)) == 7
    typed_only = {key: value for key, value in QWEN3_4B.items() if key != "architectures"}
    assert packed(typed_only) == packed(QWEN3_4B)
    left_out = Recipe(modules_to_not_convert=("model.layers.0.self_attn.o_proj",))
    assert set(packed(QWEN3_4B)) - set(packed(QWEN3_4B, recipe=left_out)) == set(left_out.modules_to_not_convert)


def test_a_mixture_is_quantized_without_its_router() -> None:
    names = packed(QWEN3_30B_A3B, moe_tensors(QWEN3_30B_A3B))
    assert len(names) == 4 + 3 * 128
    assert "model.layers.0.mlp.gate" not in names


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"model_type": None}, "config.json has no model_type"),
        ({"model_type": ["qwen3"]}, "config.json has no model_type"),
        ({"model_type": "gpt2"}, "model_type 'gpt2': its layers hold no linears"),
        ({"model_type": "noway"}, "model_type 'noway': this version's table does not know it"),
        (
            {"model_type": "gemma4_assistant"},
            "model_type 'gemma4_assistant': not tried: it reads the hidden states",
        ),
        ({"architectures": ["Qwen3ForSequenceClassification"]}, "Qwen3ForSequenceClassification is not a causal"),
    ],
)
def test_config_is_refused_in_words(change: dict[str, Any], reason: str) -> None:
    skip = refused(QWEN3_4B | change)
    assert skip.reason.startswith(f"unsupported: {reason}")
    assert (skip.exit_code, "hold" in skip.hint) == (UnsupportedModelError.exit_code, True)


@pytest.mark.parametrize("group_size", [128, 64])
def test_what_does_not_divide_names_a_group_size_that_does(group_size: int) -> None:
    odd = resized({"gate_proj": (1376, 2560), "up_proj": (1376, 2560), "down_proj": (2560, 1376)})
    skip = refused(QWEN3_4B, odd, Recipe(group_size=group_size, max_unquantized_share=0.0))
    assert "model.layers.0.mlp.down_proj [2560, 1376]: 1376 input channels are not a multiple" in skip.reason
    assert "`group_size: 32`" in skip.hint
    assert len(packed(QWEN3_4B, odd, Recipe(group_size=32))) == 7


def test_a_share_that_cannot_be_packed_is_left_out_up_to_what_the_recipe_allows() -> None:
    odd = resized({"gate_proj": (9724, 2560), "up_proj": (9724, 2560)})
    skip = refused(QWEN3_4B, odd)
    assert "49% of the weights in its layers cannot be packed" in skip.reason
    assert "9724 output channels are not a multiple of 8" in skip.reason
    assert "`max_unquantized_share`" in skip.hint
    assert len(packed(QWEN3_4B, odd, Recipe(max_unquantized_share=0.5))) == 5


def test_weights_that_are_no_floats_are_refused() -> None:
    odd = tuple(replace(tensor, dtype="F8_E4M3") if "up_proj" in tensor.name else tensor for tensor in TENSORS)
    assert "up_proj [9728, 2560] is F8_E4M3, not one of F16, BF16, F32" in refused(QWEN3_4B, odd).reason


def test_weights_without_layers_are_refused() -> None:
    assert (
        refused(QWEN3_4B, TENSORS[:1]).reason == "unsupported: its layers hold no linears that could be quantized"
    )


def test_a_module_that_does_not_exist_is_a_mistake_in_the_watchlist() -> None:
    skip = refused(QWEN3_4B, recipe=Recipe(modules_to_not_convert=("model.layers.0.mlp.nothing",)))
    assert (skip.exit_code, "unsupported" in skip.reason) == (WatchlistError.exit_code, False)


def test_method_awq_is_refused_for_what_its_search_cannot_do() -> None:
    assert packed(QWEN3_4B, recipe=Recipe(method="awq")) == packed(QWEN3_4B)
    mixture = refused(QWEN3_30B_A3B, moe_tensors(QWEN3_30B_A3B), Recipe(method="awq"))
    assert "mixtures of experts" in mixture.reason
    assert "`method: awq+gptq`" in mixture.hint


def test_types_with_code_of_their_own_say_that_it_would_be_needed() -> None:
    skip = refused(UNKNOWN | {"auto_map": CODE})
    assert "`trust_remote_code: true`" in skip.hint
    # Then headers are judged by general rules, and the job looks again.
    trusted = packed(UNKNOWN | {"auto_map": CODE}, trust_remote_code=True)
    assert trusted == packed(QWEN3_4B)
    assert "does not know it" in refused(UNKNOWN, trust_remote_code=True).reason


def test_what_transformers_makes_of_a_model_decides_where_it_was_asked() -> None:
    layers = layers_from_headers(QWEN3_4B, TENSORS, model_types()["qwen3"])
    assert packed(UNKNOWN, layers=layers) == packed(QWEN3_4B)
    problem = Layers(problem="4 missing keys", hint="Look.", exit_code=UpstreamError.exit_code)
    skip = refused(QWEN3_4B, layers=problem)
    assert (skip.reason, skip.hint, skip.exit_code) == ("4 missing keys", "Look.", 3)
    assert isinstance(Details(layers=layers).layers, Layers)
