"""Which files hold the weights of a model, and which tensors: one rule for the plan and for reading. No torch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bot.checkpoint.config import parse_object
from bot.checkpoint.header import Header, read_header
from bot.checkpoint.repo_files import SINGLE_WEIGHTS, WEIGHT_INDEX, is_safe_path
from bot.errors import UpstreamError
from bot.records import TensorInfo

# Bounds for what others wrote; see MAX_FILE_TENSORS. The largest models have a few hundred files.
MAX_SHARDS = 1000
MAX_TENSORS = 500_000
_MAX_HEADER_BYTES = 200_000_000

_BROKEN_INDEX = "The index is broken; look at it upstream."


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightHeaders:
    """A model's headers by file name. files: for each tensor the name of the file that holds it."""

    headers: dict[str, Header]
    files: dict[str, str]

    @property
    def tensors(self) -> dict[str, TensorInfo]:
        return {tensor: self.headers[name].spans[tensor].info for tensor, name in self.files.items()}


def read_weight_headers(folder: Path) -> WeightHeaders:
    """The headers of `model.safetensors`, or of the shards that its index names.

    Raises UpstreamError when a file is missing or damaged.
    """
    # As in transformers, the single file wins where both exist.
    if (folder / SINGLE_WEIGHTS).is_file():
        return collect_headers([SINGLE_WEIGHTS], lambda name: read_header(folder / name))
    index = folder / WEIGHT_INDEX
    if not index.is_file():
        raise UpstreamError(
            f"{folder}: neither {SINGLE_WEIGHTS} nor {WEIGHT_INDEX}",
            hint="Only weights in safetensors files are read; never pickled ones.",
        )
    names = shard_names(parse_object(index.read_bytes(), where=str(index)), where=str(index))
    return collect_headers(names, lambda name: _shard_header(folder / name))


def collect_headers(names: Iterable[str], read: Callable[[str], Header]) -> WeightHeaders:
    """What the files hold together. names: in the order of shard_names.

    As in transformers, only the files count, not what an index says of single tensors: a tensor that is in several
    files is that of the last one. Raises UpstreamError for more tensors than any model has.
    """
    headers: dict[str, Header] = {}
    files: dict[str, str] = {}
    count = size_bytes = 0
    for name in names:
        headers[name] = header = read(name)
        files |= dict.fromkeys(header.spans, name)
        count += len(header.spans)
        size_bytes += header.size_bytes
        if count > MAX_TENSORS or size_bytes > _MAX_HEADER_BYTES:
            raise UpstreamError(
                f"{name}: with the files before it {count} tensors in {size_bytes} bytes of headers",
                hint=f"No known model has more than {MAX_TENSORS} tensors.",
            )
    return WeightHeaders(headers=headers, files=files)


def shard_names(index: Mapping[str, Any], *, where: str) -> tuple[str, ...]:
    """The weight files that an index names, sorted, which is the order in which transformers reads them.

    They may be in folders. Raises UpstreamError when the index is broken.
    """
    weight_map = index.get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise UpstreamError(f"{where}: no weight_map", hint=_BROKEN_INDEX)
    for name in weight_map.values():
        # The index is untrusted: what it names lies beside it, and is not what the Hub's client keeps there.
        if not isinstance(name, str) or not is_safe_path(name) or name.startswith(".") or "/." in name:
            raise UpstreamError(f"{where}: names {name!r}, which is no file in this folder", hint=_BROKEN_INDEX)
        if not name.endswith(".safetensors"):
            raise UpstreamError(f"{where}: names {name!r}, which is not a safetensors file", hint=_BROKEN_INDEX)
    names = tuple(sorted(set(weight_map.values())))
    if len(names) > MAX_SHARDS:
        raise UpstreamError(f"{where}: names {len(names)} files", hint=f"At most {MAX_SHARDS} are read.")
    return names


def unheld_tensors(index: Mapping[str, Any], files: Mapping[str, str]) -> list[str]:
    """What an index lists and no file holds; transformers ignores that where the model does not need it."""
    return [tensor for tensor in index["weight_map"] if tensor not in files]


def _shard_header(path: Path) -> Header:
    if not path.is_file():
        raise UpstreamError(f"{path}: missing, though {WEIGHT_INDEX} names it", hint="The upload is not complete.")
    return read_header(path)
