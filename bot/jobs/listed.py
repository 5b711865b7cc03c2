"""Whether the modules that config.json lists as not quantized fit the weights beside it. Reads headers only.

Servers leave out every module whose path contains a listed name, and expect all others in packed form:
https://github.com/vllm-project/vllm/blob/main/vllm/model_executor/layers/quantization/auto_awq.py
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence

from bot.records import TensorInfo

_NAME = re.compile(r"[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)*")
_MOST_CHARACTERS = 200
_LAYER = re.compile(r"(.*?\.)?(\d+)\.")  # the first number of a path is that of its layer


def listing_problem(listed: Sequence[str], tensors: Mapping[str, TensorInfo]) -> str | None:
    """What is wrong with the list, or None. tensors: the artifact's, from its headers."""
    return next(_problems(listed, tensors), None)


def _problems(listed: Sequence[str], tensors: Mapping[str, TensorInfo]) -> Iterator[str]:
    for name in listed:
        if len(name) > _MOST_CHARACTERS or not _NAME.fullmatch(name):
            yield f"{name[:_MOST_CHARACTERS]!r} among its modules that are not quantized is not a module's path"
    packed = [name.removesuffix(".qweight") for name in tensors if name.endswith(".qweight")]
    if not packed:
        yield "none of its weights are quantized"
    for linear in packed:
        if names := _names_in(linear, listed):
            yield f"it lists {names[0]!r} as not quantized, and {linear!r} is quantized"
    for name in _matrices_in_layers(tensors, packed):
        if not _names_in(name, listed):
            yield f"{name!r} is not quantized, and is not listed as such"


def _names_in(path: str, listed: Sequence[str]) -> list[str]:
    """Found by one search in C: a mixture has thousands of paths and a hundred names."""
    return [name for name in listed if name in path]


def _matrices_in_layers(tensors: Mapping[str, TensorInfo], packed: Collection[str]) -> Iterator[str]:
    """Modules of the decoder layers with a 2-D weight that is not packed.

    A layer behind the last quantized one is not the decoder's: some checkpoints have layers there that predict
    further tokens.
    """
    last: dict[str, int] = {}
    for linear in packed:
        if layer := _LAYER.match(linear):
            last[layer[1] or ""] = max(last.get(layer[1] or "", 0), int(layer[2]))
    for name, info in tensors.items():
        layer = _LAYER.match(name)
        if (
            layer
            and name.endswith(".weight")
            and len(info.shape) == 2
            and int(layer[2]) <= last.get(layer[1] or "", -1)
        ):
            yield name.removesuffix(".weight")
