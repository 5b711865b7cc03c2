"""The header of one safetensors file: which tensors it holds, and where. No torch: planning uses it too."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from bot.checkpoint.constants import SOURCE_FLOATS
from bot.errors import UpstreamError
from bot.records import TensorInfo
from bot.text import one_line

# https://huggingface.co/docs/safetensors: u64 little-endian length, JSON, then the bytes of all tensors.
LENGTH_BYTES = 8
MAX_HEADER_BYTES = 100_000_000  # the limit of the safetensors library itself
# Bounds for what others wrote: time and memory grow with each tensor. DeepSeek-V3 stores about 91,000 tensors in
# 163 files; the single file of a small mixture has some thousands. Names have about 60 characters.
MAX_FILE_TENSORS = 200_000
MAX_NAME_CHARS = 1000
_MAX_DIMENSIONS = 64  # of a tensor in torch
_MAX_SIZE = 1 << 63

# Bits of an item, by the names of safetensors 0.8.
ITEM_BITS = {
    "BOOL": 8,
    "F4": 4,
    "F6_E2M3": 6,
    "F6_E3M2": 6,
    "U8": 8,
    "I8": 8,
    "F8_E5M2": 8,
    "F8_E4M3": 8,
    "F8_E8M0": 8,
    "F8_E4M3FNUZ": 8,
    "F8_E5M2FNUZ": 8,
    "I16": 16,
    "U16": 16,
    "F16": 16,
    "BF16": 16,
    "I32": 32,
    "U32": 32,
    "F32": 32,
    "C64": 64,
    "F64": 64,
    "I64": 64,
    "U64": 64,
}
# What is uploaded in place of weights, by its first bytes. As a length, all of these are far too large.
_OTHER_FORMATS = {
    b"version ": "a git-lfs pointer, not the file itself",
    b"GGUF": "a GGUF file",
    b"PK\x03\x04": "a zip archive, such as a pickled checkpoint",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """Where one tensor's bytes lie: start and end, counted from the start of the file."""

    info: TensorInfo
    start: int
    end: int

    @property
    def size_bytes(self) -> int:
        return self.end - self.start


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """size_bytes: of the header's text."""

    spans: dict[str, Span]
    metadata: dict[str, str]
    size_bytes: int


def main_dtype(tensors: Mapping[str, TensorInfo]) -> str:
    """The dtype, of those that can be quantized, of most values in the checkpoint."""
    return max(
        SOURCE_FLOATS, key=lambda dtype: sum(prod(info.shape) for info in tensors.values() if info.dtype == dtype)
    )


def kept_float32(tensors: Mapping[str, TensorInfo]) -> frozenset[str]:
    """What a checkpoint of 16-bit weights stores in float32, and an artifact therefore too, if it is not packed.

    Such as the biases that choose experts in DeepSeek-V3, or `A_log` of Mamba: fewer digits would change what
    readers compute. Those that use 16 bits convert it themselves.
    """
    if main_dtype(tensors) == "F32":
        return frozenset()
    return frozenset(name for name, info in tensors.items() if info.dtype == "F32")


def size_bytes(info: TensorInfo) -> int:
    """Of the tensor's values in a file."""
    return prod(info.shape) * ITEM_BITS[info.dtype] // 8


