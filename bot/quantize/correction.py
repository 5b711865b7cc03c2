"""Weights that are corrected for the errors of what was quantized before them.

In the quantized model a linear reads inputs Y, where the source's reads X. Rounding W so that it stays close to W
on X would keep the errors of the layers before. So the weights that are rounded are those W' with the
smallest ||T - W' Y||^2, where T is what the source computes in that place, as in GPTAQ
(https://arxiv.org/abs/2504.02692). For a linear whose outputs are added to the residual stream, T is what the
stream lacks. A ridge keeps W' close to W where the text says little.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from math import isfinite
from typing import Any

import torch
from torch import Tensor, nn

from bot.checkpoint.constants import CORRECTED_TOKENS
from bot.quantize.paused import Paused
from bot.quantize.search import add_upper_gram, symmetrize
from bot.quantize.trace import Outputs, is_norm

_SAME = 1e-4  # relative: float32 rounding stays far below
# Added to the Gram matrix's diagonal, relative to its mean: a constant, and a multiple of channels / tokens, as a
# correction that is fitted to few tokens is mostly noise. Measured in tests/benchmarks/README.md.
RIDGE = 0.01
RIDGE_FOR_FEW = 4.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Writer:
    """A linear whose outputs are added to the residual stream, which the layer reads and returns.

    before, after: the norm that reads the stream without them, and the one that reads it with them. None stands
    for the layer's own input, and output.
    """

    linear: str
    before: str | None
    after: str | None


@torch.no_grad()
def find_writers(
    layer: nn.Module, run: Callable[[], Outputs], states: Tensor, linears: Sequence[str]
) -> dict[str, Writer]:
    """By linear. run: the layer, in float32, on the states [1, seq_len, hidden]."""
    written: dict[str, Tensor] = {}
    stream: dict[str, Tensor] = {}

    def keep_input(name: str, module: nn.Module, args: Any) -> None:
        if args and isinstance(args[0], Tensor) and args[0].shape == states.shape:
            stream.setdefault(name, args[0].clone())

    def keep_output(name: str, module: nn.Module, args: Any, output: Any) -> None:
        if output.shape == states.shape:
            written.setdefault(name, output.clone())

    modules = dict(layer.named_modules())
    handles = [modules[name].register_forward_hook(partial(keep_output, name)) for name in linears]
    handles += [
        module.register_forward_pre_hook(partial(keep_input, name))
        for name, module in modules.items()
        if is_norm(module)
    ]
    try:
        output = run()
    finally:
        for handle in handles:
            handle.remove()
    returned = output if isinstance(output, Tensor) else output[0]
    found = {}
    for linear, added in written.items():
        places = [
            Writer(linear=linear, before=before, after=after)
            for before, base in ((None, states), *stream.items())
            for after, total in (*stream.items(), (None, returned))
            if before != after or before is None
            if _is_sum(base, added, total)
        ]
        if places:
            found[linear] = places[0]
    return found


def _is_sum(base: Tensor, added: Tensor, total: Tensor) -> bool:
    # Compared by what is added: the stream itself may be far larger.
    return float((total - base - added).norm()) <= _SAME * float(added.norm()) > 0


@dataclass(slots=True)
class SourceStates:
    """What the source's layer computes for the first CORRECTED_TOKENS tokens, [tokens, channels] each.

    inputs: of linears; stream: of norms that read the residual stream.
    """

    inputs: dict[str, Tensor] = field(default_factory=dict)
    stream: dict[str | None, Tensor] = field(default_factory=dict)


@contextmanager
def keep_source(layer: nn.Module, linears: Sequence[str], writers: Mapping[str, Writer]) -> Iterator[SourceStates]:
    """Keep what the correction needs inside the `with` block; afterwards the states hold it.

    linears: the first of those that share an input.
    """
    parts: dict[str, list[Tensor]] = {}
    kept: dict[str, int] = {}

    def keep(name: str, module: nn.Module, args: Any) -> None:
        tokens = args[0].detach().reshape(-1, args[0].shape[-1])
        missing = CORRECTED_TOKENS - kept.get(name, 0)
        if missing > 0:
            parts.setdefault(name, []).append(tokens[:missing])
            kept[name] = kept.get(name, 0) + len(tokens)

    norms = {writer.after for writer in writers.values() if writer.after is not None}
    inputs = [name for name in linears if name not in writers]
    handles = [
        layer.get_submodule(name).register_forward_pre_hook(partial(keep, name)) for name in (*inputs, *norms)
    ]
    states = SourceStates()
    try:
        yield states
    finally:
        for handle in handles:
            handle.remove()
    states.inputs = {name: _joined(parts.pop(name)) for name in inputs if name in parts}
    states.stream |= {name: _joined(parts.pop(name)) for name in norms if name in parts}


def _joined(parts: Sequence[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(list(parts))


@torch.no_grad()
def correct(
    linears: Mapping[str, nn.Linear],
    weights: Mapping[str, Tensor],
    runs: Iterable[Paused],
    source: SourceStates,
    *,
    writer: Writer | None,
    factors: Tensor | None,
) -> tuple[dict[str, Tensor], Tensor]:
    """The weights to round of linears that share their inputs, and the Gram matrix of these inputs, [in, in].

    weights: the source's, float32 [out, in], scaled; factors: by which the inputs are divided, [in].
    """
    first, weight = next(iter(weights.items()))
    (out, columns), device = weight.shape, weight.device
    upper = torch.zeros(columns, columns, device=device)
    cross = torch.zeros(out if writer else columns, columns, device=device)
    computed = source.stream[writer.after] if writer else source.inputs.pop(first)
    factors = None if factors is None else factors.to(device)
    count = 0
    for inputs, stream in runs:
        tokens = inputs.float()
        wanted = computed[count : count + len(tokens)].to(device).float()
        if writer:
            wanted = wanted - stream[writer.before].reshape(len(tokens), -1).to(device).float()
            if (bias := linears[first].bias) is not None:
                wanted = wanted - bias.float()
        else:
            wanted = (wanted if factors is None else wanted / factors) - tokens
        add_upper_gram(upper, tokens)
        cross.addmm_(wanted.t(), tokens)
        count += len(tokens)
        del inputs, tokens, wanted  # a Gram matrix may be large
    gram = symmetrize(upper.div_(count))
    del upper
    joined = torch.cat(list(weights.values()))
    missing = cross.div_(count) - joined @ gram if writer else joined @ cross.div_(count)
    del cross
    corrected = joined.add_(_solved(missing, gram, tokens=count))
    rows = [len(each) for each in weights.values()]
    return dict(zip(weights, torch.split(corrected, rows), strict=True)), gram


def _solved(missing: Tensor, gram: Tensor, *, tokens: int) -> Tensor:
    """missing (gram + ridge)^-1, or zero if that cannot be computed."""
    damped = gram.clone()
    # A channel that is always zero is correlated with no other; any positive number will do.
    ridge = (RIDGE + RIDGE_FOR_FEW * len(gram) / tokens) * gram.diagonal().mean()
    damped.diagonal().add_(ridge + (gram.diagonal() <= 0).to(gram.dtype))
    lower, failed = torch.linalg.cholesky_ex(damped)
    del damped
    solved = torch.cholesky_solve(missing.t(), lower).t()
    if bool(failed) or not isfinite(float(solved.sum())):
        return torch.zeros_like(missing)
    return solved
