"""What a model's decoder layers hold, from config.json and the headers of its weights alone.

`support_table.json` says for each model type where its layers are, and which matrices in them are not linears;
`make architectures` writes it, after quantizing a tiny model of each type.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from bot.checkpoint.config_values import layer_count
from bot.checkpoint.constants import FLOATS, SOURCE_FLOATS
from bot.checkpoint.selection import Mixture, select_linears
from bot.errors import UnsupportedModelError
from bot.records import Layers, Recipe, TensorInfo, from_json

TABLE = Path(__file__).with_name("support_table.json")

# In a name, such as that of an expert.
NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")
_EXPERTS = re.compile(r"^(?:.*\.)?experts(?=\.\d+\.)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """Settings that a type does not work with."""

    when: dict[str, Any]
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelType:
    """A model type in the table. Names are relative to a layer, without `.weight`, and numbers in them are `*`.

    reason: why it is refused. layers: the path of the layers' list in the model; stored: in a checkpoint. others:
    stored matrices that are not linears. renamed: stored names to the model's. fused: stored tensors of all
    experts to the linears that they hold, none for biases; transposed: whether those are [experts, in, out].
    mixtures: in the model. fixed: linears of the model that are never packed, and why. by_sample: whether the
    arguments of layers differ between samples.
    """

    reason: str | None = None
    layers: str = ""
    stored: str = ""
    others: tuple[str, ...] = ()
    renamed: dict[str, str] = field(default_factory=dict)
    fused: dict[str, tuple[str, ...]] = field(default_factory=dict)
    transposed: bool = False
    mixtures: tuple[str, ...] = ()
    fixed: dict[str, str] = field(default_factory=dict)
    by_sample: bool = False
    variants: tuple[Variant, ...] = ()


@cache
def model_types() -> Mapping[str, ModelType]:
    """The table's entries by model_type, as config.json names it."""
    return next(iter(_table().values()))


def table_version() -> str:
    """The version of transformers that the table was made with."""
    return next(iter(_table()))


@cache
def _table() -> Mapping[str, Mapping[str, ModelType]]:
    return from_json(dict[str, dict[str, ModelType]], TABLE.read_bytes())


@dataclass(frozen=True, slots=True, kw_only=True)
class Chosen:
    """packed: the linears that are quantized. share: of the weights in the layers, routers not counted."""

    layers: Layers
    packed: tuple[TensorInfo, ...]
    share: float


def choose_linears(layers: Layers, recipe: Recipe) -> Chosen:
    """What the recipe quantizes. Raises as select_linears does, UnsupportedModelError for other dtypes too."""
    selection = select_linears(
        {linear.name: (linear.shape[0], linear.shape[1]) for linear in layers.linears},
        [Mixture(path=path, experts=experts) for path, experts in layers.experts.items()],
        recipe=recipe,
        fixed=layers.fixed,
        others={other.name: other.shape for other in layers.others},
    )
    names = frozenset(selection.packed)
    packed = tuple(linear for linear in layers.linears if linear.name in names)
    for linear in packed:
        if linear.dtype not in SOURCE_FLOATS:
            shown = f"{linear.name} {list(linear.shape)} is {linear.dtype}"
            raise UnsupportedModelError(
                f"{shown}, not one of {', '.join(SOURCE_FLOATS)}", hint="Start from the model in full precision."
            )
    return Chosen(layers=layers, packed=packed, share=1 - selection.left_out_share)


