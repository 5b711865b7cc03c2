"""The GEMM layout against AutoAWQ's own packer and a dequantizer written from the layout's description."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from bot.checkpoint.constants import PACKED_PARTS
from bot.checkpoint.gemm import Packed, dequantize, pack, unpack
from bot.errors import QuantizationError
from tests.support.stock_awq import WQLinear_GEMM

Integers = tuple[Tensor, Tensor, Tensor]


def random_integers(out: int, columns: int, group_size: int, seed: int = 0) -> Integers:
    generator = torch.Generator().manual_seed(seed)
    q = torch.randint(0, 16, (out, columns), generator=generator)
    zeros = torch.randint(0, 16, (out, columns // group_size), generator=generator)
    scales = torch.rand(out, columns // group_size, generator=generator).mul(0.01).add(1e-4).half()
    return q, scales, zeros


def weight_of(q: Tensor, scales: Tensor, zeros: Tensor, group_size: int) -> Tensor:
    """(q - z) * scale in float64, one group after the other."""
    weight = torch.empty(q.shape, dtype=torch.float64)
    for group in range(scales.shape[1]):
        columns = slice(group * group_size, (group + 1) * group_size)
        weight[:, columns] = (q[:, columns] - zeros[:, group : group + 1]) * scales[:, group : group + 1].double()
    return weight


@pytest.mark.parametrize(("out", "columns", "group_size"), [(64, 256, 128), (96, 128, 32), (128, 128, 128)])
def test_pack_gives_the_same_bits_as_autoawq(out: int, columns: int, group_size: int) -> None:
    q, scales, zeros = random_integers(out, columns, group_size)
    linear = nn.Linear(columns, out, bias=False)
    linear.weight.data = weight_of(q, scales, zeros, group_size).float()
    theirs = WQLinear_GEMM.from_linear(
        linear, 4, group_size, scales=scales.t().float().contiguous(), zeros=zeros.t().contiguous()
    )

    for ours, name in zip(pack(q, scales, zeros), ("qweight", "qzeros", "scales"), strict=True):
        assert torch.equal(ours, getattr(theirs, name))
        assert ours.dtype == (torch.float16 if name == "scales" else torch.int32)


def test_layout_is_the_documented_one() -> None:
    """Nibble i of an int32 holds output column 8c + [0, 2, 4, 6, 1, 3, 5, 7][i]."""
    q, scales, zeros = random_integers(16, 8, 8)
    packed = pack(q, scales, zeros)
    for row in range(8):
        for c in range(2):
            bits = int(packed.qweight[row, c]) & 0xFFFFFFFF
            for i, column in enumerate([0, 2, 4, 6, 1, 3, 5, 7]):
                assert (bits >> (4 * i)) & 15 == int(q[8 * c + column, row])


@settings(max_examples=30, deadline=None)
@given(
    eights=st.integers(1, 6),
    groups=st.integers(1, 4),
    group_size=st.sampled_from([1, 8, 32]),
    seed=st.integers(0, 99),
)
def test_unpack_is_the_inverse_of_pack(eights: int, groups: int, group_size: int, seed: int) -> None:
    q, scales, zeros = random_integers(8 * eights, groups * group_size, group_size, seed)
    back = unpack(*pack(q, scales, zeros))
    for got, expected in ((back.q, q.byte()), (back.zeros, zeros.byte()), (back.scales, scales)):
        assert torch.equal(got, expected)


def test_dequantize_is_exact_in_float32() -> None:
    q, scales, zeros = random_integers(48, 256, 64)
    weight = dequantize(*pack(q, scales, zeros))
    assert weight.dtype == torch.float32
    assert torch.equal(weight.double(), weight_of(q, scales, zeros, 64))


def test_tensors_that_the_layout_cannot_hold_are_refused() -> None:
    q, scales, zeros = random_integers(16, 64, 32)
    packed = pack(q, scales, zeros)
    with pytest.raises(QuantizationError, match="4 bits"):
        pack(q + 1, scales, zeros)
    with pytest.raises(QuantizationError, match="belong together"):
        dequantize(packed.qweight, packed.qzeros[:1], packed.scales)
    with pytest.raises(QuantizationError, match="multiple of 8"):
        pack(*random_integers(12, 8, 8))


def test_the_parts_of_a_packed_linear_have_the_names_that_are_written() -> None:
    assert Packed._fields == PACKED_PARTS
