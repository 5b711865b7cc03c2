"""The AWQ GEMM layout: 4-bit integers, eight to an int32, in the order that AutoAWQ's kernels read them.

For a linear of shape [out, in] and groups of g input channels: qweight int32 [in, out/8],
qzeros int32 [in/g, out/8], scales float16 [in/g, out]. Weight = (q - z) * scale.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from bot.checkpoint.constants import BITS, PER_INT32
from bot.errors import QuantizationError

# Bits 4i to 4i+3 of an int32 hold output column 8c + ORDER[i]:
# https://github.com/casper-hansen/AutoAWQ/blob/v0.2.9/awq/modules/linear/gemm.py
ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
_POSITION = tuple(ORDER.index(column) for column in range(PER_INT32))


class Packed(NamedTuple):
    """The three tensors that replace a linear's weight in a checkpoint."""

    qweight: Tensor
    qzeros: Tensor
    scales: Tensor


class Unpacked(NamedTuple):
    """q: uint8 [out, in]; scales: float16 [out, in/g]; zeros: uint8 [out, in/g]."""

    q: Tensor
    scales: Tensor
    zeros: Tensor


def pack(q: Tensor, scales: Tensor, zeros: Tensor) -> Packed:
    """q: integers 0..15 [out, in]; scales: [out, in/g]; zeros: integers 0..15 [out, in/g].

    Raises QuantizationError when out is not a multiple of 8 or an integer needs more than 4 bits.
    """
    for name, integers in (("weights", q), ("zeros", zeros)):
        low, high = (int(bound) for bound in torch.aminmax(integers)) if integers.numel() else (0, 0)
        if low < 0 or high >= 1 << BITS:
            raise QuantizationError(f"{name} do not fit {BITS} bits: {low} to {high}")
    return Packed(_packed(q), _packed(zeros), scales.t().to(torch.float16).contiguous())


def unpack(qweight: Tensor, qzeros: Tensor, scales: Tensor) -> Unpacked:
    """The inverse of pack. Raises QuantizationError when the three shapes do not belong together."""
    groups, out = scales.shape
    rows = qweight.shape[0]
    if qweight.shape[1] * PER_INT32 != out or qzeros.shape != (groups, out // PER_INT32) or rows % groups:
        shapes = ", ".join(str(list(tensor.shape)) for tensor in (qweight, qzeros, scales))
        raise QuantizationError(f"qweight, qzeros and scales do not belong together: {shapes}")
    return Unpacked(
        _unpack_columns(qweight).t().contiguous(),
        scales.t().contiguous(),
        _unpack_columns(qzeros).t().contiguous(),
    )


def dequantize(qweight: Tensor, qzeros: Tensor, scales: Tensor, *, dtype: torch.dtype = torch.float32) -> Tensor:
    """The weight [out, in] that the three tensors represent; exact in float32.

    Raises QuantizationError when the three shapes do not belong together.
    """
    q, scale, zeros = unpack(qweight, qzeros, scales)
    out, columns = q.shape
    grouped = q.view(out, scale.shape[1], -1).to(torch.float32)
    # Integers up to 15 times an 11-bit significand: float32 holds the product exactly.
    weight = (grouped - zeros.to(torch.float32).unsqueeze(-1)) * scale.to(torch.float32).unsqueeze(-1)
    return weight.view(out, columns).to(dtype)


def _packed(integers: Tensor) -> Tensor:
    """[out, columns] -> int32 [columns, out/8]."""
    out, columns = integers.shape
    if out % PER_INT32:
        raise QuantizationError(f"{out} output channels are not a multiple of {PER_INT32}")
    eights = integers.to(torch.uint8).reshape(out // PER_INT32, PER_INT32, columns)
    # Nibbles to bytes, bytes to int32, and transposed last: each step moves less data than the one before. The
    # highest byte overflows into the sign bit, as intended.
    pairs = zip(ORDER[::2], ORDER[1::2], strict=True)
    first, *others = (torch.add(eights[:, low], eights[:, high], alpha=1 << BITS) for low, high in pairs)
    packed = first.to(torch.int32)
    for place, byte in enumerate(others, 1):
        packed.add_(byte.to(torch.int32), alpha=1 << (8 * place))
    return packed.t().contiguous()


def _unpack_columns(packed: Tensor) -> Tensor:
    """int32 [rows, out/8] -> uint8 [rows, out]."""
    rows, columns = packed.shape
    nibbles = [((packed >> (BITS * position)) & 15).to(torch.uint8) for position in _POSITION]
    return torch.stack(nibbles, dim=-1).reshape(rows, columns * PER_INT32)
