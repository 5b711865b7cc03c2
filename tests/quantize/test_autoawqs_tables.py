"""What is traced against AutoAWQ's own tables, `get_layers_for_scaling` of each type: an independent source.

https://github.com/casper-hansen/AutoAWQ/tree/v0.2.9/awq/models
"""

from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoConfig

from bot.checkpoint.layerwise import hidden_states_of, inputs_of_layers
from bot.checkpoint.reader import Checkpoint
from bot.checkpoint.skeleton import load_tensors, open_skeleton
from bot.quantize.scaling import Group
from bot.quantize.search import NOT_SHARED
from bot.quantize.trace import Trace, trace_layer
from tests.support import tiny_models
from tests.support.stock_awq import AWQ_CAUSAL_LM_MODEL_MAP

CPU = torch.device("cpu")
Groups = set[tuple[str, frozenset[str]]]  # producer and readers

# Types with mixtures, as dense models: for their mixtures AutoAWQ's tables expect classes that transformers had.
ONLY_DENSE: dict[str, dict[str, Any]] = {
    "deepseek_v2": {"first_k_dense_replace": 2},
    "deepseek_v3": {"first_k_dense_replace": 2},
    "qwen3_moe": {"mlp_only_layers": [0, 1]},
}
DENSE = [name for name in tiny_models.CONFIGS if name != "mixtral"]
GROUPED = [name for name in DENSE if name not in ONLY_DENSE and "num_key_value_heads" in tiny_models.CONFIGS[name]]
CASES: list[tuple[str, dict[str, Any]]] = [
    *((name, ONLY_DENSE.get(name, {})) for name in DENSE),
    # As many heads of values as of queries.
    *(
        (name, {"num_key_value_heads": 4})
        for name in GROUPED
        if (name, {"num_key_value_heads": 4}) not in tiny_models.VARIANTS
    ),
    *tiny_models.VARIANTS,
]


def group(producer: str, *readers: str) -> tuple[str, frozenset[str]]:
    return producer, frozenset(readers)


def key(model_type: str, changes: dict[str, Any]) -> tuple[str, str]:
    return model_type, " ".join(changes)


ATTENTION = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
QUERIES_AND_KEYS = group("input_layernorm", "self_attn.q_a_proj", "self_attn.kv_a_proj_with_mqa")
# What only AutoAWQ lists, as it leaves the layer's outputs as they are only for other settings.
NOT_SCALABLE: dict[tuple[str, str], Groups] = {
    # Its residual is the output of the norm.
    ("bloom", "apply_residual_connection_post_layernorm"): {
        group("input_layernorm", "self_attention.query_key_value"),
        group("post_attention_layernorm", "mlp.dense_h_to_4h"),
    },
    # These norms come after what AutoAWQ takes for their readers.
    ("opt", "do_layer_norm_before"): {
        group("self_attn_layer_norm", *ATTENTION),
        group("final_layer_norm", "fc1"),
    },
    # GELU is not homogeneous: what fc1 makes smaller, fc2 cannot make larger again.
    ("opt", "activation_function"): {group("fc1", "fc2")},
    # With fewer heads of values than of queries each value goes to several channels of o_proj, which AutoAWQ does
    # not scale. The other types' tables compare the shapes, phi3's does not.
    ("phi3", ""): {group("self_attn.qkv_proj", "self_attn.o_proj")},
    # The MLP reads the output of this norm too.
    ("stablelm", "use_parallel_residual"): {group("input_layernorm", *ATTENTION)},
}
# What AutoAWQ could scale too.
NOT_LISTED: dict[tuple[str, str], Groups] = {
    ("minicpm3", ""): {QUERIES_AND_KEYS},
    ("minicpm3", "num_key_value_heads"): {QUERIES_AND_KEYS},
    ("stablelm", "use_parallel_residual"): {group("input_layernorm", *ATTENTION, "mlp.gate_proj", "mlp.up_proj")},
    # Its table is for the type's newer layers, and looks for a norm that these do not have.
    ("falcon", "new_decoder_architecture"): {
        group("input_layernorm", "self_attention.query_key_value", "mlp.dense_h_to_4h")
    },
}
WITHOUT_TABLE = {("falcon", "new_decoder_architecture")}
LATENT = group("self_attn.kv_b_proj", "self_attn.o_proj")
# What computes and what reads the values of attention that AutoAWQ does not scale: those of several heads, where
# these are not v_proj and o_proj, and those of each head, where the same linear computes keys too.
SHARED_VALUES = {
    "falcon": group("self_attention.query_key_value", "self_attention.dense"),
    "gpt_bigcode": group("attn.c_attn", "attn.c_proj"),
    "phi3": group("self_attn.qkv_proj", "self_attn.o_proj"),
}
VALUES_AMONG_OTHERS = {
    "bloom": group("self_attention.query_key_value", "self_attention.dense"),
    "deepseek_v2": LATENT,
    "deepseek_v3": LATENT,
    "gpt_neox": group("attention.query_key_value", "attention.dense"),
    "minicpm3": LATENT,
}


