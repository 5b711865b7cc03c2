"""safetensors files and checkpoints, read by offset.

Nothing is mapped into memory: mapped pages count as the process's memory, and a truncated mapping kills it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from io import BufferedReader
from pathlib import Path, PurePosixPath, PureWindowsPath

import torch
from torch import Tensor

from bot.checkpoint.config import parse_object
from bot.checkpoint.header import LENGTH_BYTES, Header, header_length, parse_header
from bot.checkpoint.repo_files import SINGLE_WEIGHTS, WEIGHT_INDEX
from bot.errors import UpstreamError
from bot.records import TensorInfo

TORCH_DTYPES: dict[str, torch.dtype] = {
    "F64": torch.float64,
    "I64": torch.int64,
    "U64": torch.uint64,
    "F32": torch.float32,
    "I32": torch.int32,
    "U32": torch.uint32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I16": torch.int16,
    "U16": torch.uint16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_BROKEN_INDEX = "The index is broken; look at it upstream."
DTYPE_NAMES = {dtype: name for name, dtype in TORCH_DTYPES.items()}


class TensorFile:
    """One safetensors file. tensors: its header; metadata: the header's free texts.

    Raises UpstreamError when the file is missing, truncated or its header does not fit it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._header = _read_header(path)
        self.metadata: Mapping[str, str] = self._header.metadata
        self.tensors: Mapping[str, TensorInfo] = {name: span.info for name, span in self._header.spans.items()}

    def read(self, name: str) -> Tensor:
        """The whole tensor, in its own dtype, on the CPU."""
        info = self.tensors[name]
        content = bytearray(self._header.spans[name].size_bytes)
        with self._open(name) as file:
            _read_exactly(file, memoryview(content), self.path)
        return _as_tensor(content, info.dtype).reshape(info.shape)

    def chunks(self, name: str, *, chunk_bytes: int = 1 << 24) -> Iterator[bytearray]:
        """The tensor's bytes in order, never more than chunk_bytes (a multiple of 8) at a time."""
        left = self._header.spans[name].size_bytes
        with self._open(name) as file:
            while left:
                content = bytearray(min(left, chunk_bytes))
                _read_exactly(file, memoryview(content), self.path)
                left -= len(content)
                yield content

    def _open(self, name: str) -> BufferedReader:
        file = self.path.open("rb")
        file.seek(self._header.spans[name].start)
        return file


class Checkpoint:
    """The weights of a model folder: `model.safetensors`, or the shards that its index names.

    Raises UpstreamError when a file is missing or damaged, or the index names what is not there.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.weight_files, self._files = _open_files(folder)
        self.tensors: Mapping[str, TensorInfo] = {name: file.tensors[name] for name, file in self._files.items()}

    def read(self, name: str) -> Tensor:
        """The whole tensor, in its own dtype, on the CPU."""
        return self._files[name].read(name)

    def chunks(self, name: str, *, chunk_bytes: int = 1 << 24) -> Iterator[bytearray]:
        """The tensor's bytes in order, never more than chunk_bytes (a multiple of 8) at a time."""
        return self._files[name].chunks(name, chunk_bytes=chunk_bytes)


def _read_header(path: Path) -> Header:
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = header_length(file.read(LENGTH_BYTES), file_bytes=size, where=str(path))
            text = file.read(length)
    except OSError as error:
        reason = f"cannot be read: {error.strerror or error}"
        raise UpstreamError(f"{path}: {reason}", hint="Fetch it again.") from None
    return parse_header(text, file_bytes=size, where=str(path))


def _open_files(folder: Path) -> tuple[tuple[str, ...], dict[str, TensorFile]]:
    """The weight files' names, and for each tensor the file that holds it."""
    single, index = folder / SINGLE_WEIGHTS, folder / WEIGHT_INDEX
    # Like transformers: where both exist, the single file wins.
    if single.is_file():
        file = TensorFile(single)
        return (SINGLE_WEIGHTS,), dict.fromkeys(file.tensors, file)
    if not index.is_file():
        raise UpstreamError(
            f"{folder}: neither {SINGLE_WEIGHTS} nor {WEIGHT_INDEX}",
            hint="Only weights in safetensors files are read; never pickled ones.",
        )
    weight_map = _weight_map(index)
    shards = {name: _open_shard(folder, name, index) for name in sorted(set(weight_map.values()))}
    # transformers loads a tensor that its shard holds even where the index forgot it, and so do we.
    files = {tensor: shard for shard in shards.values() for tensor in shard.tensors}
    for tensor, shard_name in weight_map.items():
        if tensor not in shards[shard_name].tensors:
            raise UpstreamError(
                f"{folder / shard_name}: tensor {tensor!r} is not there, though {WEIGHT_INDEX} says so",
                hint="The upload is not complete, or its index is out of date.",
            )
        files[tensor] = shards[shard_name]
    return tuple(shards), files


def _weight_map(index: Path) -> dict[str, str]:
    weight_map = parse_object(index.read_bytes(), where=str(index)).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise UpstreamError(f"{index}: no weight_map", hint=_BROKEN_INDEX)
    for tensor, name in weight_map.items():
        # The index is a stranger's file: a shard lies beside it, nowhere else.
        if not isinstance(name, str) or not _is_plain_name(name):
            raise UpstreamError(
                f"{index}: tensor {tensor!r} points outside the folder, to {name!r}", hint=_BROKEN_INDEX
            )
    return weight_map


def _is_plain_name(name: str) -> bool:
    return (
        name not in {"", ".", ".."} and PurePosixPath(name).name == name == PureWindowsPath(name).name
    ) and "\0" not in name


def _open_shard(folder: Path, name: str, index: Path) -> TensorFile:
    if not (folder / name).is_file():
        raise UpstreamError(
            f"{folder / name}: missing, though {index.name} names it", hint="The upload is not complete."
        )
    return TensorFile(folder / name)


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