def read_header(path: Path) -> Header:
    """Raises UpstreamError when the file cannot be read, is truncated, or its header does not fit it."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = header_length(file.read(LENGTH_BYTES), file_bytes=size, where=str(path))
            text = file.read(length)
    except OSError as error:
        reason = f"cannot be read: {error.strerror or error}"
        raise UpstreamError(f"{path}: {reason}", hint="Download it again.") from None
    return parse_header(text, file_bytes=size, where=str(path))


def header_length(first: bytes, *, file_bytes: int, where: str) -> int:
    """Length of the JSON in bytes, from the first eight bytes of the file.

    Raises UpstreamError when the file is too short to hold that much, or is of another format.
    """
    if len(first) < LENGTH_BYTES:
        raise _damaged(where, f"{len(first)} bytes are not a safetensors file")
    length: int = struct.unpack("<Q", first[:LENGTH_BYTES])[0]
    if length <= min(MAX_HEADER_BYTES, file_bytes - LENGTH_BYTES):
        return length
    if other := next((name for magic, name in _OTHER_FORMATS.items() if first.startswith(magic)), None):
        raise UpstreamError(
            f"{where}: it is {other}", hint="Upload the safetensors file itself, or run `git lfs pull` in a clone."
        )
    raise _damaged(where, f"the header claims {length} bytes, the file has {file_bytes}")


def parse_header(text: bytes, *, file_bytes: int, where: str) -> Header:
    """Every tensor of the file, its byte range checked against the file's size, gaps and overlaps.

    Raises UpstreamError for anything that the safetensors library would not load either, and for more tensors than
    any model has.
    """
    # Counted before JSON is parsed, which takes seconds and a gigabyte for a million tensors.
    if (count := text.count(b'"data_offsets"')) > MAX_FILE_TENSORS:
        raise _too_many(where, count)
    try:
        entries = json.loads(text.decode(), object_pairs_hook=_no_duplicates)
    except (ValueError, RecursionError) as error:
        raise _damaged(where, f"the header is not JSON: {error}") from None
    if not isinstance(entries, dict):
        raise _damaged(where, "the header is not a JSON object")
    metadata = entries.pop("__metadata__", None) or {}
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise _damaged(where, "__metadata__ is not a map of strings")
    if len(entries) > MAX_FILE_TENSORS:
        raise _too_many(where, len(entries))
    base = LENGTH_BYTES + len(text)
    spans = {name: _span(name, entry, base, where) for name, entry in entries.items()}
    _check_coverage(spans, base, file_bytes, where)
    return Header(spans=spans, metadata=metadata, size_bytes=len(text))


def _span(name: str, entry: Any, base: int, where: str) -> Span:
    if len(name) > MAX_NAME_CHARS or not _is_text(name):
        raise _damaged(where, f"{one_line(name, 40)!r} is no name of a tensor")
    try:
        dtype, shape, (start, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
    except (KeyError, TypeError, ValueError):
        raise _damaged(where, f"the entry of tensor {name!r} is incomplete") from None
    if not isinstance(dtype, str) or dtype not in ITEM_BITS:
        raise _damaged(where, f"tensor {name!r} has the unknown dtype {one_line(dtype, 40)!r}")
    numbers = [*shape, start, end] if isinstance(shape, list) and len(shape) <= _MAX_DIMENSIONS else [None]
    # bool is a subclass of int in Python.
    if not all(type(number) is int and 0 <= number < _MAX_SIZE for number in numbers):
        raise _damaged(where, f"tensor {name!r} has an invalid shape or offsets")
    if 8 * (end - start) != prod(shape) * ITEM_BITS[dtype]:
        raise _damaged(where, f"tensor {name!r} of {dtype} {shape} does not fill bytes {start} to {end}")
    return Span(info=TensorInfo(name=name, dtype=dtype, shape=tuple(shape)), start=base + start, end=base + end)


def _check_coverage(spans: dict[str, Span], base: int, file_bytes: int, where: str) -> None:
    """The tensors must fill the file without gap or overlap, as the safetensors library requires."""
    position = base
    for span in sorted(spans.values(), key=lambda span: (span.start, span.end)):
        if span.end > file_bytes:
            raise _damaged(where, f"tensor {span.info.name!r} ends at byte {span.end} of {file_bytes}")
        if span.start != position:
            kind = "overlaps another one" if span.start < position else "leaves a gap before it"
            raise _damaged(where, f"tensor {span.info.name!r} {kind}")
        position = span.end
    if position != file_bytes:
        raise _damaged(where, f"{file_bytes - position} bytes after the last tensor belong to none")


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    names = dict(pairs)
    if len(names) != len(pairs):
        raise ValueError("a key occurs twice")
    return names


def _is_text(name: str) -> bool:
    """JSON may hold halves of a surrogate pair, which no encoding has."""
    return name.isascii() or not any("\ud800" <= char <= "\udfff" for char in name)


def _too_many(where: str, count: int) -> UpstreamError:
    return UpstreamError(
        f"{where}: the header lists {count} tensors, more than {MAX_FILE_TENSORS} in one file",
        hint="No known model has that many.",
    )


def _damaged(where: str, what: str) -> UpstreamError:
    return UpstreamError(f"{where}: {what}", hint="The file is damaged or incomplete; download it again.")
