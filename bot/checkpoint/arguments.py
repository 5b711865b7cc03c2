"""A decoder layer's arguments beside the hidden states, by sample, and what layers hand to each other."""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from bot.errors import UnsupportedModelError

_CPU = torch.device("cpu")


class HandedOn(NamedTuple):
    """What a layer hands on: under a key of a mapping, which is an argument, or at a place in what it returns."""

    layer: int
    mapping: str | None
    key: Any

    def replaces(self, other: HandedOn) -> bool:
        return self.mapping is not None and self[1:] == other[1:] and self.layer > other.layer


@dataclass(frozen=True, slots=True, kw_only=True)
class Arguments:
    """A layer's arguments beside the hidden states, on the CPU.

    shared: the same for every sample, captured with batch size 1. by_sample: trees of tensors [samples, ...].
    mappings: those through which earlier layers hand tensors to later ones, such as keys and values, empty.
    outputs: for arguments that earlier layers return beside the hidden states, the layer and the place in its
    output; needed: those that this layer and later ones take. handed_on: what each layer has returned or put into
    a mapping, [samples, ...] each.
    """

    index: int
    shared: Mapping[str, Any]
    by_sample: Mapping[str, Any]
    mappings: Mapping[str, MutableMapping[Any, Any]]
    outputs: Mapping[str, tuple[int, int]]
    needed: frozenset[tuple[int, int]]
    handed_on: dict[HandedOn, tuple[Tensor, ...]]

    @property
    def same_for_all(self) -> bool:
        return not self.by_sample and not self.depend_on_layers

    @property
    def depend_on_layers(self) -> bool:
        """Whether earlier layers must have run."""
        return bool(self.mappings or self.outputs)

    def of(self, samples: slice, *, device: torch.device) -> dict[str, Any]:
        """The arguments for these samples. What the layer puts into a mapping is not kept."""
        rows = pytree.tree_map(lambda leaf: leaf[samples], dict(self.by_sample))
        made: dict[str, Any] = to_device({**self.shared, **rows}, device=device)
        for name, empty in self.mappings.items():
            made[name] = type(empty)()
            for each, values in self.handed_on.items():
                if each.mapping == name and each.layer < self.index:
                    made[name][each.key] = tuple(value[samples].to(device) for value in values)
        for name, (layer, place) in self.outputs.items():
            returned = self.handed_on.get(HandedOn(layer, None, place))
            if returned is None:
                raise UnsupportedModelError(
                    f"decoder layer {self.index} takes {name!r}, but layer {layer} does not return it as a tensor",
                    hint="Put it on `hold:` on the watchlist.",
                )
            made[name] = returned[0][samples].to(device)
        return made

    def handed_on_by(self, used: Mapping[str, Any], output: Any) -> dict[HandedOn, tuple[Tensor, ...]]:
        """What later layers may read after the layer has run: all that is in the mappings, and what it returned.

        used: the arguments it ran with, as from `of`; output: all that it returned.
        """
        found = {
            HandedOn(self.index, name, key): tuple(values)
            for name in self.mappings
            for key, values in used[name].items()
        }
        for place, value in enumerate(output if isinstance(output, tuple) else ()):
            if (self.index, place) in self.needed and isinstance(value, Tensor):
                found[HandedOn(self.index, None, place)] = (value,)
        return found

    def keep(self, samples: slice, used: Mapping[str, Any], output: Any, *, total: int) -> None:
        """Keep what the layer handed on when it ran on these samples of `total`."""
        for key, values in self.handed_on_by(used, output).items():
            self._keep(key, samples, tuple(value.to(_CPU) for value in values), total)
        for key in [key for key in self.handed_on if not self._is_needed(key)]:
            del self.handed_on[key]

    def _keep(self, key: HandedOn, samples: slice, values: tuple[Tensor, ...], total: int) -> None:
        if key not in self.handed_on:
            before = self._of_earlier(key)
            if before and all(map(torch.equal, (value[samples] for value in before), values)):
                return  # another layer has put it into the mapping
            same = bool(before) and [value.shape[1:] for value in before] == [value.shape[1:] for value in values]
            self.handed_on[key] = (
                tuple(value.clone() for value in before)
                if same
                else tuple(torch.empty(total, *value.shape[1:], dtype=value.dtype) for value in values)
            )
        for kept, value in zip(self.handed_on[key], values, strict=True):
            kept[samples] = value

    def _of_earlier(self, key: HandedOn) -> tuple[Tensor, ...]:
        """What the last layer before this one has put into the mapping under the same key."""
        found = [each for each in self.handed_on if key.replaces(each)]
        return self.handed_on[max(found, key=lambda each: each.layer)] if found else ()

    def _is_needed(self, key: HandedOn) -> bool:
        """Whether this layer, which may be run again, or a later one reads it."""
        if key.mapping is None:
            return (key.layer, key.key) in self.needed
        return not any(each.replaces(key) and each.layer < self.index for each in self.handed_on)


def to_device(value: Any, *, device: torch.device, dtype: torch.dtype | None = None) -> Any:
    """The same arguments on device, their floats in dtype."""

    def moved(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        return leaf.to(device=device, dtype=dtype if leaf.is_floating_point() else None)

    return pytree.tree_map(moved, value)
