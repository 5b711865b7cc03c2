"""Which linears will be quantized, under which names, and whether that can be done. Checked before any work."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from bot.checkpoint.gemm import PER_INT32
from bot.checkpoint.inventory import SOURCE_FLOATS
from bot.errors import QuantizationError, UnsupportedModelError, WatchlistError
from bot.quantize.architectures import merged_with
from bot.records import Recipe, TensorInfo

Shape = tuple[int, int]  # [out, in]


def linears_inside(layers: nn.ModuleList, path: str) -> dict[str, Shape]:
    """Full path and shape of every linear in the decoder layers, in order."""
    return {
        f"{path}.{name}": (module.out_features, module.in_features)
        for name, module in layers.named_modules()
        if isinstance(module, nn.Linear)
    }


def select_linears(linears: Mapping[str, Shape], *, recipe: Recipe) -> tuple[str, ...]:
    """Those of linears that the recipe wants quantized, in order.

    Raises WatchlistError when the recipe leaves out what does not exist, or a part of what servers merge;
    UnsupportedModelError when a shape does not divide.
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
    """Raises UnsupportedModelError for weights that are no plain floats: quantized already, in all likelihood."""
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
    # vLLM and SGLang look for the name anywhere in a module's path.
    hit = [other for other in linears if name in other and other not in left_out]
    if hit:
        raise WatchlistError(
            f"modules_to_not_convert: readers would take {name} for {hit[0]} too",
            hint="Name both, or neither: servers look for the name anywhere in a module's path.",
        )


def _check_shape(name: str, shape: Shape, group_size: int) -> None:
    out, columns = shape
    if columns % group_size:
        raise UnsupportedModelError(
            f"{name}: {columns} input channels are no multiple of the group size {group_size}",
            hint="Use a group_size that divides them, or leave the module out with modules_to_not_convert.",
        )
    if out % PER_INT32:
        raise UnsupportedModelError(
            f"{name}: {out} output channels are no multiple of {PER_INT32}",
            hint="Leave the module out with modules_to_not_convert.",
        )
