"""Which linears of a decoder layer read the same input, and which of them servers merge into one.

The table says for each model_type what AutoAWQ's `get_layers_for_scaling` says, as names relative to the layer.
"""

from __future__ import annotations

from collections.abc import Collection

Groups = tuple[tuple[str, ...], ...]

_ATTENTION: Groups = (("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"), ("self_attn.o_proj",))
_GATED: Groups = (("mlp.gate_proj", "mlp.up_proj"), ("mlp.down_proj",))
_LLAMA = _ATTENTION + _GATED

SHARED_INPUTS: dict[str, Groups] = {
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "qwen2": _LLAMA,
    "qwen3": _LLAMA,
    "gemma": _LLAMA,
    "gemma2": _LLAMA,
    "stablelm": _LLAMA,
    "starcoder2": (*_ATTENTION, ("mlp.c_fc",), ("mlp.c_proj",)),
    "phi3": (("self_attn.qkv_proj",), ("self_attn.o_proj",), ("mlp.gate_up_proj",), ("mlp.down_proj",)),
    "cohere": ((*_ATTENTION[0], *_GATED[0]), _ATTENTION[1], _GATED[1]),
    "opt": (_ATTENTION[0], ("self_attn.out_proj",), ("fc1",), ("fc2",)),
    "gptj": (
        ("attn.q_proj", "attn.k_proj", "attn.v_proj", "mlp.fc_in"),
        ("attn.out_proj",),
        ("mlp.fc_out",),
    ),
    "minicpm3": (
        ("self_attn.q_a_proj", "self_attn.kv_a_proj_with_mqa"),
        ("self_attn.q_b_proj",),
        ("self_attn.kv_b_proj",),
        ("self_attn.o_proj",),
        *_GATED,
    ),
}

# vLLM, SGLang and TGI load each of these as one matrix, which is either packed or not.
MERGED_BY_SERVERS: tuple[frozenset[str], ...] = (
    frozenset({"q_proj", "k_proj", "v_proj"}),
    frozenset({"gate_proj", "up_proj"}),
    frozenset({"q_a_proj", "kv_a_proj_with_mqa"}),
)


def shared_inputs(model_type: str, linears: Collection[str]) -> Groups:
    """The linears of a layer in groups that read the same input; one that no table knows is alone."""
    known = [tuple(name for name in group if name in linears) for group in SHARED_INPUTS.get(model_type, ())]
    listed = {name for group in known for name in group}
    return (*(group for group in known if group), *((name,) for name in linears if name not in listed))


def merged_with(linear: str, linears: Collection[str]) -> tuple[str, ...]:
    """Those of linears (names with a common style of path) that a server merges with this one, itself included."""
    parent, _, last = linear.rpartition(".")
    for merged in MERGED_BY_SERVERS:
        if last in merged:
            return tuple(
                name for name in linears if name.rpartition(".")[0] == parent and name.rpartition(".")[2] in merged
            )
    return (linear,)
