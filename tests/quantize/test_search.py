"""Losses from Gram matrices against the sums over tokens that they stand for, and AutoAWQ's own clip search."""

import pytest
import torch
from torch import Tensor, nn

from bot.checkpoint.rounding import nearest_steps, whole_range
from bot.errors import QuantizationError
from bot.quantize.autoawq import LayerwiseQuantizer
from bot.quantize.rounding import compensated, conditional_variances
from bot.quantize.search import (
    Reading,
    SharedHeads,
    best_levels,
    best_scaling,
    collect_input_stats,
    diagonal_blocks,
    diagonal_grams,
    expected_error,
    gram,
    grouped_energy,
    output_energy,
    relative_errors,
)
from tests.support.stock_awq import AwqQuantizer
from tests.support.tiny_models import rounded

CPU = torch.device("cpu")


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_relative_error_is_that_of_the_outputs() -> None:
    inputs, weight = numbers(3, 50, 24) * torch.linspace(0.1, 9, 24), numbers(16, 24, seed=1)
    other = weight + 0.01 * numbers(16, 24, seed=2)

    [error] = relative_errors(weight, [other], gram(inputs, device=CPU))

    before, after = inputs.double() @ weight.double().t(), inputs.double() @ other.double().t()
    assert error == pytest.approx(float(((before - after) ** 2).sum() / (before**2).sum()), rel=1e-4)
    assert relative_errors(torch.zeros(4, 4), [torch.ones(4, 4)], torch.zeros(4, 4)) == [0]


def test_gram_does_not_depend_on_how_tokens_and_channels_are_cut() -> None:
    inputs = numbers(2, 9000, 300)
    expected = inputs.view(-1, 300).double().t() @ inputs.view(-1, 300).double()
    assert torch.allclose(gram(inputs, device=CPU).double(), expected, rtol=1e-3, atol=0.1)


def test_grouped_energy_is_the_mean_square_of_each_groups_share() -> None:
    inputs, weight = numbers(40, 12), numbers(5, 3, 4, seed=1)
    energy = grouped_energy(weight, diagonal_grams(inputs, group_size=4, device=CPU))
    shares = torch.einsum("tgi,ogi->tog", inputs.view(40, 3, 4), weight)
    assert torch.allclose(energy, (shares**2).mean(dim=0), rtol=1e-4)


def quantizer(group_size: int) -> LayerwiseQuantizer:
    made = LayerwiseQuantizer.__new__(LayerwiseQuantizer)
    made.group_size, made.w_bit, made.zero_point = group_size, 4, True
    return made


def test_clip_search_finds_what_autoawq_finds() -> None:
    """Stock compares outputs token by token; of two limits that are as good as equal it may take the other one."""
    weight = numbers(64, 256) * (1 + 5 * (numbers(64, 256, seed=1) > 2.5))
    inputs = numbers(4, 300, 256, seed=2) * torch.linspace(0.1, 3, 256)
    ours = quantizer(64)._compute_best_clip(weight, inputs)
    stock = AwqQuantizer._compute_best_clip(quantizer(64), weight, inputs)
    assert ours.shape == stock.shape
    assert (ours != stock).float().mean() < 0.01
    assert (ours < weight.abs().view(64, 4, 64).amax(-1, keepdim=True)).float().mean() > 0.5


def test_clip_search_takes_any_number_of_output_channels() -> None:
    weight, inputs = numbers(80, 128), numbers(2, 64, 128, seed=1)
    with pytest.raises(AssertionError):
        AwqQuantizer._compute_best_clip(quantizer(64), weight, inputs)
    limits = quantizer(64)._compute_best_clip(weight, inputs)
    assert torch.equal(limits[:64], quantizer(64)._compute_best_clip(weight[:64], inputs))


def lost_outputs(weight: Tensor, other: Tensor, inputs: Tensor) -> float:
    """||W X - W' X||^2, token by token in float64."""
    tokens = inputs.flatten(0, -2).double()
    return float((tokens @ (weight - other).double().t()).square().sum())


def plainly_rounded(weight: Tensor, by: Tensor, group_size: int) -> Tensor:
    return rounded((weight * by).float(), group_size) / by


def outliers(*shape: int, seed: int = 0) -> Tensor:
    channels = torch.exp(1.5 * numbers(shape[-1], seed=seed + 100))
    return numbers(*shape, seed=seed) * channels


def test_diagonal_blocks_are_those_of_the_tokens() -> None:
    inputs = numbers(50, 12)
    blocks = diagonal_blocks(gram(inputs, device=CPU) / 50, group_size=4)
    assert torch.allclose(blocks, diagonal_grams(inputs, group_size=4, device=CPU), atol=1e-5)


