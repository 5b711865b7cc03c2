"""Losses from Gram matrices against the sums over tokens that they stand for, and AutoAWQ's own clip search."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import Tensor

from bot.quantize.autoawq import LayerwiseQuantizer
from bot.quantize.search import diagonal_grams, gram, grouped_energy, relative_error

with warnings.catch_warnings(record=True):
    from awq.quantize.quantizer import AwqQuantizer

CPU = torch.device("cpu")


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_relative_error_is_that_of_the_outputs() -> None:
    inputs, weight = numbers(3, 50, 24) * torch.linspace(0.1, 9, 24), numbers(16, 24, seed=1)
    other = weight + 0.01 * numbers(16, 24, seed=2)

    error = relative_error(weight, other, gram(inputs, device=CPU))

    before, after = inputs.double() @ weight.double().t(), inputs.double() @ other.double().t()
    assert error == pytest.approx(float(((before - after) ** 2).sum() / (before**2).sum()), rel=1e-4)


def test_gram_does_not_depend_on_how_tokens_are_cut() -> None:
    inputs = numbers(2, 9000, 8)
    expected = inputs.view(-1, 8).double().t() @ inputs.view(-1, 8).double()
    assert torch.allclose(gram(inputs.half().float(), device=CPU).double(), expected, rtol=1e-3, atol=5)


def test_nothing_to_lose_is_no_error() -> None:
    assert relative_error(torch.zeros(4, 4), torch.ones(4, 4), torch.zeros(4, 4)) == 0


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
