"""Safetensors headers: which tensors a file or a model folder holds, and where. No torch: planning uses it too."""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass
from math import prod
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from bot.checkpoint.config import parse_object
from bot.checkpoint.repo_files import SINGLE_WEIGHTS, WEIGHT_INDEX
from bot.errors import UpstreamError
from bot.records import TensorInfo

# https://huggingface.co/docs/safetensors: u64 little-endian length, JSON, then the bytes of all tensors.
LENGTH_BYTES = 8
MAX_HEADER_BYTES = 100_000_000  # the limit of the safetensors library itself

_BROKEN_INDEX = "The index is broken; look at it upstream."

ITEM_BYTES = {
    "F64": 8,
    "I64": 8,
    "U64": 8,
    "F32": 4,
    "I32": 4,
    "U32": 4,
    "F16": 2,
    "BF16": 2,
    "I16": 2,
    "U16": 2,
    "F8_E4M3": 1,
    "F8_E5M2": 1,
    "I8": 1,
    "U8": 1,
    "BOOL": 1,
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
    spans: dict[str, Span]
    metadata: dict[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightHeaders:
    """A model folder's headers by file name. files: for each tensor the name of the file that holds it."""

    headers: dict[str, Header]
    files: dict[str, str]

    @property
    def tensors(self) -> dict[str, TensorInfo]:
        return {tensor: self.headers[name].spans[tensor].info for tensor, name in self.files.items()}


def read_weight_headers(folder: Path) -> WeightHeaders:
    """The headers of `model.safetensors`, or of the shards that its index names.

    Raises UpstreamError when a file is missing or damaged, or a shard lacks a tensor that the index says it has.
    """
    single, index = folder / SINGLE_WEIGHTS, folder / WEIGHT_INDEX
    # As in transformers, the single file wins where both exist.
    if single.is_file():
        header = read_header(single)
        return WeightHeaders(headers={SINGLE_WEIGHTS: header}, files=dict.fromkeys(header.spans, SINGLE_WEIGHTS))
    if not index.is_file():
        raise UpstreamError(
            f"{folder}: neither {SINGLE_WEIGHTS} nor {WEIGHT_INDEX}",
            hint="Only weights in safetensors files are read; never pickled ones.",
        )
    weight_map = _weight_map(index)
    headers = {name: _shard_header(folder / name) for name in sorted(set(weight_map.values()))}
    # As in transformers, a tensor that a shard holds counts even where the index does not list it.
    files = {tensor: name for name, header in headers.items() for tensor in header.spans}
    for tensor, name in weight_map.items():
        if tensor not in headers[name].spans:
            raise UpstreamError(
                f"{folder / name}: tensor {tensor!r} is missing, but {WEIGHT_INDEX} lists it",
                hint="The upload is not complete, or its index is out of date.",
            )
    return WeightHeaders(headers=headers, files=files | weight_map)


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

    Raises UpstreamError when the file is too short to hold that much.
    """
    if len(first) < LENGTH_BYTES:
        raise _damaged(where, f"{len(first)} bytes are not a safetensors file")
    length: int = struct.unpack("<Q", first[:LENGTH_BYTES])[0]
    if length > MAX_HEADER_BYTES or length > file_bytes - LENGTH_BYTES:
        raise _damaged(where, f"the header claims {length} bytes, the file has {file_bytes}")
    return length


def parse_header(text: bytes, *, file_bytes: int, where: str) -> Header:
    """Every tensor of the file, its byte range checked against the file's size, gaps and overlaps.

    Raises UpstreamError for anything that the safetensors library would not load either.
    """
    try:
        entries = json.loads(text, object_pairs_hook=_no_duplicates)
    except (ValueError, RecursionError) as error:
        raise _damaged(where, f"the header is not JSON: {error}") from None
    if not isinstance(entries, dict):
        raise _damaged(where, "the header is not a JSON object")
    metadata = entries.pop("__metadata__", None) or {}
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise _damaged(where, "__metadata__ is not a map of strings")
    base = LENGTH_BYTES + len(text)
    spans = {name: _span(name, entry, base, where) for name, entry in entries.items()}
    _check_coverage(spans, base, file_bytes, where)
    return Header(spans=spans, metadata=metadata)


def _weight_map(index: Path) -> dict[str, str]:
    weight_map = parse_object(index.read_bytes(), where=str(index)).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise UpstreamError(f"{index}: no weight_map", hint=_BROKEN_INDEX)
    for tensor, name in weight_map.items():
        # The index is untrusted: a shard lies beside it, nowhere else.
        if not isinstance(name, str) or not _is_plain_name(name):
            raise UpstreamError(
                f"{index}: tensor {tensor!r} points outside the folder, to {name!r}", hint=_BROKEN_INDEX
            )
    return weight_map


def _is_plain_name(name: str) -> bool:
    return (
        name not in {"", ".", ".."} and PurePosixPath(name).name == name == PureWindowsPath(name).name
    ) and "\0" not in name


def _shard_header(path: Path) -> Header:
    if not path.is_file():
        raise UpstreamError(f"{path}: missing, though {WEIGHT_INDEX} names it", hint="The upload is not complete.")
    return read_header(path)


def _span(name: str, entry: Any, base: int, where: str) -> Span:
    try:
        dtype, shape, (start, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
    except (KeyError, TypeError, ValueError):
        raise _damaged(where, f"the entry of tensor {name!r} is incomplete") from None
    if dtype not in ITEM_BYTES:
        raise _damaged(where, f"tensor {name!r} has the unknown dtype {dtype!r}")
    numbers = [*shape, start, end] if isinstance(shape, list) else [None]
    # bool is a subclass of int in Python.
    if not all(type(number) is int and number >= 0 for number in numbers):
        raise _damaged(where, f"tensor {name!r} has an invalid shape or offsets")
    if end - start != prod(shape) * ITEM_BYTES[dtype]:
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


def _damaged(where: str, what: str) -> UpstreamError:
    return UpstreamError(f"{where}: {what}", hint="The file is damaged or incomplete; download it again.")
