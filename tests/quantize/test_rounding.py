from typing import Any
from weakref import WeakValueDictionary

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from bot.checkpoint.rounding import Levels, dequantize, nearest_steps, to_rounded, whole_range
from bot.quantize import rounding
from bot.quantize.rounding import CHANNEL_DAMPING, clipped_share, compensated, gptq_sweep, inverse_factor, refined

OUT, COLUMNS, GROUP = 8, 96, 32
Matrix = NDArray[np.float64]


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def correlated(tokens: int = 400) -> Tensor:
    """Inputs [tokens, COLUMNS] as layers have them: channels that go together, some of them large."""
    mixed = numbers(tokens, COLUMNS) @ (torch.eye(COLUMNS) + 0.3 * numbers(COLUMNS, COLUMNS, seed=1))
    return mixed * torch.exp(numbers(COLUMNS, seed=2))


def levels_of(weight: Tensor) -> Levels:
    """Narrower than the whole range, so that some weights are clipped."""
    levels = whole_range(0.9 * weight.view(len(weight), -1, GROUP))
    return Levels(levels.scales.to(weight.dtype), levels.zeros.to(weight.dtype))


def lost(weight: Tensor, steps: Tensor, levels: Levels, inputs: Tensor) -> Tensor:
    """By output, token by token."""
    restored = steps.double() * levels.scales.double().repeat_interleave(GROUP, dim=1)
    return (inputs.double() @ (weight.double() - restored).t()).square().sum(dim=0)


def nearest(weight: Tensor, levels: Levels) -> Tensor:
    return nearest_steps(weight.view(len(weight), -1, GROUP), levels).view(weight.shape)


