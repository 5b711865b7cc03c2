"""Tensors of safetensors files and checkpoints, read by offset.

Files are not memory-mapped: mapped pages count as the process's memory, and reading beyond a truncated file's end
kills the process.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from io import BufferedReader
from pathlib import Path

import torch
from torch import Tensor

from bot.checkpoint.header import Header, read_header
from bot.checkpoint.weight_files import read_weight_headers
from bot.errors import UnsupportedModelError, UpstreamError
from bot.records import TensorInfo

# Not those whose items share bytes: torch has no tensors of them.
TORCH_DTYPES: dict[str, torch.dtype] = {
    "F64": torch.float64,
    "I64": torch.int64,
    "U64": torch.uint64,
    "F32": torch.float32,
    "I32": torch.int32,
    "U32": torch.uint32,
    "C64": torch.complex64,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I16": torch.int16,
    "U16": torch.uint16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E4M3FNUZ": torch.float8_e4m3fnuz,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E5M2FNUZ": torch.float8_e5m2fnuz,
    "F8_E8M0": torch.float8_e8m0fnu,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
DTYPE_NAMES = {dtype: name for name, dtype in TORCH_DTYPES.items()}


class TensorFile:
    """One safetensors file. tensors: as in its header; metadata: the strings in its header.

    Raises UpstreamError when the file is missing, truncated or its header does not fit it.
    """

    def __init__(self, path: Path, header: Header | None = None) -> None:
        self.path = path
        self._header = header or read_header(path)
        self.metadata: Mapping[str, str] = self._header.metadata
        self.tensors: Mapping[str, TensorInfo] = {name: span.info for name, span in self._header.spans.items()}

    def read(self, name: str) -> Tensor:
        """The whole tensor, in its own dtype, on the CPU.

        Raises UnsupportedModelError for a dtype that torch does not have.
        """
        info = self.tensors[name]
        if info.dtype not in TORCH_DTYPES:
            raise UnsupportedModelError(f"{self.path}: {name} is {info.dtype}, which torch cannot hold")
        content = bytearray(self._header.spans[name].size_bytes)
        with self._open(name) as file:
            _read_exactly(file, memoryview(content), self.path)
        return _as_tensor(content, info.dtype).reshape(info.shape)

    def chunks(self, name: str, *, chunk_bytes: int = 1 << 24) -> Iterator[bytearray]:
        """The tensor's bytes in order, never more than chunk_bytes (a multiple of 8) at a time."""
        remaining = self._header.spans[name].size_bytes
        with self._open(name) as file:
            while remaining:
                content = bytearray(min(remaining, chunk_bytes))
                _read_exactly(file, memoryview(content), self.path)
                remaining -= len(content)
                yield content

    def _open(self, name: str) -> BufferedReader:
        file = self.path.open("rb")
        file.seek(self._header.spans[name].start)
        return file


class Checkpoint:
    """The weights of a model folder: `model.safetensors`, or the shards that its index names.

    Raises UpstreamError when a file is missing or damaged.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        found = read_weight_headers(folder)
        files = {name: TensorFile(folder / name, header) for name, header in found.headers.items()}
        self.weight_files = tuple(files)
        self.tensors: Mapping[str, TensorInfo] = found.tensors
        self._files = {tensor: files[name] for tensor, name in found.files.items()}

    def read(self, name: str) -> Tensor:
        """The whole tensor, in its own dtype, on the CPU."""
        return self._files[name].read(name)

    def chunks(self, name: str, *, chunk_bytes: int = 1 << 24) -> Iterator[bytearray]:
        """The tensor's bytes in order, never more than chunk_bytes (a multiple of 8) at a time."""
        return self._files[name].chunks(name, chunk_bytes=chunk_bytes)

    def equal(self, one: str, other: str) -> bool:
        """Whether two tensors hold the same bytes. Read in chunks, up to the first difference."""
        first, second = self.tensors[one], self.tensors[other]
        if (first.dtype, first.shape) != (second.dtype, second.shape):
            return False
        return all(a == b for a, b in zip(self.chunks(one), self.chunks(other), strict=True))


def _read_exactly(file: BufferedReader, target: memoryview, path: Path) -> None:
    done = 0
    while done < len(target):
        count = file.readinto(target[done:])
        if not count:
            raise UpstreamError(
                f"{path}: ended {len(target) - done} bytes early; it changed while being read",
                hint="Run it again.",
            )
        done += count


def _as_tensor(content: bytearray, dtype: str) -> Tensor:
    if not content:
        return torch.empty(0, dtype=TORCH_DTYPES[dtype])
    return torch.frombuffer(content, dtype=TORCH_DTYPES[dtype])
