"""Search for scales and ranges on Gram matrices of the inputs, and the error of a quantized linear.

||W X - W' X||^2 = tr((W - W') H (W - W')^T) with H = X^T X, so the tokens are multiplied out once and not at every
step of the grid, and no inputs are kept. The grids are those of AutoAWQ (https://arxiv.org/abs/2306.00978):
https://github.com/casper-hansen/AutoAWQ/blob/v0.2.9/awq/quantize/quantizer.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from bot.checkpoint.rounding import MAX_INT4, Levels, levels_between, nearest_steps
from bot.errors import QuantizationError
from bot.quantize.rounding import conditional_variances

RATIOS = tuple(step / 20 for step in range(20))  # AutoAWQ's grid
SHRINKS = tuple(1 - step / 20 for step in range(10))  # AutoAWQ's grid: down to 0.55 of a group's range
_TOKENS = 8192  # tokens of the inputs that are held in float32 at a time
_COUNTED = 1024  # tokens whose absolute values are in memory at a time: so few stay in a CPU's cache
_COLUMNS = 256  # of a Gram matrix that are computed at a time
# Tokens whose Gram matrix chooses scales, where ranges and integers have a matrix of their own.
_SEARCHED_TOKENS, _SEARCHED_TOKENS_BY_CHANNEL = 8192, 4
_SEARCHED_OUTPUTS = 512  # of a linear, evenly spaced, whose errors choose its scales


@dataclass(frozen=True, slots=True, kw_only=True)
class SharedHeads:
    """`readers` heads read the same head_dim channels: values under grouped-query attention, or a norm's weight.

    What is read is, for each head that is computed, its channels as often as it has readers.
    """

    readers: int
    head_dim: int

    def repeat(self, values: Tensor) -> Tensor:
        """[channels] of the values, for each channel that is read: [in]."""
        return values.view(-1, self.head_dim).repeat_interleave(self.readers, dim=0).flatten()

    def mean(self, values: Tensor) -> Tensor:
        """[in], one for each channel that is read: the means by channel of the values, [channels]."""
        return values.view(-1, self.readers, self.head_dim).mean(dim=1).flatten()


NOT_SHARED = SharedHeads(readers=1, head_dim=1)


class Scaling(NamedTuple):
    """factors: for the channels, [channels]. ratio: AWQ's alpha, the weight of the activations."""

    factors: Tensor
    ratio: float


def gram(inputs: Tensor, *, device: torch.device) -> Tensor:
    """H = X^T X over all tokens: float32 [in, in] on device, from inputs [..., in]."""
    flat = inputs.reshape(-1, inputs.shape[-1])
    total = torch.zeros(flat.shape[1], flat.shape[1], dtype=torch.float32, device=device)
    for chunk in torch.split(flat, _TOKENS):
        add_upper_gram(total, chunk.to(device=device, dtype=torch.float32))
    return symmetrize(total)


def add_upper_gram(total: Tensor, tokens: Tensor) -> None:
    """Add X^T X of tokens [tokens, in] to total [in, in], on and above the diagonal: it is symmetric."""
    for start in range(0, tokens.shape[1], _COLUMNS):
        stop = start + _COLUMNS
        total[start:stop, start:].addmm_(tokens[:, start:stop].t(), tokens[:, start:])


def symmetrize(upper: Tensor) -> Tensor:
    """The symmetric matrix [in, in] whose upper triangle add_upper_gram computed."""
    return upper.triu() + upper.triu(1).t()


def output_energy(weight: Tensor, inputs_gram: Tensor) -> float:
    """||W X||^2 = tr(W H W^T) for weight [out, in] and the Gram matrix H of the inputs."""
    return float(((weight @ inputs_gram) * weight).sum(dtype=torch.float64).clamp(min=0))


def relative_errors(weight: Tensor, dequantized: Iterable[Tensor], inputs_gram: Tensor) -> list[float]:
    """||W X - W' X||^2 / ||W X||^2 for a weight [out, in] and each W' in its place; 0 if W X is zero."""
    energy = output_energy(weight, inputs_gram)
    return [output_energy(weight - each, inputs_gram) / energy if energy else 0.0 for each in dequantized]


def diagonal_grams(inputs: Tensor, *, group_size: int, device: torch.device) -> Tensor:
    """The blocks of X^T X / tokens on its diagonal: float32 [in/g, g, g], from inputs [tokens, in]."""
    groups = inputs.to(device=device, dtype=torch.float32).view(len(inputs), -1, group_size).transpose(0, 1)
    return groups.transpose(1, 2) @ groups / len(inputs)


