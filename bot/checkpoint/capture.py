"""What a model hands to its decoder layers: the hidden states, and each layer's other arguments.

The model's own code is run with the layers' `forward` replaced.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, MutableMapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from bot.checkpoint.arguments import Arguments, HandedOn
from bot.errors import BotError, UnsupportedModelError

_CACHES = ("past_key_values", "past_key_value", "cache_params", "layer_past", "cache", "use_cache")
_MOST_OUTPUTS = 4  # values that a layer may return as a tuple


@dataclass(frozen=True, slots=True)
class _NotComputed:
    """What a replaced layer returns beside the hidden states, at this place."""

    layer: int
    place: int


class _Captured(Exception):
    """A type of its own, so that no exception of the model is mistaken for it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerInputs:
    """hidden: [samples, seq_len, hidden]. arguments: of each layer."""

    hidden: Tensor
    arguments: tuple[Arguments, ...]


@torch.no_grad()
def capture_layer_inputs(model: nn.Module, layers: nn.ModuleList, blocks: Tensor) -> LayerInputs:
    """Run blocks (int64 [samples, seq_len]) through what comes before the layers, one at a time, on the CPU.

    Masks may differ between layers (sliding windows), so the arguments of each layer are captured. Raises
    UnsupportedModelError for a model whose layers cannot be run one after the other.
    """
    outputs, first = _first_capture(model, layers, blocks[0])
    again = _capture(model, layers, blocks[0], outputs=outputs, changed=True)
    _check_independent(first, again)
    collected = _Collected(first.arguments)
    hidden = [first.hidden]
    for block in blocks[1:]:
        captured = _capture(model, layers, block, outputs=outputs)
        hidden.append(captured.hidden)
        collected.add(captured.arguments)
    return LayerInputs(hidden=torch.cat(hidden), arguments=collected.result(len(blocks)))


@dataclass(slots=True)
class _Sample:
    """hidden: the input of the first layer; returned: what the last replaced layer returned."""

    hidden: Tensor = field(default_factory=lambda: torch.empty(0))
    returned: Tensor = field(default_factory=lambda: torch.empty(0))
    arguments: list[dict[str, Any]] = field(default_factory=list)


def _first_capture(model: nn.Module, layers: nn.ModuleList, block: Tensor) -> tuple[int, _Sample]:
    """How many values the model takes from a layer, and the first sample. It is found out by trying."""
    problems: list[BotError] = []
    for outputs in range(_MOST_OUTPUTS + 1):
        try:
            return outputs, _named_capture(model, layers, block, outputs=outputs)
        except BotError as error:
            problems.append(error)
    raise problems[0]