def layers_from_headers(
    config: Mapping[str, Any], tensors: tuple[TensorInfo, ...], known: ModelType | None = None
) -> Layers:
    """By what the table knows about the type; if that is None, every matrix in a layer but norms is a linear."""
    known = known or ModelType()
    stored_path = _stored_path(config, tensors, known)
    count = layer_count(config)
    linears: list[TensorInfo] = []
    others: list[TensorInfo] = []
    fixed: dict[str, str] = {}
    for tensor in tensors:
        index, _, inside = tensor.name.removeprefix(f"{stored_path}.").partition(".")
        in_layers = stored_path and tensor.name.startswith(f"{stored_path}.") and index.isdecimal()
        if not in_layers or len(tensor.shape) < 2 or (count is not None and int(index) >= count):
            continue
        path, stem = f"{known.layers or stored_path}.{index}", inside.removesuffix(".weight")
        pattern = NUMBER.sub("*", stem)
        if pattern in known.fused:
            linears += _separated(tensor, path, known.fused[pattern], transposed=known.transposed)
        elif pattern in known.renamed or (
            len(tensor.shape) == 2 and stem != inside and not _is_other(pattern, known)
        ):
            name = f"{path}.{_filled(known.renamed.get(pattern, pattern), stem)}"
            linears.append(TensorInfo(name=name, dtype=tensor.dtype, shape=tensor.shape))
            if reason := known.fixed.get(known.renamed.get(pattern, pattern)):
                fixed[name] = reason
        elif tensor.dtype in FLOATS:  # others are masks
            others.append(TensorInfo(name=f"{path}.{stem}", dtype=tensor.dtype, shape=tensor.shape))
    return Layers(
        path=known.layers or stored_path,
        stored_path=stored_path,
        linears=tuple(linears),
        others=tuple(others),
        experts=_experts(linears, known),
        fixed=fixed,
    )


def _is_other(pattern: str, known: ModelType) -> bool:
    return pattern in known.others if known.layers else "norm" in pattern


def _stored_path(config: Mapping[str, Any], tensors: tuple[TensorInfo, ...], known: ModelType) -> str:
    """The list of modules that is most like the table's, or has as many layers as config.json says, or is largest.

    Prefixes differ between checkpoints of a type. Empty if there is none.
    """
    indices: dict[str, set[int]] = {}
    sizes: dict[str, int] = {}
    for tensor in tensors:
        parts = tensor.name.split(".")
        place = next((place for place, part in enumerate(parts) if place and part.isdecimal()), None)
        if place is not None:
            path = ".".join(parts[:place])
            indices.setdefault(path, set()).add(int(parts[place]))
            sizes[path] = sizes.get(path, 0) + math.prod(tensor.shape)
    count = layer_count(config)
    wanted = set(known.stored.split("."))

    def likeness(path: str) -> tuple[bool, int, int, bool, int]:
        parts = set(path.split("."))
        full = count is not None and set(range(count)) <= indices[path]
        foreign = len(parts - wanted) if known.stored else 0
        return path == known.stored, len(parts & wanted), -foreign, full, sizes[path]

    return max(sizes, key=likeness, default="")


def _separated(
    tensor: TensorInfo, path: str, linears: tuple[str, ...], *, transposed: bool
) -> Iterator[TensorInfo]:
    """The linears of all experts in a tensor [experts, out, in] or [experts, in, out]."""
    if not linears or len(tensor.shape) != 3:
        return
    experts, rows, columns = tensor.shape
    out, inputs = (columns, rows) if transposed else (rows, columns)
    for expert in range(experts):
        for linear in linears:
            name = f"{path}.{linear.replace('*', str(expert), 1)}"
            yield TensorInfo(name=name, dtype=tensor.dtype, shape=(out // len(linears), inputs))


def _filled(pattern: str, stem: str) -> str:
    """The pattern with the numbers of a name in place of its stars."""
    numbers = iter(NUMBER.findall(stem))
    return re.sub(r"\*", lambda star: next(numbers, star[0]), pattern)


def _experts(linears: list[TensorInfo], known: ModelType) -> dict[str, int]:
    """The number of experts by the path of each mixture."""
    found: dict[str, set[str]] = {}
    for linear in linears:
        for path in _mixture_paths(linear.name, known):
            found.setdefault(path, set()).add(linear.name.removeprefix(f"{path}.").partition(".")[0])
    return {path: len(numbers) for path, numbers in found.items()}


def _mixture_paths(name: str, known: ModelType) -> Iterator[str]:
    if not known.layers:
        if match := _EXPERTS.match(name):
            yield match[0]
        return
    layer = re.match(rf"{re.escape(known.layers)}\.\d+", name)
    for mixture in known.mixtures:
        path = f"{layer[0]}.{mixture}" if layer else ""
        number = name.removeprefix(f"{path}.").partition(".")[0]
        if path and name.startswith(f"{path}.") and number.isdecimal():
            yield path