def test_best_scaling_is_that_of_autoawqs_grid_with_the_least_expected_error() -> None:
    """The grid and its errors written down again; two linears of very different size."""
    inputs = outliers(3, 60, 64)
    weights = [numbers(16, 64, seed=1), 50 * numbers(8, 64, seed=2)]
    mean = inputs.abs().mean(dim=(0, 1))
    inputs_gram = gram(inputs, device=CPU)

    found = best_scaling([Reading(weights, lambda: inputs_gram)], mean, group_size=32)
    assert found is not None

    left = explained_by_none(inputs_gram)
    groups = torch.cat(weights).view(-1, 32).abs()
    w_mean = (groups / (groups.amax(dim=1, keepdim=True) + 1e-6)).view(-1, 64).mean(dim=0)
    expected = {}
    for step in range(20):
        by = (mean ** (step / 20) / (w_mean ** (1 - step / 20) + 1e-4)).clamp(min=1e-4)
        by = by / (by.max() * by.min()).sqrt()
        expected[step / 20] = 0.0
        for weight in weights:
            spans = (weight * by).view(-1, 2, 32)
            step_sizes = (spans.amax(dim=-1) - spans.amin(dim=-1)) / 15
            variances = (step_sizes**2 / 12).repeat_interleave(32, dim=1)
            lost = float((variances * left / by**2).sum())
            expected[step / 20] += lost / lost_outputs(weight, torch.zeros_like(weight), inputs)
        if step / 20 == found.ratio:
            assert torch.allclose(found.factors, by, rtol=1e-4)
    assert expected[found.ratio] <= 1.001 * min(expected.values())
    assert min(expected.values()) < 0.7 * max(expected.values())


def explained_by_none(inputs_gram: Tensor) -> Tensor:
    """The variance of each channel that those with smaller inputs do not explain, by solving for each."""
    damped = inputs_gram + 0.01 * inputs_gram.diagonal().mean() * torch.eye(len(inputs_gram))
    order = inputs_gram.diagonal().argsort(descending=True, stable=True)
    left = torch.empty(len(inputs_gram))
    for place, channel in enumerate(order):
        after = order[place + 1 :]
        known = damped[after, channel]
        left[channel] = damped[channel, channel] - known @ torch.linalg.solve(damped[after][:, after], known)
    return left


def test_the_expected_error_is_about_that_of_compensated_rounding() -> None:
    inputs, weight, by = outliers(400, 64), numbers(64, 64, seed=1), torch.exp(0.5 * numbers(64, seed=2))
    inputs_gram = gram(inputs, device=CPU)
    scaled = (weight * by).view(64, 2, 32)
    levels = whole_range(scaled)
    [steps], _ = compensated([weight * by], [levels], inputs_gram / by / by.unsqueeze(1))
    rounded = (steps.view(64, 2, 32) * levels.scales.unsqueeze(-1)).view(64, 64) / by
    expected = expected_error(weight, by, conditional_variances(inputs_gram), group_size=32)
    assert output_energy(rounded - weight, inputs_gram) == pytest.approx(expected, rel=0.25)


def test_dead_channel_is_not_scaled() -> None:
    inputs, weight = outliers(40, 64), numbers(8, 64, seed=1)
    inputs[:, 5] = 0
    reading = Reading([weight], lambda: gram(inputs, device=CPU))
    found = best_scaling([reading], inputs.abs().mean(dim=0), group_size=32)
    assert found is not None
    assert found.factors[5] == 1
    assert torch.isfinite(found.factors).all()
    unread = Reading([weight], lambda: torch.zeros(64, 64))
    nothing = best_scaling([unread], torch.zeros(64), group_size=32)
    assert nothing is not None
    assert torch.equal(nothing.factors, torch.ones(64))


def test_heads_that_read_the_same_values_are_not_scaled_where_that_would_not_help() -> None:
    """Weights of one size: every scaling widens the range of a group."""
    reading = Reading([numbers(64, 64).sign()], lambda: torch.eye(64))
    mean = torch.exp(numbers(64, seed=1))  # has nothing to do with these tokens
    assert best_scaling([reading], mean, SharedHeads(readers=2, head_dim=8), group_size=32) is None