def _named_capture(model: nn.Module, layers: nn.ModuleList, block: Tensor, *, outputs: int) -> _Sample:
    """Raises UnsupportedModelError with whatever the model's own code raises, given what it may not expect."""
    try:
        return _capture(model, layers, block, outputs=outputs)
    except (BotError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        raise UnsupportedModelError(
            f"{type(model).__name__} does not run layer by layer: {type(error).__name__}: {error}",
            hint="Put it on `hold:` on the watchlist.",
        ) from error


def _capture(
    model: nn.Module, layers: nn.ModuleList, block: Tensor, *, outputs: int, changed: bool = False
) -> _Sample:
    """One sample. changed: replaced layers return states of another length and direction, not what they read."""
    sample = _Sample()
    last = len(layers) - 1

    def replacement(index: int, signature: inspect.Signature) -> Callable[..., Any]:
        def forward(*args: Any, **kwargs: Any) -> Any:
            states, others = _split(signature, args, kwargs)
            if index == 0:
                sample.hidden = states.detach()
                if len(states) != 1:
                    raise UnsupportedModelError(
                        f"hidden states of shape {list(states.shape)}: the first dimension is not the sample's",
                        hint="Put it on `hold:` on the watchlist.",
                    )
            elif not _same_states(states, sample.returned):
                raise UnsupportedModelError(
                    f"decoder layer {index} does not read what the layer before it returns",
                    hint="Put it on `hold:` on the watchlist.",
                )
            if index != len(sample.arguments):
                raise RuntimeError(f"decoder layer {index} runs out of order")
            sample.arguments.append(others)
            if index == last:
                raise _Captured
            sample.returned = 0.5 * states.flip(-1) if changed else states.clone()
            others_returned = (_NotComputed(index, place) for place in range(1, outputs))
            return (sample.returned, *others_returned) if outputs else sample.returned

        return forward

    with replaced_forward(layers, replacement):
        try:
            model(input_ids=block.unsqueeze(0), use_cache=False)
        except _Captured:
            return sample
    raise RuntimeError("the model never called its last decoder layer")


def _check_independent(first: _Sample, again: _Sample) -> None:
    """Raises UnsupportedModelError when arguments are computed from what earlier layers return."""
    for index, (one, other) in enumerate(zip(first.arguments, again.arguments, strict=True)):
        for name, value in one.items():
            inside = any(isinstance(leaf, _NotComputed) for leaf in pytree.tree_leaves(value))
            if not isinstance(value, _NotComputed) and (inside or not _same(value, other.get(name))):
                raise UnsupportedModelError(
                    f"decoder layer {index} takes {name!r}, which earlier layers compute",
                    hint="Layers may hand on only tensors that they return, or put into a mapping.",
                )


class _Collected:
    """The arguments of all samples: those of the first, and of the others what differs from it."""

    def __init__(self, first: list[dict[str, Any]]) -> None:
        self._first = first
        self._differ: list[dict[str, list[Any]]] = [{} for _ in first]
        self._samples = 1

    def add(self, arguments: list[dict[str, Any]]) -> None:
        known: dict[tuple[int, int], bool] = {}  # layers share their masks
        for first, differ, now in zip(self._first, self._differ, arguments, strict=True):
            for name, value in first.items():
                other = now.get(name)
                if name not in differ and not _is_empty_mapping(value) and not _same(value, other, known):
                    differ[name] = [value] * self._samples
                if name in differ:
                    differ[name].append(other)
        self._samples += 1

    def result(self, samples: int) -> tuple[Arguments, ...]:
        handed_on: dict[HandedOn, tuple[Tensor, ...]] = {}
        taken = [
            {name: (value.layer, value.place) for name, value in first.items() if isinstance(value, _NotComputed)}
            for first in self._first
        ]
        found = []
        for index, (first, differ) in enumerate(zip(self._first, self._differ, strict=True)):
            mappings = {name: value for name, value in first.items() if _is_empty_mapping(value)}
            outputs = taken[index]
            found.append(
                Arguments(
                    index=index,
                    shared={key: value for key, value in first.items() if key not in differ | mappings | outputs},
                    outputs=outputs,
                    needed=frozenset(output for each in taken[index:] for output in each.values()),
                    by_sample={name: _stacked(index, name, values) for name, values in differ.items()},
                    mappings=mappings,
                    handed_on=handed_on,
                )
            )
        return tuple(found)


def _stacked(index: int, name: str, values: list[Any]) -> Any:
    """The same tree with the tensors of all samples joined, [samples, ...]."""
    flat = [pytree.tree_flatten(value) for value in values]
    leaves = [list(column) for column in zip(*(leaves for leaves, _ in flat), strict=False)]
    if any(spec != flat[0][1] for _, spec in flat) or not all(
        isinstance(leaf, Tensor) and leaf.dim() and len(leaf) == 1 for column in leaves for leaf in column
    ):
        raise UnsupportedModelError(
            f"decoder layer {index} takes {name!r}, which differs between samples and cannot be joined",
            hint="Put it on `hold:` on the watchlist.",
        )
    return pytree.tree_unflatten([torch.cat(column) for column in leaves], flat[0][1])


def _same(one: Any, other: Any, known: dict[tuple[int, int], bool] | None = None) -> bool:
    leaves, others = pytree.tree_leaves(one), pytree.tree_leaves(other)
    return len(leaves) == len(others) and all(
        _same_leaf(leaf, counterpart, {} if known is None else known)
        for leaf, counterpart in zip(leaves, others, strict=True)
    )


def _same_leaf(one: Any, other: Any, known: dict[tuple[int, int], bool]) -> bool:
    if not isinstance(one, Tensor) or not isinstance(other, Tensor):
        # Objects without values to compare, such as caches, do not differ.
        return type(one) is type(other) and (one == other or not isinstance(one, (bool, int, float, str)))
    place = (id(one), id(other))
    if place not in known:
        known[place] = one.shape == other.shape and bool(torch.equal(one, other))
    return known[place]


def _same_states(states: Tensor, returned: Tensor) -> bool:
    """Whether two tensors are equal, NaN included: a broken model is reported by later checks."""
    return states.shape == returned.shape and bool(
        torch.isclose(states, returned, rtol=0, atol=0, equal_nan=True).all()
    )


def _is_empty_mapping(value: Any) -> bool:
    return isinstance(value, MutableMapping) and not value


@contextmanager
def replaced_forward(
    modules: Any, replacement: Callable[[int, inspect.Signature], Callable[..., Any]]
) -> Iterator[None]:
    for index, module in enumerate(modules):
        # Replacing forward, not the module: models read attributes of their layers.
        module.forward = replacement(index, inspect.signature(module.forward))
    try:
        yield
    finally:
        for module in modules:
            del module.forward


def _split(signature: inspect.Signature, args: Any, kwargs: Any) -> tuple[Tensor, dict[str, Any]]:
    """The hidden states (the first argument) and the others by name, the cache switched off."""
    bound = signature.bind(*args, **kwargs)
    others = dict(bound.arguments)
    for name, parameter in signature.parameters.items():
        if parameter.kind is parameter.VAR_KEYWORD:
            others.update(others.pop(name, {}))
    states = others.pop(next(iter(signature.parameters)))
    for name in _CACHES:
        others.pop(name, None)
    return states, others
