"""Which stored tensors each tensor of a model is made from, by transformers' own rules, and where ours are stored.

Most are stored as the model holds them, under the same name or another. Others are converted when they are loaded,
such as the weights of many experts into one parameter:
https://github.com/huggingface/transformers/blob/main/src/transformers/conversion_mapping.py
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    Concatenate,
    MergeModulelist,
    WeightConverter,
    WeightRenaming,
    dot_natural_key,
    rename_source_key,
)

from bot.checkpoint.experts import Part
from bot.errors import UnsupportedModelError, UpstreamError, untrusted_input
from bot.records import TensorInfo

BROKEN_WEIGHTS = "The weights are not complete, or broken."

Read = Callable[[str], Tensor]  # the stored name of a tensor -> the tensor, on the CPU


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Conversion:
    """Stored tensors, each with the pattern that its name matches, that become tensors of the model together.

    first: the model's name of the first tensor that results; shapes: of all that do.
    """

    first: str
    stored: tuple[tuple[str, str], ...]
    converter: Any
    model: Any
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)

    def run(self, read: Read, *, expert: int | None = None) -> dict[str, Tensor]:
        """The resulting tensors by the model's names. expert: convert the tensors of this one alone.

        Only where the tensors are stored by expert.
        """
        converter = copy.deepcopy(self.converter)
        stored = self.stored
        if expert is not None:
            stored = tuple((name, pattern) for pattern, name in self.names_by_expert()[expert].items())
        for name, pattern in stored:
            converter.add_tensor(self.first, name, pattern, lambda name=name: read(name))
        converted = converter.convert(self.first, model=self.model, config=self.model.config)
        return {key: value[0] if isinstance(value, list) else value for key, value in converted.items()}

    def described(self, tensors: Mapping[str, TensorInfo]) -> str:
        """The stored tensors, and the patterns that none of them has."""
        parts = []
        for pattern in self.converter.source_patterns:
            names = [name for name, matched in self.stored if matched == pattern]
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            parts.append(f"{names[0]} {list(tensors[names[0]].shape)}{more}" if names else f"no {pattern}")
        return ", ".join(parts)

    @property
    def by_expert(self) -> bool:
        """Whether each expert's tensors are stored on their own, and are only put together."""
        simple = all(isinstance(each, (MergeModulelist, Concatenate)) for each in self.converter.operations)
        return simple and all("*" in pattern for _, pattern in self.stored)

    def names_by_expert(self) -> list[dict[str, str]]:
        """For each expert the stored name by pattern; in natural order, so the place is the expert's number."""
        by_pattern: dict[str, list[str]] = {}
        for name, pattern in self.stored:
            by_pattern.setdefault(pattern, []).append(name)
        return [dict(zip(by_pattern, names, strict=True)) for names in zip(*by_pattern.values(), strict=True)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """Where the value of one tensor of the model comes from.

    name: under which it is stored as the model holds it, or will be. Where no tensor of this name is stored, it is
    made from the tensor `key`: a result of `conversion`, or stored if that is None; part: what of it.
    """

    name: str
    key: str = ""
    conversion: Conversion | None = None
    part: Part | None = None

    def names(self, stored: Container[str]) -> tuple[str, ...]:
        """The names of the stored tensors that it is read from."""
        if self.name in stored:
            return (self.name,)
        return (self.key,) if self.conversion is None else tuple(name for name, _ in self.conversion.stored)


Origins = Mapping[str, Origin]  # by the model's names of tensors


def find_origins(model: Any, tensors: Mapping[str, TensorInfo]) -> dict[str, Origin]:
    """The origin of each tensor of a model as transformers builds it. tensors: those that are stored."""
    state = model.state_dict()
    mapping = get_model_conversion_mapping(model)
    renamings = [item for item in mapping if isinstance(item, WeightRenaming)]
    converters = [item for item in mapping if isinstance(item, WeightConverter)]
    by_pattern = {pattern: item for item in converters for pattern in item.source_patterns}
    origins: dict[str, Origin] = {}
    together: dict[str, list[tuple[str, str]]] = {}
    for name in sorted(tensors, key=dot_natural_key):
        key, pattern = rename_source_key(name, renamings, converters, model.base_model_prefix, state)
        if key not in state and name in state:
            key, pattern = name, None
        if key in state and pattern is None:
            origins[key] = Origin(name=name)
        elif key in state:
            together.setdefault(key, []).append((name, pattern))
    for key, stored in together.items():
        conversion = Conversion(first=key, stored=tuple(stored), converter=by_pattern[stored[0][1]], model=model)
        made = _shapes_made(conversion, tensors)
        conversion.shapes.update((result, tuple(value.shape)) for result, value in made.items())
        for result in made:
            # Only the model has a tensor of this name, so it is never stored.
            origins.setdefault(result, Origin(name=result, key=result, conversion=conversion))
    return origins


def _shapes_made(conversion: Conversion, tensors: Mapping[str, TensorInfo]) -> dict[str, Tensor]:
    """On the meta device. Raises UpstreamError when the stored tensors do not fit each other."""

    def refused(reason: str) -> UpstreamError:
        return UpstreamError(
            f"{conversion.first} cannot be merged from {conversion.described(tensors)}: {reason}",
            hint=BROKEN_WEIGHTS,
        )

    with untrusted_input(refused):
        return conversion.run(lambda name: torch.empty(tensors[name].shape, device="meta"))


def shape_of(origin: Origin, tensors: Mapping[str, TensorInfo]) -> tuple[int, ...]:
    """The shape of the tensor in transformers' model."""
    return tensors[origin.name].shape if origin.conversion is None else origin.conversion.shapes[origin.key]


def read_values(origins: Origins, read: Read, *, stored: Container[str]) -> dict[str, Tensor]:
    """The values by the same names; those of one origin share their memory. stored: the names that read takes."""
    names = dict.fromkeys(origin.name for origin in origins.values() if origin.name in stored)
    values = {name: read(name) for name in names}
    made: dict[tuple[int, str], Tensor] = {}
    found = {}
    for key, origin in origins.items():
        if origin.name not in values:
            values[origin.name] = _make(origin, read, made)
        found[key] = values[origin.name]
    return found


def _make(origin: Origin, read: Read, made: dict[tuple[int, str], Tensor]) -> Tensor:
    """made: what was made before, as several tensors may be parts of one."""
    place = (id(origin.conversion), origin.key)
    if place not in made:
        if origin.conversion is None:
            made[place] = read(origin.key)
        else:
            made |= {(place[0], key): value for key, value in origin.conversion.run(read).items()}
    return made[place] if origin.part is None else origin.part.of(made[place][origin.part.expert])


def separated(
    origins: Origins, parts: Mapping[str, tuple[Part, ...]], tensors: Mapping[str, TensorInfo]
) -> dict[str, Origin]:
    """The origins after separate_experts, which returned parts: theirs in place of the parameters'."""
    found = {key: origin for key, origin in origins.items() if key not in parts}
    patterns: dict[int, dict[tuple[str, str], str]] = {}
    for key, pieces in parts.items():
        if (origin := origins.get(key)) is None:
            continue
        module, conversion = key.rpartition(".")[0], origin.conversion
        names: list[dict[str, str]] = []
        known: dict[tuple[str, str], str] = {}
        if conversion is not None and any("*" in pattern for _, pattern in conversion.stored):
            if not conversion.by_expert:
                raise UnsupportedModelError(
                    f"{key}: experts that are stored like this cannot be written one by one",
                    hint="Put it on `hold:` on the watchlist.",
                )
            names = conversion.names_by_expert()
            place = id(conversion.converter)
            if place not in patterns:
                patterns[place] = _patterns_of_parts(conversion, origin.key, pieces, tensors)
            known = patterns[place]
        for part in pieces:
            pattern = known.get((part.linear, part.kind))
            name = names[part.expert][pattern] if pattern else _name_of_part(module, origin, part)
            found[f"{module}.{part.name}"] = Origin(
                name=name, key=origin.key or origin.name, conversion=conversion, part=part
            )
    return found


def _patterns_of_parts(
    conversion: Conversion, key: str, parts: tuple[Part, ...], tensors: Mapping[str, TensorInfo]
) -> dict[tuple[str, str], str]:
    """The pattern of the stored tensor that each part is, by linear and kind; found with random values."""
    random = torch.Generator().manual_seed(0)
    names = conversion.names_by_expert()[0]
    stored = {pattern: torch.rand(tensors[name].shape, generator=random) for pattern, name in names.items()}
    by_name = {name: stored[pattern] for pattern, name in names.items()}
    first = conversion.run(lambda name: by_name[name], expert=0)[key][0]
    return {
        (part.linear, part.kind): pattern
        for part in parts
        if part.expert == 0
        for pattern, value in stored.items()
        if torch.equal(part.of(first), value)
    }


def _name_of_part(module: str, origin: Origin, part: Part) -> str:
    """The name that most mixtures give this tensor of an expert. module: the experts' path in the model."""
    stored = origin.name if origin.conversion is None else origin.conversion.stored[0][0]
    layer, inside = (re.match(r"(.*?\.\d+\.)(.*)", path) for path in (stored, module))
    path = layer[1] + inside[2] if layer and inside else module
    return f"{path}.{part.name}"
