"""safetensors files written atomically, a chunk of a tensor at a time. The same tensors give the same bytes."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from bot.checkpoint.constants import FLOATS
from bot.checkpoint.header import ITEM_BITS, LENGTH_BYTES, size_bytes
from bot.checkpoint.reader import DTYPE_NAMES, TORCH_DTYPES
from bot.checkpoint.repo_files import SINGLE_WEIGHTS, WEIGHT_INDEX
from bot.errors import QuantizationError
from bot.files import atomic_file
from bot.records import TensorInfo

SHARD_BYTES = 5_000_000_000


class Chunked(Protocol):
    """A TensorFile or a Checkpoint."""

    @property
    def tensors(self) -> Mapping[str, TensorInfo]: ...

    def chunks(self, name: str, *, chunk_bytes: int = ...) -> Iterator[bytearray]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One tensor to write. content: opens its bytes, from the start at every call."""

    info: TensorInfo
    content: Callable[[], Iterator[bytes | bytearray | memoryview]]

    @property
    def size_bytes(self) -> int:
        return size_bytes(self.info)


def write_tensors(path: Path, tensors: Mapping[str, Tensor], *, metadata: Mapping[str, str]) -> None:
    """One file with these tensors.

    metadata: strings for the header. Raises EnvironmentProblem when the disk is full.
    """
    _write_file(path, [_part(name, tensor) for name, tensor in tensors.items()], metadata)


def write_checkpoint(folder: Path, parts: Iterable[Part], *, shard_bytes: int = SHARD_BYTES) -> tuple[str, ...]:
    """Shards of at most shard_bytes in the order of the parts, and their index; a single file if that is enough.

    A tensor larger than shard_bytes has a shard to itself. Only one chunk of a tensor is in memory at a time.
    Returns the names of the files. Raises EnvironmentProblem when the disk is full.
    """
    shards = _split(parts, shard_bytes)
    if len(shards) == 1:
        _write_file(folder / SINGLE_WEIGHTS, shards[0], {"format": "pt"})
        return (SINGLE_WEIGHTS,)
    names = [f"model-{number:05d}-of-{len(shards):05d}.safetensors" for number in range(1, len(shards) + 1)]
    for name, shard in zip(names, shards, strict=True):
        _write_file(folder / name, shard, {"format": "pt"})
    weight_map = {part.info.name: name for name, shard in zip(names, shards, strict=True) for part in shard}
    total = sum(part.size_bytes for shard in shards for part in shard)
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    with atomic_file(folder / WEIGHT_INDEX) as file:
        file.write((json.dumps(index, indent=2, ensure_ascii=False) + "\n").encode())
    return (*names, WEIGHT_INDEX)


def copy_of(source: Chunked, name: str) -> Part:
    """The tensor's bytes, unchanged and unchecked."""
    return Part(info=source.tensors[name], content=lambda: source.chunks(name))


def part_of(source: Chunked, name: str, *, dtype: str | None = None) -> Part:
    """The tensor's bytes, its floats converted to dtype (F16 or BF16); integers and dtype=None: unchanged.

    Writing it raises QuantizationError for a value that is not finite, or not in dtype.
    """
    info = source.tensors[name]
    if info.dtype not in FLOATS:
        return copy_of(source, name)
    target = dtype or info.dtype
    return Part(
        info=TensorInfo(name=name, dtype=target, shape=info.shape),
        content=lambda: _converted(source, name, info.dtype, target),
    )


def _split(parts: Iterable[Part], shard_bytes: int) -> list[list[Part]]:
    shards: list[list[Part]] = [[]]
    room = shard_bytes
    for part in parts:
        if part.size_bytes > room and shards[-1]:
            shards.append([])
            room = shard_bytes
        shards[-1].append(part)
        room -= part.size_bytes
    return shards


def _write_file(path: Path, parts: Sequence[Part], metadata: Mapping[str, str]) -> None:
    # As in the safetensors library: wide items first, so that every tensor is aligned.
    ordered = sorted(parts, key=lambda part: (-ITEM_BITS[part.info.dtype], part.info.name))
    with atomic_file(path) as file:
        file.write(_header(ordered, metadata))
        for part in ordered:
            written = sum(file.write(chunk) for chunk in part.content())
            if written != part.size_bytes:
                raise QuantizationError(f"tensor {part.info.name} has {written} bytes, not {part.size_bytes}")


def _header(parts: Sequence[Part], metadata: Mapping[str, str]) -> bytes:
    entries: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    position = 0
    for part in parts:
        end = position + part.size_bytes
        entries[part.info.name] = {
            "dtype": part.info.dtype,
            "shape": list(part.info.shape),
            "data_offsets": [position, end],
        }
        position = end
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % LENGTH_BYTES)
    return struct.pack("<Q", len(text)) + text


def _part(name: str, tensor: Tensor) -> Part:
    plain = tensor.detach().cpu().contiguous()
    info = TensorInfo(name=name, dtype=DTYPE_NAMES[plain.dtype], shape=tuple(plain.shape))
    return Part(info=info, content=lambda: iter([plain.view(-1).view(torch.uint8).numpy().data]))


def _converted(source: Chunked, name: str, dtype: str, target: str) -> Iterator[bytes | bytearray | memoryview]:
    for chunk in source.chunks(name):
        values = torch.frombuffer(chunk, dtype=TORCH_DTYPES[dtype])
        _check_finite(values, name, "holds values that are not finite")
        if dtype == target:
            yield chunk
            continue
        converted = values.to(TORCH_DTYPES[target])
        _check_finite(converted, name, f"reaches {values.abs().max().item():.4g}, which {target} cannot hold")
        yield converted.view(torch.uint8).numpy().data


def _check_finite(values: Tensor, name: str, problem: str) -> None:
    if not bool(torch.isfinite(values).all()):
        hint = "Is the upload broken? A value that only float16 cannot hold needs a bfloat16 source."
        raise QuantizationError(f"tensor {name} {problem}", hint=hint)
