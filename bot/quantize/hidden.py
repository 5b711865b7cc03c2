"""What goes into a decoder layer, for all calibration blocks: on disk, so that no memory grows with it.

It is read and written a few blocks at a time, and survives the process: that is what a killed job goes on from.
Not synced: after a power cut the hash does not match, and it is computed anew by the layers before.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path

import torch
from torch import Tensor

from bot.checkpoint.reader import DTYPE_NAMES, TORCH_DTYPES
from bot.checkpoint.writer import writing


@dataclass(frozen=True, slots=True, kw_only=True)
class HiddenStates:
    """shape: [samples, seq_len, hidden]; dtype as safetensors writes it; sha256 over the values in their order.

    peak: the largest absolute value, NaN where there is one.
    """

    shape: tuple[int, ...]
    dtype: str
    sha256: str
    peak: float

    def read(self, path: Path, *, blocks: int) -> Iterator[Tensor]:
        """Some blocks at a time, on the CPU."""
        dtype = TORCH_DTYPES[self.dtype]
        with path.open("rb") as file:
            for start in range(0, self.shape[0], blocks):
                shape = (min(blocks, self.shape[0] - start), *self.shape[1:])
                content = bytearray(prod(shape) * dtype.itemsize)
                file.readinto(content)
                yield torch.frombuffer(content, dtype=dtype).view(shape)

    def is_at(self, path: Path) -> bool:
        """Whether the file is there and holds just these values."""
        if not path.is_file():
            return False
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest() == self.sha256


def hidden_path(folder: Path, index: int) -> Path:
    """Of what goes into layer `index`."""
    return folder / f"hidden-{index:05d}.bin"


def write_hidden(path: Path, parts: Iterable[Tensor]) -> HiddenStates:
    """Write parts, [blocks, seq_len, hidden] each. Raises EnvironmentProblem when the disk is full."""
    digest, written = hashlib.sha256(), []
    try:
        with writing(path), path.open("wb") as file:
            for part in parts:
                plain = part.detach().cpu().contiguous()
                content = plain.view(-1).view(torch.uint8).numpy().data
                digest.update(content)
                file.write(content)
                written.append((plain.shape, plain.dtype, largest(plain)))
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    shapes, dtypes, peaks = zip(*written, strict=True)
    return HiddenStates(
        shape=(sum(shape[0] for shape in shapes), *shapes[0][1:]),
        dtype=DTYPE_NAMES[dtypes[0]],
        sha256=digest.hexdigest(),
        peak=float(torch.tensor(peaks).max()),  # NaN where there is one
    )


def largest(values: Tensor) -> float:
    """The largest absolute value, NaN where there is one; without a second tensor of that size."""
    low, high = torch.aminmax(values)
    return float(torch.maximum(low.abs(), high.abs()))
