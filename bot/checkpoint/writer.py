"""safetensors files written safely: to a temporary file, fsync, rename. The same tensors give the same bytes."""

from __future__ import annotations

import errno
import json
import os
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from bot.checkpoint.header import ITEM_BYTES, LENGTH_BYTES
from bot.checkpoint.parts import Part
from bot.checkpoint.reader import DTYPE_NAMES, INDEX_FILE, SINGLE_FILE
from bot.errors import EnvironmentProblem, QuantizationError
from bot.records import TensorInfo

SHARD_BYTES = 5_000_000_000
_NOT_OUR_FAULT = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO}


def write_tensors(path: Path, tensors: Mapping[str, Tensor], *, metadata: Mapping[str, str]) -> None:
    """One file that holds these tensors: what a layer becomes as soon as it is done.

    metadata: free texts in the header. Raises EnvironmentProblem when the disk is full.
    """
    _write_file(path, [_part(name, tensor) for name, tensor in tensors.items()], metadata)


def write_checkpoint(folder: Path, parts: Iterable[Part], *, shard_bytes: int = SHARD_BYTES) -> tuple[str, ...]:
    """Shards of at most shard_bytes in the order of the parts, and their index; one file where that is enough.

    A tensor larger than shard_bytes has a shard of its own. Never holds more than one chunk of a tensor.
    Returns the names of the files. Raises EnvironmentProblem when the disk is full.
    """
    shards = _split(parts, shard_bytes)
    if len(shards) == 1:
        _write_file(folder / SINGLE_FILE, shards[0], {"format": "pt"})
        return (SINGLE_FILE,)
    names = [f"model-{number:05d}-of-{len(shards):05d}.safetensors" for number in range(1, len(shards) + 1)]
    for name, shard in zip(names, shards, strict=True):
        _write_file(folder / name, shard, {"format": "pt"})
    weight_map = {part.info.name: name for name, shard in zip(names, shards, strict=True) for part in shard}
    total = sum(part.size_bytes for shard in shards for part in shard)
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    with replacing(folder / INDEX_FILE) as file:
        file.write((json.dumps(index, indent=2, ensure_ascii=False) + "\n").encode())
    return (*names, INDEX_FILE)


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A file that takes its name only when it is complete and on the disk; mode 0644, whatever the umask.

    Raises EnvironmentProblem when the disk is full or must not be written.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with writing(path):
            with temporary.open("wb") as file:
                yield file
                file.flush()
                os.fchmod(file.fileno(), 0o644)
                os.fsync(file.fileno())
            temporary.replace(path)
            sync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Raises EnvironmentProblem when what is done inside meets a disk that is full or must not be written."""
    try:
        yield
    except OSError as error:
        if error.errno not in _NOT_OUR_FAULT:
            raise
        raise EnvironmentProblem(
            f"{path}: cannot be written: {error.strerror}",
            hint="Free some space, or put the work directory on a larger volume; finished layers are kept.",
        ) from error


def sync_folder(folder: Path) -> None:
    """A rename survives a power cut only when the folder was synced too."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


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
    # Like the safetensors library: wide items first, so that every tensor is aligned.
    ordered = sorted(parts, key=lambda part: (-ITEM_BYTES[part.info.dtype], part.info.name))
    with replacing(path) as file:
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
