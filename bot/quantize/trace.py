"""Which linears of a decoder layer read the same input, and which channels can be scaled.

Both are found by running the layer once, so no list of architectures is needed. AWQ scales the channels between
two modules: what computes them is divided by factors, what reads them is multiplied, and the layer computes the
same (https://arxiv.org/abs/2306.00978, section 3.2). That it does is proved with random factors before it is used.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from bot.checkpoint.selection import Mixture
from bot.quantize.architectures import mixtures_inside
from bot.quantize.scaling import Group, Names, scale_channels
from bot.quantize.search import SharedHeads

_EQUIVALENT = 1e-3  # relative: float32 rounding stays far below, a wrong scaling is far above
# Of the tokens: for a few, a router's choice between two equal experts may flip.
_EQUIVALENT_TOKENS = 0.98
_SAME_DIRECTION = 1 - 1e-5  # cosine
_ROWS = 4  # of an input, which are compared with the outputs of norms
_PARTS = (1, 2, 3)  # of a merged linear: gate and up, or q, k and v

# What a layer computes: its hidden states, and with them what it hands on to other layers.
Outputs = Tensor | tuple[Tensor, ...]
Run = Callable[[], Outputs]  # the layer on fixed hidden states
# A mixture, the expert that saw most tokens, and that one's linears by input, by names inside of it.
_Busiest = tuple[Mixture, int, list[Names]]


@dataclass(frozen=True, slots=True, kw_only=True)
class TracedExperts:
    """What all experts of a mixture have in common, by names inside of an expert.

    inputs: the linears, those with the same input together. groups: proved.
    """

    mixture: Mixture
    inputs: tuple[Names, ...]
    groups: tuple[Group, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Trace:
    """inputs: the linears outside of mixtures that were reached, those with the same input together.

    groups: proved. dropped: the readers of channels that cannot be scaled.
    """

    inputs: tuple[Names, ...]
    groups: tuple[Group, ...]
    experts: tuple[TracedExperts, ...]
    dropped: tuple[Names, ...]


@torch.no_grad()
def trace_layer(layer: nn.Module, run: Run, states: Tensor) -> Trace:
    """Trace a layer in float32 and prove its groups. run: the layer on `states`, [1, seq_len, hidden]."""
    seen = _record(layer, run)
    mixtures = mixtures_inside(layer)
    dense = _by_input(seen, [name for name in seen.linears if not any(each.holds(name) for each in mixtures)])
    experts = [(mixture, *_busiest(mixture, seen)) for mixture in mixtures]
    groups = _prove(layer, run, states, _choices(layer, seen, dense, experts))
    scalable = {name for group in groups for name in group.readers}
    everything = [
        *dense,
        *((mixture.name(expert, names[0]),) for mixture, expert, each in experts for names in each),
    ]
    return Trace(
        inputs=tuple(dense),
        groups=tuple(group for group in groups if not any(each.holds(group.producer) for each in mixtures)),
        experts=tuple(
            TracedExperts(
                mixture=mixture,
                inputs=tuple(inputs),
                groups=tuple(
                    _renamed(group, mixture.inside)
                    for group in groups
                    if mixture.expert_of(group.producer) == expert
                ),
            )
            for mixture, expert, inputs in experts
        ),
        dropped=tuple(readers for readers in everything if not scalable.issuperset(readers)),
    )


def _choices(
    layer: nn.Module, seen: _Seen, dense: list[Names], experts: list[_Busiest]
) -> list[list[list[Group]]]:
    """For each input that may be scaled the alternatives; those of an alternative are scaled together."""
    norms = list(_norm_groups(layer, seen, dense, experts))
    scaled = {name for group in norms for name in group.readers}
    choices = [[[group], [replace(group, offset=1.0)]] for group in norms]
    for readers in dense:
        if not scaled.intersection(readers):
            choices.append([[group] for group in _groups_beside(layer, seen, readers)])
    for mixture, expert, inputs in experts:
        for inside in inputs:
            readers = tuple(mixture.name(expert, name) for name in inside)
            if not scaled.intersection(readers):
                found = _groups_beside(layer, seen, readers)
                choices.append([_for_all_experts(mixture, group) for group in found])
    return [choice for choice in choices if choice]


@torch.no_grad()
def still_holds(trace: Trace, layer: nn.Module, run: Run, states: Tensor) -> bool:
    """Whether the groups of a trace are also right for another layer, which is with the same structure."""
    inside = [
        _renamed(group, partial(each.mixture.name, expert))
        for each in trace.experts
        for group in each.groups
        for expert in range(each.mixture.experts)
    ]
    return _holds(layer, run, run(), states, [*trace.groups, *inside])


@dataclass(slots=True)
class _Seen:
    """What one run showed, by module. order: when it first ran. rows: some of its input; inputs: tells them apart.

    outputs: of norms, [tokens, channels], every row of length 1, as are the rows.
    """

    order: dict[str, int] = field(default_factory=dict)
    linears: list[str] = field(default_factory=list)
    rows: dict[str, Tensor] = field(default_factory=dict)
    inputs: dict[str, object] = field(default_factory=dict)
    tokens: dict[str, int] = field(default_factory=dict)
    outputs: dict[str, Tensor] = field(default_factory=dict)


def _record(layer: nn.Module, run: Run) -> _Seen:
    seen, handles = _Seen(), []

    def record(name: str, module: nn.Module, args: Any, output: Any) -> None:
        seen.order.setdefault(name, len(seen.order))
        if is_norm(module):
            if isinstance(output, Tensor):
                seen.outputs[name] = _directions(output)
            return
        if not args or name in seen.rows:
            return
        flat = args[0].reshape(-1, args[0].shape[-1])
        rows = flat[flat.any(dim=-1)]
        if isinstance(module, nn.Linear):
            seen.linears.append(name)
        seen.rows[name] = _directions(rows[:_ROWS])
        seen.inputs[name] = (tuple(args[0].shape), rows[:_ROWS].numpy(force=True).tobytes(), float(rows.sum()))
        seen.tokens[name] = len(rows)

    for name, module in layer.named_modules():
        if is_norm(module) or _weight_of(module) is not None:
            handles.append(module.register_forward_hook(partial(record, name)))
    try:
        run()
    finally:
        for handle in handles:
            handle.remove()
    return seen


def is_norm(module: nn.Module) -> bool:
    weight = getattr(module, "weight", None)
    return isinstance(weight, nn.Parameter) and weight.dim() == 1


def _weight_of(module: nn.Module) -> nn.Parameter | None:
    """The weight [out, in] of a linear, or of a router that is none."""
    weight = getattr(module, "weight", None)
    return weight if isinstance(weight, nn.Parameter) and weight.dim() == 2 else None


def _directions(values: Tensor) -> Tensor:
    rows: Tensor = values.detach().reshape(-1, values.shape[-1]).float()
    length: Tensor = rows.norm(dim=-1, keepdim=True)
    return rows / length.clamp(min=1e-20)


def _by_input(seen: _Seen, linears: Iterable[str]) -> list[Names]:
    """The linears in the order in which they ran, those with the same input together."""
    together: dict[object, list[str]] = {}
    for name in linears:
        together.setdefault(seen.inputs[name], []).append(name)
    return [tuple(names) for names in together.values()]


def _busiest(mixture: Mixture, seen: _Seen) -> tuple[int, list[Names]]:
    """The expert that saw most tokens, and its linears by input, by names inside of it."""
    tokens = [0] * mixture.experts
    for name in seen.linears:
        expert = mixture.expert_of(name)
        if expert is not None:
            tokens[expert] = max(tokens[expert], seen.tokens[name])
    expert = tokens.index(max(tokens))
    inside = [name for name in seen.linears if mixture.expert_of(name) == expert]
    return expert, [tuple(map(mixture.inside, names)) for names in _by_input(seen, inside)]


def _norm_groups(layer: nn.Module, seen: _Seen, dense: list[Names], experts: list[_Busiest]) -> Iterator[Group]:
    """For each norm everything that reads its output: linears, routers, and the linears of all experts."""
    readers: dict[str, list[str]] = {}
    for name, rows in seen.rows.items():
        if layer.get_parameter(f"{name}.weight").shape[1] != rows.shape[-1]:
            continue  # a convolution, which cannot be scaled
        mixture, expert, _ = next((each for each in experts if each[0].holds(name)), (None, None, None))
        if mixture is not None and mixture.expert_of(name) != expert:
            continue  # what it reads, all experts read
        if (producer := _norm_before(layer, seen, name)) is not None:
            names = (
                [name]
                if mixture is None
                else [mixture.name(each, mixture.inside(name)) for each in range(mixture.experts)]
            )
            readers.setdefault(producer, []).extend(names)
    linears = {name for names in dense for name in names}
    for producer, names in readers.items():
        if any(name in linears or any(each[0].holds(name) for each in experts) for name in names):
            yield Group(producer=producer, readers=tuple(names))


def _norm_before(layer: nn.Module, seen: _Seen, name: str) -> str | None:
    """The last norm before a module whose outputs its inputs are, whole or some of the tokens, maybe weighted."""
    rows = seen.rows[name]
    for norm, outputs in reversed(seen.outputs.items()):
        if seen.order[norm] > seen.order[name] or outputs.shape[-1] != rows.shape[-1] or not len(rows):
            continue
        if bool(((rows @ outputs.t()).abs().amax(dim=-1) > _SAME_DIRECTION).all()):
            return norm
    return None


def _groups_beside(layer: nn.Module, seen: _Seen, readers: Names) -> Iterator[Group]:
    """Linears of the same module that ran before and may compute the channels, the last one first; then norms."""
    parent, channels = readers[0].rpartition(".")[0], seen.rows[readers[0]].shape[-1]
    beside = [name for name in seen.linears if name.rpartition(".")[0] == parent and name not in readers]
    before = [name for name in beside if seen.order[name] < seen.order[readers[0]]]
    head_dim = _head_dim(layer.get_submodule(parent))
    for producer in reversed(before):
        out = len(layer.get_parameter(f"{producer}.weight"))
        if out in {part * channels for part in _PARTS}:
            yield Group(producer=producer, readers=readers)
            if out != channels:
                yield Group(producer=producer, readers=readers, first_rows=True)
        if head_dim:
            yield from _value_groups(Group(producer=producer, readers=readers), out, channels, head_dim)
    for norm, outputs in seen.outputs.items():  # of each head, with one weight for all: gated linear attention
        size, is_before = outputs.shape[-1], seen.order[norm] < seen.order[readers[0]]
        if norm.rpartition(".")[0] == parent and is_before and size < channels and channels % size == 0:
            heads = SharedHeads(readers=channels // size, head_dim=size)
            yield Group(producer=norm, readers=readers, heads=heads)
            yield Group(producer=norm, readers=readers, heads=heads, offset=1.0)


def _value_groups(group: Group, out: int, channels: int, head_dim: int) -> Iterator[Group]:
    """Where the values of attention may be among the outputs of a linear that also computes queries and keys.

    They are the last ones, or each head has its own after its queries and keys. Several heads may read them.
    """
    for values in dict.fromkeys((out, (out - channels) // 2, channels)):
        if not 0 < values <= min(out, channels) or channels % values or values % head_dim:
            continue
        found, blocks = group, values // head_dim
        if values < channels:
            found = replace(group, heads=SharedHeads(readers=channels // values, head_dim=head_dim))
            yield found
        if values < out and out % blocks == 0 and blocks > 1:
            yield replace(found, blocks=blocks)


def _head_dim(attention: nn.Module) -> int:
    """Of values, as modules of transformers say it; 0 if this one says nothing."""
    named = (getattr(attention, name, None) for name in ("v_head_dim", "head_dim", "head_size"))
    return next((value for value in named if isinstance(value, int) and value > 0), 0)


def _for_all_experts(mixture: Mixture, group: Group) -> list[Group]:
    """group: of one of them."""
    inside = _renamed(group, mixture.inside)
    return [_renamed(inside, partial(mixture.name, each)) for each in range(mixture.experts)]


def _renamed(group: Group, rename: Callable[[str], str]) -> Group:
    return replace(group, producer=rename(group.producer), readers=tuple(map(rename, group.readers)))


def _prove(layer: nn.Module, run: Run, states: Tensor, choices: list[list[list[Group]]]) -> list[Group]:
    """Of each choice the first alternative, groups scaled together, that leaves the layer's outputs as they are.

    Factors are powers of two, so scaling is exact and can be undone.
    """
    holds = partial(_holds, layer, run, run(), states)
    first = [group for choice in choices for group in choice[0]]
    if holds(first):
        return first
    chosen = [next((groups for groups in choice if holds(groups)), []) for choice in choices]
    together = [group for groups in chosen for group in groups]
    return together if holds(together) else []


def _holds(layer: nn.Module, run: Run, expected: Outputs, states: Tensor, groups: Sequence[Group]) -> bool:
    with _scaled(layer, groups):
        return equivalent(run(), expected, states)


@contextmanager
def _scaled(layer: nn.Module, groups: Iterable[Group]) -> Iterator[None]:
    undo, random = [], torch.Generator().manual_seed(0)
    for group in groups:
        channels = layer.get_parameter(f"{group.readers[0]}.weight").shape[1] // group.heads.readers
        factors = torch.exp2(torch.randint(-2, 3, (channels,), generator=random).float())
        kept = {key: value.detach().clone() for key, value in _norm_tensors(layer, group)}
        undo.append((group, factors, kept))
        scale_channels(layer, group, factors)
    try:
        yield
    finally:
        for group, factors, kept in reversed(undo):
            scale_channels(layer, group, 1 / factors)
            for key, value in _norm_tensors(layer, group):
                value.copy_(kept[key])


def _norm_tensors(layer: nn.Module, group: Group) -> Iterator[tuple[str, nn.Parameter]]:
    """The producer's tensors that scaling back does not restore exactly: those with an offset."""
    if group.offset:
        yield from layer.get_submodule(group.producer).named_parameters(recurse=False)


def equivalent(got: Outputs, expected: Outputs, states: Tensor) -> bool:
    """Whether two outputs of a layer on the same states are the same but for rounding."""
    (got, *handed_on), (expected, *wanted) = map(_as_tuple, (got, expected))
    if not all(map(_is_close, handed_on, wanted)):
        return False
    # Compared by what the layer adds to its input: the input itself may be far larger.
    added = (expected - states.to(expected.device)).flatten(0, -2).norm(dim=-1)
    error = (got - expected).flatten(0, -2).norm(dim=-1)
    return float((error <= _EQUIVALENT * added).float().mean()) >= _EQUIVALENT_TOKENS


def _as_tuple(outputs: Outputs) -> tuple[Tensor, ...]:
    return (outputs,) if isinstance(outputs, Tensor) else outputs


def _is_close(got: Tensor, expected: Tensor) -> bool:
    if not expected.is_floating_point():  # such as the indices of the largest scores
        return float((got == expected).float().mean()) >= _EQUIVALENT_TOKENS
    return not float((got - expected).norm()) > _EQUIVALENT * float(expected.norm())
