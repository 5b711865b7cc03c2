"""What the linears of a layer read, summed up while it runs: no input is kept."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bot.quantize.architectures import Groups
from bot.quantize.search import add_upper_gram, whole


@dataclass(frozen=True, slots=True, kw_only=True)
class Inputs:
    """Over all tokens: gram, H = X^T X / tokens, [in, in]; mean and peak of |x|, [in] each; all float32."""

    gram: Tensor
    mean: Tensor
    peak: Tensor

    def scaled(self, by: Tensor) -> Inputs:
        """As they are once each channel is divided by `by`, [in]."""
        return Inputs(gram=self.gram / by / by.unsqueeze(1), mean=self.mean / by, peak=self.peak / by)


class _Sums:
    """The running sums of one linear's inputs."""

    def __init__(self, channels: int, device: torch.device) -> None:
        self.tokens = 0
        self.upper = torch.zeros(channels, channels, device=device)
        self.absolute = torch.zeros(channels, device=device)
        self.peak = torch.zeros(channels, device=device)

    def add(self, inputs: Tensor) -> None:
        tokens = inputs.detach().reshape(-1, inputs.shape[-1]).float()
        self.tokens += len(tokens)
        add_upper_gram(self.upper, tokens)
        absolute = tokens.abs()
        self.absolute += absolute.sum(dim=0)
        self.peak = torch.maximum(self.peak, absolute.amax(dim=0))

    def done(self) -> Inputs:
        return Inputs(gram=whole(self.upper / self.tokens), mean=self.absolute / self.tokens, peak=self.peak)


@contextmanager
def watched(linears: Mapping[str, nn.Linear], groups: Groups) -> Iterator[dict[str, Inputs]]:
    """While the block runs, sum up what reaches the linears; afterwards the dict holds it by name.

    groups: the linears that share an input, of which only the first is looked at. One that nothing reached is
    left out, with its group.
    """
    sums: dict[str, _Sums] = {}
    handles = []
    for first, *_ in groups:
        linear = linears[first]
        sums[first] = _Sums(linear.in_features, linear.weight.device)
        handles.append(linear.register_forward_hook(lambda _, args, __, into=sums[first]: into.add(args[0])))
    found: dict[str, Inputs] = {}
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()
    for group in groups:
        if sums[group[0]].tokens:
            found |= dict.fromkeys(group, sums.pop(group[0]).done())