def traced(model_type: str, folder: Path, **changes: Any) -> tuple[nn.Module, Trace]:
    """The first decoder layer, and its trace."""
    source = tiny_models.build(model_type, folder, **changes)
    checkpoint = Checkpoint(source)
    skeleton = open_skeleton(
        source, checkpoint.tensors, read=checkpoint.read, dtype=torch.float32, trust_remote_code=False
    )
    captured = inputs_of_layers(skeleton, tiny_models.random_blocks(1, 64))
    layer, arguments = skeleton.layers[0], captured.arguments[0].of(slice(0, 1), device=CPU)
    load_tensors(layer, skeleton.layer_tensors(0), device=CPU)
    return layer, trace_layer(
        layer, lambda: hidden_states_of(layer(captured.hidden.clone(), **arguments)), captured.hidden
    )


def autoawqs_groups(model_type: str, layer: nn.Module) -> Groups:
    """Without those whose producer is an activation, in whose place AutoAWQ puts a module of its own."""
    attention: Any = getattr(layer, "self_attn", None)
    if getattr(attention, "q_proj", layer) is None:
        del attention.q_proj  # for its hasattr: where transformers says None now, there was nothing
    names = {module: name for name, module in layer.named_modules()}
    feats: dict[str, None] = defaultdict(lambda: None)
    entries = AWQ_CAUSAL_LM_MODEL_MAP[model_type].get_layers_for_scaling(layer, feats, {})
    return {
        group(names[entry["prev_op"]], *(names[reader] for reader in entry["layers"]))
        for entry in entries
        if hasattr(entry["prev_op"], "weight")
    }


@pytest.mark.parametrize(("model_type", "changes"), CASES)
def test_groups_are_those_of_autoawqs_tables(model_type: str, changes: dict[str, Any], tmp_path: Path) -> None:
    layer, trace = traced(model_type, tmp_path, **changes)
    ours = {group(each.producer, *each.readers) for each in _only_ours(trace)}
    found = {group(each.producer, *each.readers) for each in trace.groups} - ours
    case = key(model_type, changes)
    listed = set() if case in WITHOUT_TABLE else autoawqs_groups(model_type, layer)
    assert listed - found == NOT_SCALABLE.get(case, set())
    assert found - listed == NOT_LISTED.get(case, set())


@pytest.mark.parametrize(("model_type", "changes"), CASES)
def test_values_that_autoawq_does_not_scale_are_scaled_in_all_types(
    model_type: str, changes: dict[str, Any], tmp_path: Path
) -> None:
    _, trace = traced(model_type, tmp_path, **changes)
    readers = _readers(AutoConfig.from_pretrained(tmp_path))
    found = {group(each.producer, *each.readers): each.heads.readers for each in _only_ours(trace)}
    if readers > 1:
        assert found == {SHARED_VALUES.get(model_type, group("self_attn.v_proj", "self_attn.o_proj")): readers}
    else:
        assert found == ({VALUES_AMONG_OTHERS[model_type]: 1} if model_type in VALUES_AMONG_OTHERS else {})


def _only_ours(trace: Trace) -> list[Group]:
    return [each for each in trace.groups if each.heads != NOT_SHARED or each.blocks > 1]


def _readers(config: Any) -> int:
    """The query heads that read each head of values."""
    heads: int = config.num_attention_heads
    if getattr(config, "multi_query", False) and not getattr(config, "new_decoder_architecture", False):
        return heads
    if hasattr(config, "kv_lora_rank"):  # each head has values of its own
        return 1
    of_values = "num_kv_heads" if config.model_type == "falcon" else "num_key_value_heads"
    return heads // getattr(config, of_values, heads)


@pytest.mark.parametrize(("model_type", "changes"), CASES)
def test_every_linear_has_an_input_and_those_that_are_scaled_together_share_it(
    model_type: str, changes: dict[str, Any], tmp_path: Path
) -> None:
    layer, trace = traced(model_type, tmp_path, **changes)
    linears = [name for name, module in layer.named_modules() if isinstance(module, nn.Linear)]
    assert sorted(name for names in trace.inputs for name in names) == sorted(linears)
    assert all(any(set(each.readers) == set(names) for names in trace.inputs) for each in trace.groups)
    scaled = {name for each in trace.groups for name in each.readers}
    assert {name for names in trace.dropped for name in names} == set(linears) - scaled
    assert trace.experts == ()