def diagonal_blocks(inputs_gram: Tensor, *, group_size: int) -> Tensor:
    """The same blocks of a complete Gram matrix: [in/g, g, g]."""
    groups = len(inputs_gram) // group_size
    blocks = inputs_gram.view(groups, group_size, groups, group_size).diagonal(dim1=0, dim2=2)
    return blocks.permute(2, 0, 1).contiguous()


def grouped_energy(weight: Tensor, grams: Tensor) -> Tensor:
    """Mean square over tokens of what each group of channels adds to each output: [out, in/g].

    weight: [out, in/g, g]; grams: as from diagonal_grams.
    """
    by_group = weight.transpose(0, 1)
    return ((by_group @ grams) * by_group).sum(dim=-1).t()


class Reading(NamedTuple):
    """Linears that read the same input. weights: [out, in] each; gram: computes the H of their inputs, [in, in].

    share: of the tokens, those that they see.
    """

    weights: Sequence[Tensor]
    gram: Callable[[], Tensor]
    share: float = 1.0


def best_scaling(
    readings: Sequence[Reading], inputs_mean: Tensor, heads: SharedHeads = NOT_SHARED, *, group_size: int
) -> Scaling | None:
    """The scaling of AWQ's grid with the smallest expected output error of everything that reads these channels.

    inputs_mean: mean absolute value of what they read, [in]; heads: which of it shares a factor. Each linear's
    error is relative to its outputs, so that large ones do not outweigh small ones, and counts by its share of the
    tokens. One Gram matrix exists at a time. None if heads share factors, and no scaling is expected to do better
    than none. Raises QuantizationError when no error is finite.
    """
    weights_mean = _weights_mean([weight for reading in readings for weight in reading.weights], group_size)
    scalings: list[Scaling | None] = [*_scalings(heads.mean(weights_mean), heads.mean(inputs_mean))]
    if heads != NOT_SHARED:  # what suits one head may not suit the others
        scalings.insert(0, None)
    factors = [torch.ones_like(inputs_mean) if each is None else heads.repeat(each.factors) for each in scalings]
    errors = torch.zeros(len(scalings), dtype=torch.float64)
    for reading in readings:
        gram = reading.gram()
        variances = conditional_variances(gram)
        for every in reading.weights:
            weight = every.detach()[:: max(1, len(every) // _SEARCHED_OUTPUTS)].float()
            energy = output_energy(weight, gram) or 1.0
            errors += reading.share * torch.tensor(
                [expected_error(weight, each, variances, group_size=group_size) / energy for each in factors],
                dtype=torch.float64,
            )
    if not bool(torch.isfinite(errors).any()):
        raise QuantizationError("the search found no finite scales")
    return scalings[int(torch.nan_to_num(errors, nan=torch.inf).argmin())]


def expected_error(weight: Tensor, factors: Tensor, variances: Tensor, *, group_size: int) -> float:
    """Of compensated rounding, for a weight [out, in] that is scaled by the factors, [in].

    The weights that are rounded later compensate a rounding error, except for the variance of its channel that
    their channels do not explain. A rounding error has the variance step^2 / 12.
    """
    groups = (weight * factors).view(len(weight), -1, group_size)
    low, high = groups.amin(dim=-1), groups.amax(dim=-1)  # together, torch.aminmax takes far longer on a CPU
    steps = (high.clamp(min=0) - low.clamp(max=0)) / MAX_INT4
    left = (variances / factors.square()).view(-1, group_size).sum(dim=-1)
    return float((steps.square().sum(dim=0) * left).sum(dtype=torch.float64)) / 12


def _weights_mean(weights: Sequence[Tensor], group_size: int) -> Tensor:
    """How large each input channel's weights are within their groups, on average: [in], 0 to 1."""
    total, rows = torch.zeros(weights[0].shape[1], device=weights[0].device), 0
    for weight in weights:
        groups = weight.detach().float().view(-1, group_size).abs()
        total += (groups / (groups.amax(dim=1, keepdim=True) + 1e-6)).view(weight.shape).sum(dim=0)
        rows += len(weight)
    return total / rows


def _scalings(weights_mean: Tensor, inputs_mean: Tensor) -> Iterator[Scaling]:
    """AutoAWQ's grid, from scales by the weights alone to scales by (almost) the inputs alone."""
    nonzero = inputs_mean > 0
    for ratio in RATIOS:
        factors = (inputs_mean.pow(ratio) / (weights_mean.pow(1 - ratio) + 1e-4)).clamp(min=1e-4)
        # Channels that are always zero are not scaled, and do not count.
        if bool(nonzero.any()):
            factors = factors / (factors[nonzero].max() * factors[nonzero].min()).sqrt()
        yield Scaling(torch.where(nonzero, factors, 1.0), ratio)


def best_levels(weight: Tensor, grams: Tensor) -> Levels:
    """The clipped range of each group with the smallest error of rounding to nearest.

    weight: float32 [out, in/g, g]; grams: [in/g, g, g], as from diagonal_blocks. Shrinks both ends together first,
    then each of them alone.
    """
    low, high = weight.amin(dim=-1), weight.amax(dim=-1)
    best = levels_between(low, high)
    lowest = _error(weight, best, grams)
    low_by, high_by = torch.ones_like(low), torch.ones_like(high)
    for ends in ("both", "low", "high"):
        for shrink in SHRINKS[1:] if ends == "both" else SHRINKS:
            shrunk = torch.full_like(low, shrink)
            low_try, high_try = (low_by if ends == "high" else shrunk), (high_by if ends == "low" else shrunk)
            levels = levels_between(low * low_try, high * high_try)
            error = _error(weight, levels, grams)
            better = error < lowest
            lowest = torch.where(better, error, lowest)
            best = Levels(*(torch.where(better, new, old) for new, old in zip(levels, best, strict=True)))
            low_by, high_by = torch.where(better, low_try, low_by), torch.where(better, high_try, high_by)
    return best


def _error(weight: Tensor, levels: Levels, grams: Tensor) -> Tensor:
    """The output error of each group, [out, in/g]."""
    difference = torch.addcmul(weight, nearest_steps(weight, levels), levels.scales.unsqueeze(-1), value=-1)
    return grouped_energy(difference, grams)


@dataclass(frozen=True, slots=True, kw_only=True)
class InputStats:
    """Statistics of all tokens, float32: gram, H = X^T X / tokens, [in, in]; mean and peak of |x|, [in] each."""

    gram: Tensor
    mean: Tensor
    peak: Tensor

    def scaled(self, factors: Tensor) -> InputStats:
        """The statistics of inputs whose channels are divided by the factors, [in]."""
        gram = self.gram / factors / factors.unsqueeze(1)
        return InputStats(gram=gram, mean=self.mean / factors, peak=self.peak / factors)


class _RunningStats:
    """The running statistics of one linear's inputs."""

    def __init__(self, channels: int, device: torch.device, *, every: int) -> None:
        self.tokens = self.tokens_of_gram = 0
        self.every = every
        self.upper = torch.zeros(channels, channels, device=device)
        self.absolute = torch.zeros(channels, device=device)
        self.peak = torch.zeros(channels, device=device)

    def add(self, inputs: Tensor) -> None:
        tokens = inputs.detach().reshape(-1, inputs.shape[-1]).float()
        some = tokens[:: self.every]
        add_upper_gram(self.upper, some)
        self.tokens_of_gram += len(some)
        self.tokens += len(tokens)
        for part in torch.split(tokens, _COUNTED):
            absolute = part.abs()
            self.absolute += absolute.sum(dim=0)
            self.peak = torch.maximum(self.peak, absolute.amax(dim=0))

    def result(self) -> InputStats:
        return InputStats(
            gram=symmetrize(self.upper / self.tokens_of_gram), mean=self.absolute / self.tokens, peak=self.peak
        )


@contextmanager
def collect_input_stats(
    linears: Mapping[str, nn.Linear], groups: Iterable[Sequence[str]], *, total: int | None = None
) -> Iterator[dict[str, InputStats]]:
    """Collect statistics of the linears' inputs inside the `with` block; afterwards the dict holds them by name.

    groups: the linears that share an input, of which only the first is hooked. A group that no input reached is
    left out. total: of the tokens; where it is given, Gram matrices are of evenly spaced ones, as many as choosing
    scales needs.
    """
    running: dict[str, _RunningStats] = {}
    handles = []
    for first, *_ in groups:
        linear = linears[first]
        enough = max(_SEARCHED_TOKENS, _SEARCHED_TOKENS_BY_CHANNEL * linear.in_features)
        every = max(1, total // enough) if total else 1
        running[first] = _RunningStats(linear.in_features, linear.weight.device, every=every)
        handles.append(linear.register_forward_hook(lambda _, args, __, into=running[first]: into.add(args[0])))
    found: dict[str, InputStats] = {}
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()
    for group in groups:
        if running[group[0]].tokens:
            found |= dict.fromkeys(group, running.pop(group[0]).result())
