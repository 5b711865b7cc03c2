"""Plain rounding against the definition, one weight at a time."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bot.checkpoint.rounding import dequantize, round_to_nearest
from bot.errors import QuantizationError


def test_every_integer_is_the_nearest_of_the_sixteen_levels() -> None:
    weight = torch.randn(16, 96, generator=torch.Generator().manual_seed(0))
    rounded = round_to_nearest(weight, group_size=32)
    for row in range(16):
        for column in range(96):
            scale = float(rounded.scales[row, column // 32])
            zero = int(rounded.zeros[row, column // 32])
            distances = [abs((q - zero) * scale - float(weight[row, column])) for q in range(16)]
            assert distances[int(rounded.q[row, column])] == pytest.approx(min(distances), abs=1e-7)


def test_restored_weight_is_what_the_layout_says() -> None:
    weight = torch.randn(8, 64)
    rounded = round_to_nearest(weight, group_size=32)
    q, zeros = rounded.q.double(), rounded.zeros.double().repeat_interleave(32, dim=1)
    expected = (q - zeros) * rounded.scales.double().repeat_interleave(32, dim=1)
    assert torch.equal(dequantize(rounded).double(), expected)


@settings(max_examples=60, deadline=None)
@given(offset=st.floats(-3, 3), spread=st.floats(1e-3, 100), seed=st.integers(0, 99), groups=st.integers(1, 3))
def test_no_weight_is_further_off_than_one_step(offset: float, spread: float, seed: int, groups: int) -> None:
    """Also where a group lies on one side of zero: its zero point is rounded, which costs half a step more."""
    generator = torch.Generator().manual_seed(seed)
    weight = spread * (torch.randn(8, 32 * groups, generator=generator) + offset)
    rounded = round_to_nearest(weight, group_size=32)
    step = rounded.scales.float().repeat_interleave(32, dim=1)
    assert ((dequantize(rounded) - weight).abs() <= 1.02 * step).all()
    zeros = round_to_nearest(torch.zeros(8, 32), group_size=32)
    assert (zeros.scales > 0).all()
    assert (dequantize(zeros) == 0).all()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 2e6])
def test_what_no_float16_scale_can_hold_is_refused(value: float) -> None:
    weight = torch.randn(8, 32)
    weight[3, 3] = value
    with pytest.raises(QuantizationError, match="not finite, or too large"):
        round_to_nearest(weight, group_size=32)
