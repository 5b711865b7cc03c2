"""Which linears of a decoder layer are quantized, which read the same input, and which are merged by servers.

The table lists for each model_type, by names relative to the layer, what AutoAWQ's `get_layers_for_scaling` lists:
https://github.com/casper-hansen/AutoAWQ/tree/v0.2.9/awq/models.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from torch import Tensor, nn

from bot.checkpoint.constants import PER_INT32, SOURCE_FLOATS
from bot.errors import QuantizationError, UnsupportedModelError, WatchlistError
from bot.records import Recipe, TensorInfo

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

# vLLM and SGLang load each of these as one matrix, which is either packed or not.
MERGED_BY_SERVERS: tuple[frozenset[str], ...] = (
    frozenset({"q_proj", "k_proj", "v_proj"}),
    frozenset({"gate_proj", "up_proj"}),
    frozenset({"q_a_proj", "kv_a_proj_with_mqa"}),
)


def shared_inputs(model_type: str, linears: Collection[str]) -> Groups:
    """The linears of a layer in groups that read the same input; one that is not in the table is alone."""
    known = [tuple(name for name in group if name in linears) for group in SHARED_INPUTS.get(model_type, ())]
    listed = {name for group in known for name in group}
    return (*(group for group in known if group), *((name,) for name in linears if name not in listed))


def merged_with(linear: str, linears: Collection[str]) -> tuple[str, ...]:
    """Those of linears that a server merges with this one, itself included."""
    parent, _, last = linear.rpartition(".")
    for merged in MERGED_BY_SERVERS:
        if last in merged:
            return tuple(
                name for name in linears if name.rpartition(".")[0] == parent and name.rpartition(".")[2] in merged
            )
    return (linear,)


Shape = tuple[int, int]  # [out, in]


def linears_inside(layers: nn.ModuleList, path: str) -> dict[str, Shape]:
    """Full path and shape of every linear in the decoder layers, in order."""
    return {
        f"{path}.{name}": (module.out_features, module.in_features)
        for name, module in layers.named_modules()
        if isinstance(module, nn.Linear)
    }


def select_linears(linears: Mapping[str, Shape], *, recipe: Recipe) -> tuple[str, ...]:
    """The linears that the recipe quantizes, in order.

    Raises WatchlistError when the recipe leaves out a linear that does not exist, or some of those that servers
    merge; UnsupportedModelError when a shape does not divide.
    """
    left_out = recipe.modules_to_not_convert
    for name in left_out:
        _check_left_out(name, left_out, linears)
    chosen = tuple(name for name in linears if name not in left_out)
    for name in chosen:
        _check_shape(name, linears[name], recipe.group_size)
    if not chosen:
        raise UnsupportedModelError(
            "no linear is left to quantize", hint="Name fewer modules under modules_to_not_convert."
        )
    return chosen


def check_dtypes(chosen: Mapping[str, TensorInfo]) -> None:
    """Raises UnsupportedModelError for weights that are not plain floats, as quantized ones are."""
    for info in chosen.values():
        if info.dtype not in SOURCE_FLOATS:
            raise UnsupportedModelError(
                f"{info.name} is {info.dtype}; only {', '.join(SOURCE_FLOATS)} are quantized",
                hint="Start from the model in full precision.",
            )


def check_blocks(blocks: Tensor, model: Any) -> None:
    """Raises QuantizationError when the model cannot read these token ids [samples, seq_len]."""
    vocabulary = model.get_input_embeddings().num_embeddings
    if blocks.dim() != 2 or not blocks.numel():
        raise QuantizationError(f"calibration blocks of shape {list(blocks.shape)}, not [samples, seq_len]")
    if int(blocks.min()) < 0 or int(blocks.max()) >= vocabulary:
        raise QuantizationError(
            f"calibration token {int(blocks.max())} is not in the model's vocabulary of {vocabulary}",
            hint="The tokenizer does not belong to these weights.",
        )
    positions = getattr(model.config, "max_position_embeddings", None)
    if positions and blocks.shape[1] > positions:
        raise QuantizationError(
            f"calibration blocks of {blocks.shape[1]} tokens, the model reads {positions}",
            hint="Set a smaller seq_len in the entry's calibration.",
        )


def _check_left_out(name: str, left_out: tuple[str, ...], linears: Mapping[str, Shape]) -> None:
    if name not in linears:
        raise WatchlistError(
            f"modules_to_not_convert: the model has no linear {name!r} in its layers",
            hint="Write the full path, one per layer, such as model.layers.3.mlp.down_proj.",
        )
    apart = [other for other in merged_with(name, linears) if other not in left_out]
    if apart:
        raise WatchlistError(
            f"modules_to_not_convert: {name} without {', '.join(apart)}",
            hint="Servers merge these into one matrix: leave them out together or not at all.",
        )
    # vLLM and SGLang match the name as a substring of a module's path.
    hit = [other for other in linears if name in other and other not in left_out]
    if hit:
        raise WatchlistError(
            f"modules_to_not_convert: servers would also leave out {hit[0]} for {name}",
            hint="Name both or neither: servers match the name as a substring of a module's path.",
        )


def _check_shape(name: str, shape: Shape, group_size: int) -> None:
    out, columns = shape
    if columns % group_size:
        raise UnsupportedModelError(
            f"{name}: {columns} input channels are not a multiple of the group size {group_size}",
            hint="Use a group_size that divides them, or leave the module out with modules_to_not_convert.",
        )
    if out % PER_INT32:
        raise UnsupportedModelError(
            f"{name}: {out} output channels are not a multiple of {PER_INT32}",
            hint="Leave the module out with modules_to_not_convert.",
        )
