"""Whether the stored tensors are those of the model, and what stands for tensors that config.json ties.

As in transformers: https://github.com/huggingface/transformers/blob/main/src/transformers/modeling_utils.py
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from torch import nn

from bot.checkpoint.constants import FLOATS
from bot.checkpoint.origins import BROKEN_WEIGHTS, Origin, Origins, shape_of
from bot.errors import UnsupportedModelError, UpstreamError
from bot.records import TensorInfo

Equal = Callable[[str, str], bool]  # the stored names of two tensors -> whether they have the same values
_NAMED = 4  # names in one message


def tied(
    origins: Origins, ties: Mapping[str, str], tensors: Mapping[str, TensorInfo], equal: Equal | None
) -> dict[str, Origin]:
    """The origins, with those of tied tensors for what is not stored or is stored twice.

    ties: of the model, as transformers has them. Where both are stored with different values, both are used. None
    of equal: they count as equal.
    """
    found = dict(origins)
    for target, source in ties.items():
        # Where none of the two is stored, another tensor that is tied to the same one may be.
        others = (key for key, tied_to in ties.items() if tied_to == source)
        stored = next((key for key in (source, target, *others) if key in found), None)
        if stored is None:
            continue
        if target in found and source in found and not _is_same(found[source], found[target], tensors, equal):
            continue
        found[target] = found[stored]
        found.setdefault(source, found[stored])
    return found


def _is_same(one: Origin, other: Origin, tensors: Mapping[str, TensorInfo], equal: Equal | None) -> bool:
    if one.name == other.name:
        return True
    if one.name not in tensors or other.name not in tensors:  # converted: no type ties such tensors
        return False
    same_shape = tensors[one.name].shape == tensors[other.name].shape
    return same_shape and (equal is None or equal(one.name, other.name))


def check_complete(
    parameters: Mapping[str, nn.Parameter], origins: Origins, tensors: Mapping[str, TensorInfo], *, where: Path
) -> None:
    """Raises UpstreamError for tensors of the model that are missing or of another shape.

    Raises UnsupportedModelError for those that are not stored as plain floats.
    """
    if missing := sorted(key for key in parameters if key not in origins):
        raise UpstreamError(
            f"{where}: upload incomplete: {len(missing)} missing keys: {_listed([repr(key) for key in missing])}",
            hint="The weights lack what the model needs.",
        )
    shapes = {key: tuple(parameter.shape) for key, parameter in parameters.items()}
    if other := sorted(key for key, shape in shapes.items() if shape_of(origins[key], tensors) != shape):
        shown = _listed([_difference(key, origins[key], tensors, shapes[key]) for key in other])
        converted = all(origins[key].conversion is not None for key in other)
        matching = "The weights do not match this config.json, or the upload is not complete."
        raise UpstreamError(
            f"{where}: {len(other)} mismatched keys: {shown}", hint=BROKEN_WEIGHTS if converted else matching
        )
    for key, parameter in parameters.items():
        if parameter.is_floating_point():
            for name in origins[key].names(tensors):
                if tensors[name].dtype not in FLOATS:
                    raise UnsupportedModelError(
                        f"{name} is {tensors[name].dtype}, not one of {', '.join(sorted(FLOATS))}",
                        hint="Start from the model in full precision.",
                    )


def _listed(items: list[str]) -> str:
    more = f" and {len(items) - _NAMED} more" if len(items) > _NAMED else ""
    return ", ".join(items[:_NAMED]) + more


def _difference(key: str, origin: Origin, tensors: Mapping[str, TensorInfo], wanted: tuple[int, ...]) -> str:
    found = list(shape_of(origin, tensors))
    if origin.conversion is None:
        return f"{origin.name!r} is {found}, config.json says {list(wanted)}"
    return f"{key!r} is {found}, not {list(wanted)}, as merged from {origin.conversion.described(tensors)}"
