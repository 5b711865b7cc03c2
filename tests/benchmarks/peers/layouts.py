"""Other libraries' 4-bit layouts, repacked as AWQ GEMM without a change of any weight, to be measured as ours are.

- GPTQ, as GPTQModel writes it: qweight int32 [in/8, out], qzeros int32 [in/g, out/8], scales [in/g, out], g_idx.
- compressed-tensors' `pack-quantized`, as llm-compressor writes it: weight_packed int32 [out, in/8],
  weight_zero_point int32 [out/8, in/g], weight_scale [out, in/g].

In both, bits 4i to 4i+3 of an int32 are the i-th of eight neighbours. auto-round writes AWQ GEMM itself. Scales
that are stored in more than 16 bits become float16, as AWQ's are.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from bot.checkpoint.constants import BITS, PER_INT32
from bot.checkpoint.gemm import Packed, pack
from bot.checkpoint.reader import Checkpoint

_OTHER_PARTS = ("qzeros", "scales", "g_idx", "weight_scale", "weight_zero_point", "weight_shape")


def as_gemm(artifact: Checkpoint) -> Iterator[tuple[str, Tensor]]:
    """The tensors of an artifact by their names, and three for each quantized linear."""
    for name in artifact.tensors:
        stem, _, part = name.rpartition(".")
        if part == "weight_packed":
            packed = _of_compressed_tensors(artifact, stem)
        elif part == "qweight" and f"{stem}.g_idx" in artifact.tensors:
            packed = _of_gptq(artifact, stem)
        elif part == "qweight":
            packed = Packed(*(artifact.read(f"{stem}.{field}") for field in Packed._fields))
        elif part not in _OTHER_PARTS:
            yield name, artifact.read(name)
            continue
        else:
            continue
        yield from ((f"{stem}.{field}", tensor) for field, tensor in packed._asdict().items())


def _of_compressed_tensors(artifact: Checkpoint, linear: str) -> Packed:
    # Signed integers, which it stores plus 8; so are its zero points.
    q = _unpacked(artifact.read(f"{linear}.weight_packed"))
    zeros = _unpacked(artifact.read(f"{linear}.weight_zero_point").t()).t()
    return pack(q, artifact.read(f"{linear}.weight_scale"), zeros)


def _of_gptq(artifact: Checkpoint, linear: str) -> Packed:
    scales = artifact.read(f"{linear}.scales").t()
    q = _unpacked(artifact.read(f"{linear}.qweight").t())
    columns = q.shape[1]
    groups = torch.arange(columns) // (columns // scales.shape[1])
    if not torch.equal(artifact.read(f"{linear}.g_idx").long(), groups):
        raise ValueError(f"{linear}: the channels of a group are not neighbours")
    # Version 1 of the format has zero points minus 1: subtracted from the int32, where it may borrow.
    ones = sum(1 << (BITS * place) for place in range(PER_INT32))
    zeros = _unpacked((artifact.read(f"{linear}.qzeros").long() + ones).to(torch.int32)).t()
    return pack(q, scales, zeros)


def _unpacked(packed: Tensor) -> Tensor:
    """int32 [rows, columns/8] -> uint8 [rows, columns]."""
    nibbles = [((packed >> (BITS * place)) & 15).to(torch.uint8) for place in range(PER_INT32)]
    return torch.stack(nibbles, dim=-1).reshape(packed.shape[0], -1)