def naive_sweep(weight: Matrix, scales: Matrix, zeros: Matrix, gram: Matrix, order: list[int]) -> Matrix:
    """Optimal brain surgery as it is written down: one column at a time, the inverse shrinking by one."""
    weight, inverse, steps = weight.copy(), np.linalg.inv(gram), np.zeros_like(weight)
    for column in order:
        scale, zero = scales[:, column // GROUP], zeros[:, column // GROUP]
        steps[:, column] = np.clip(np.round(weight[:, column] / scale), -zero, 15 - zero)
        error = (weight[:, column] - steps[:, column] * scale) / inverse[column, column]
        weight -= np.outer(error, inverse[column])
        inverse = inverse - np.outer(inverse[:, column], inverse[column]) / inverse[column, column]
    return steps


@pytest.mark.parametrize("block", [1, 7, 32, 128])
def test_blocked_sweep_is_the_naive_one(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rounding, "BLOCK", block)
    weight, inputs = numbers(OUT, COLUMNS), correlated()
    levels, gram = levels_of(weight), inputs.t() @ inputs
    order = torch.randperm(COLUMNS, generator=torch.Generator().manual_seed(0))

    factor, fallback = inverse_factor(gram, order)
    assert factor is not None
    steps = gptq_sweep(weight, levels, factor, order)

    damped = gram.numpy() + 0.01 * float(gram.diagonal().mean()) * np.eye(COLUMNS)
    expected = naive_sweep(weight.numpy(), levels.scales.numpy(), levels.zeros.numpy(), damped, order.tolist())
    assert fallback == ""
    assert np.array_equal(steps.numpy(), expected)


class PeakMemory(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch gives it no types
    """peak_bytes: the most that tensors made inside held at once, beside the given one."""

    def __init__(self, given: Tensor) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.peak_bytes, self._given = 0, given.untyped_storage().data_ptr()
        self._live: WeakValueDictionary[int, Any] = WeakValueDictionary()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = function(*args, **(kwargs or {}))
        tensors = [each for each in (made if isinstance(made, tuple) else (made,)) if isinstance(each, Tensor)]
        storages = [tensor.untyped_storage() for tensor in tensors]
        self._live |= {storage.data_ptr(): storage for storage in storages if storage.data_ptr() != self._given}
        self.peak_bytes = max(self.peak_bytes, sum(storage.nbytes() for storage in self._live.values()))
        return made


def test_factoring_holds_two_matrices_beside_the_one_it_is_given() -> None:
    inputs = numbers(600, 512)
    gram = inputs.t() @ inputs
    with PeakMemory(gram) as live:
        inverse_factor(gram, torch.arange(512))
    assert 2 <= live.peak_bytes / gram.nbytes < 2.1


@pytest.mark.parametrize("block", [1, 7, 128])
def test_refining_takes_the_best_of_sixteen_for_each_integer(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rounding, "BLOCK", block)
    weight, inputs = numbers(2, COLUMNS), correlated(150)
    levels = levels_of(weight)
    start = nearest(weight, levels)

    found, error = refined(weight, levels, start, inputs.t() @ inputs)

    expected = start.clone()
    for column in list(range(COLUMNS)) * rounding.REFINEMENTS:
        for row in range(len(weight)):
            every = expected[row].repeat(16, 1)
            every[:, column] = torch.arange(16) - levels.zeros[row, column // GROUP]
            one = Levels(*(part[row].repeat(16, 1) for part in levels))
            expected[row] = every[lost(weight[row].repeat(16, 1), every, one, inputs).argmin()]
    assert torch.equal(found, expected)
    assert torch.allclose(error, lost(weight, found, levels, inputs))


def test_compensation_loses_much_less_and_no_output_loses_more() -> None:
    weight, inputs = numbers(32, COLUMNS).float(), correlated().float()
    levels = levels_of(weight)
    (steps,), fallback = compensated([weight], [levels], inputs.t() @ inputs)

    plain = lost(weight, nearest(weight, levels), levels, inputs)
    ours = lost(weight, steps, levels, inputs)
    assert fallback == ""
    assert (ours <= plain * (1 + 1e-5)).all()
    assert ours.sum() < 0.5 * plain.sum()
    rounded = to_rounded(steps, levels)
    assert (int(rounded.q.min()), int(rounded.q.max())) == (0, 15)
    expected = steps * levels.scales.repeat_interleave(GROUP, dim=1)
    assert torch.equal(dequantize(rounded), expected)


def test_linears_that_go_together_get_what_they_get_alone() -> None:
    weights, inputs = [numbers(8, COLUMNS).float(), 9 * numbers(24, COLUMNS, seed=5).float()], correlated().float()
    levels, gram = [levels_of(weight) for weight in weights], inputs.t() @ inputs
    together, _ = compensated(weights, levels, gram)
    for weight, level, steps in zip(weights, levels, together, strict=True):
        (alone,), _ = compensated([weight], [level], gram)
        assert lost(weight, steps, level, inputs).sum() == pytest.approx(
            float(lost(weight, alone, level, inputs).sum()), rel=0.05
        )


def test_inputs_that_never_vary_need_no_fallback_as_damping_makes_up_for_it() -> None:
    weight, inputs = numbers(8, COLUMNS).float(), torch.ones(50, COLUMNS)
    levels = levels_of(weight)
    (steps,), fallback = compensated([weight], [levels], inputs.t() @ inputs)
    losses = [lost(weight, each, levels, inputs).sum() for each in (steps, nearest(weight, levels))]
    assert fallback == ""
    assert losses[0] < 0.1 * losses[1]


def not_a_gram_matrix() -> Tensor:
    """With CHANNEL_DAMPING its smallest eigenvalue is below zero, by 5 % of its diagonal."""
    axes: Tensor = torch.linalg.qr(numbers(COLUMNS, COLUMNS)).Q
    values = torch.linspace(1, 2, COLUMNS, dtype=torch.float64)
    values[0] = -(CHANNEL_DAMPING + 0.05) * 1.5
    return (axes * values @ axes.t()).float()


@pytest.mark.parametrize(
    ("gram", "expected", "is_plain"),
    [
        (not_a_gram_matrix(), "damping 0.1", False),
        (-torch.eye(COLUMNS), "plain rounding", True),
        (torch.zeros(COLUMNS, COLUMNS), "", True),
    ],
)
def test_damping_grows_until_factoring_works_or_falls_back(gram: Tensor, expected: str, is_plain: bool) -> None:
    weight = numbers(8, COLUMNS).float()
    levels = levels_of(weight)
    (steps,), fallback = compensated([weight], [levels], gram)
    assert fallback == expected
    assert torch.isfinite(steps).all()
    assert torch.equal(steps, nearest(weight, levels)) == is_plain


def test_dead_channels_are_plainly_rounded_and_change_nothing_else() -> None:
    weight, inputs = numbers(8, COLUMNS).float(), correlated().float()
    dead = [0, 17, 95]
    inputs[:, dead] = 0
    levels = levels_of(weight)
    (steps,), fallback = compensated([weight], [levels], inputs.t() @ inputs)
    assert fallback == ""
    assert torch.equal(steps[:, dead], nearest(weight, levels)[:, dead])


def test_clipped_weights_are_counted() -> None:
    weight = torch.linspace(-1, 1, 32).repeat(4, 1)
    scales, zeros = torch.full((4, 1), 0.1), torch.full((4, 1), 7.0)
    beyond = ((weight < -0.75) | (weight > 0.85)).float().mean()
    assert clipped_share(weight, Levels(scales, zeros)) == pytest.approx(float(beyond))
    assert clipped_share(weight, whole_range(weight.view(4, 1, 32))) < 0.05