def test_heads_that_read_the_same_values_are_scaled_together() -> None:
    """As if the weights that read a value were rows of their own: the same factors, found in another way."""
    heads = SharedHeads(readers=3, head_dim=8)
    inputs, weight = outliers(200, 96), numbers(16, 96, seed=1)
    inputs_gram = gram(inputs, device=CPU)
    mean = inputs.abs().mean(dim=0)
    found = best_scaling([Reading([weight], lambda: inputs_gram)], mean, heads, group_size=32)
    assert found is not None
    assert found.factors.shape == (32,)

    def lost(factors: Tensor) -> float:
        spread = torch.cat([factors[start : start + 8] for start in range(0, 32, 8) for _ in range(3)])
        variances = conditional_variances(inputs_gram)
        return expected_error(weight, spread, variances, group_size=32)

    groups = weight.view(-1, 32).abs()
    w_mean = (groups / groups.amax(dim=1, keepdim=True)).view(16, 96).mean(dim=0)
    averages = [
        torch.stack(
            [
                each[24 * head + channel + torch.tensor([0, 8, 16])].mean()
                for head in range(4)
                for channel in range(8)
            ]
        )
        for each in (mean, w_mean)
    ]
    x, w = averages
    grid = [x ** (step / 20) / (w ** (1 - step / 20) + 1e-4) for step in range(20)]
    best = min(grid, key=lambda factors: lost(factors / (factors.max() * factors.min()).sqrt()))
    assert torch.allclose(found.factors, best / (best.max() * best.min()).sqrt(), rtol=1e-3)
    assert lost(found.factors) < lost(torch.ones(32))


def test_inputs_that_are_not_finite_are_an_error() -> None:
    broken = Reading([numbers(8, 32)], lambda: torch.full((32, 32), torch.nan))
    with pytest.raises(QuantizationError, match="no finite scales"):
        best_scaling([broken], torch.ones(32), group_size=32)


def test_best_levels_lose_no_more_than_the_whole_range_or_any_even_shrink() -> None:
    weight = numbers(16, 2, 32) * (1 + 4 * (numbers(16, 2, 32, seed=1) > 2))
    inputs = outliers(80, 64)
    levels = best_levels(weight, diagonal_grams(inputs, group_size=32, device=CPU))

    def lost(scale: Tensor, zero: Tensor) -> Tensor:
        """Mean square over tokens by output and group, from the tokens."""
        q = ((weight / scale).round() + zero).clamp(0, 15)
        difference = (q - zero) * scale - weight
        return torch.einsum("tgi,ogi->tog", inputs.view(80, 2, 32), difference).square().mean(dim=0)

    found = lost(levels.scales.unsqueeze(-1), levels.zeros.unsqueeze(-1))
    low, high = weight.amin(-1, keepdim=True), weight.amax(-1, keepdim=True)
    tried = []
    for step in range(10):
        scale = ((high - low) * (1 - step / 20) / 15).half().float()
        tried.append(lost(scale, (-low * (1 - step / 20) / scale).round().clamp(0, 15)))
    assert (found <= 1.001 * torch.stack(tried).amin(dim=0)).all()
    assert found.sum() < 0.9 * tried[0].sum()


def test_constant_and_empty_groups_have_levels() -> None:
    weight = torch.zeros(8, 2, 32)
    weight[:, 1] = -3
    levels = best_levels(weight, torch.eye(32).repeat(2, 1, 1))
    restored = nearest_steps(weight, levels) * levels.scales.unsqueeze(-1)
    assert torch.allclose(restored, weight, rtol=1e-3)


def test_summed_inputs_are_those_of_the_linears() -> None:
    linears = {"a": nn.Linear(12, 4), "b": nn.Linear(12, 6), "never": nn.Linear(3, 3)}
    inputs = outliers(5, 7, 12)
    with torch.no_grad(), collect_input_stats(linears, (("a", "b"), ("never",))) as found:
        for part in torch.split(inputs, 2):
            linears["a"](part)
    linears["a"](inputs)  # is no longer counted
    tokens = inputs.view(35, 12).double()
    assert set(found) == {"a", "b"}
    assert torch.allclose(found["b"].gram.double(), tokens.t() @ tokens / 35, rtol=1e-4, atol=1e-4)
    assert torch.allclose(found["a"].mean.double(), tokens.abs().mean(dim=0), rtol=1e-4)
    assert torch.equal(found["a"].peak, inputs.view(35, 12).abs().amax(dim=0))

    by = torch.linspace(0.5, 3, 12)
    scaled, wanted = found["a"].scaled(by), tokens / by
    assert torch.allclose(scaled.gram.double(), wanted.t() @ wanted / 35, rtol=1e-4, atol=1e-4)
    assert torch.allclose(scaled.peak.double(), wanted.abs().amax(dim=0), rtol=1e-4)
