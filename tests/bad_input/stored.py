"""The small model's files with one thing changed: weights, written byte by byte where need be, and JSON."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import numpy as np
from safetensors.numpy import save

from tests.bad_input.case import Change
from tests.support.sandbox import ASSETS
from tests.support.small_sandbox import CONFIG, WEIGHTS, small_weights

INDEX = "model.safetensors.index.json"
SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
EMBEDDING, HEAD, NORM = "model.embed_tokens.weight", "lm_head.weight", "model.norm.weight"
FIRST = "model.layers.0.mlp.down_proj.weight"  # a linear

Array = np.ndarray[Any, Any]
Arrays = dict[str, Array]


@cache
def _arrays() -> Arrays:
    return small_weights()


def weights(
    changed: Mapping[str, Callable[[Arrays], Array]] | None = None, *, without: tuple[str, ...] = ()
) -> Callable[[], bytes]:
    """model.safetensors without some tensors, and with others that are made by functions of all."""

    def make() -> bytes:
        arrays = {name: array for name, array in _arrays().items() if name not in without}
        return save(arrays | {name: value(_arrays()) for name, value in (changed or {}).items()})

    return make


def filled(name: str, value: float) -> Callable[[Arrays], Array]:
    """The tensor of this name with one value in all places."""
    return lambda arrays: np.full_like(arrays[name], value)


def another(name: str) -> Callable[[Arrays], Array]:
    """A tensor of the same shape with other values."""

    def make(arrays: Arrays) -> Array:
        return np.asarray(np.random.default_rng(7).normal(0, 0.05, arrays[name].shape), dtype="f2")

    return make


def same(name: str) -> Callable[[Arrays], Array]:
    return lambda arrays: arrays[name]


def converted(name: str, dtype: type) -> Callable[[Arrays], Array]:
    return lambda arrays: arrays[name].astype(dtype)


def with_raw(
    entries: Mapping[str, Mapping[str, Any]], *, size_bytes: int | None = None, metadata: object = None
) -> Callable[[], bytes]:
    """model.safetensors with entries appended to its header as they are; data_offsets count from the end.

    size_bytes: of what they refer to, by default what their last offset says.
    """

    def make() -> bytes:
        whole = save(_arrays())
        length = int.from_bytes(whole[:8], "little")
        header, data = json.loads(whole[8 : 8 + length]), whole[8 + length :]
        end = len(data)
        for name, entry in entries.items():
            offsets = entry.get("data_offsets")
            moved = {"data_offsets": [end + offset for offset in offsets]} if isinstance(offsets, list) else {}
            header[name] = {**entry, **moved}
        if metadata is not None:
            header["__metadata__"] = metadata
        more = size_bytes
        if more is None:
            more = max(
                (entry["data_offsets"][1] for entry in entries.values() if "data_offsets" in entry), default=0
            )
        return framed(json.dumps(header).encode(), data + b"\1" * more)

    return make


def framed(header: bytes, data: bytes = b"", *, length: int | None = None) -> bytes:
    """A safetensors file of a header as it is. length: what its first eight bytes claim, if not the truth."""
    return (len(header) if length is None else length).to_bytes(8, "little") + header + data


def sharded(
    *, index: Callable[[dict[str, str]], dict[str, str]] = dict, folder: str = "", keep_single: bool = False
) -> dict[str, Change]:
    """The same weights in two shards. index: changes the weight_map; folder: where the shards lie."""
    names = sorted(_arrays())
    parts = (names[: len(names) // 2], names[len(names) // 2 :])
    files: dict[str, Change] = {} if keep_single else {WEIGHTS: None}
    weight_map: dict[str, str] = {}
    for shard, part in zip(SHARDS, parts, strict=True):
        path = f"{folder}{shard}"
        files[path] = _part(tuple(part))
        weight_map |= dict.fromkeys(part, path)
    files[INDEX] = json.dumps({"metadata": {"total_size": 1}, "weight_map": index(weight_map)})
    return files


def _part(names: tuple[str, ...]) -> Callable[[], bytes]:
    return lambda: save({name: _arrays()[name] for name in names})


# --- JSON -----------------------------------------------------------------------------------------------------


def config(*, without: tuple[str, ...] = (), **changed: Any) -> str:
    """config.json with other values."""
    return json.dumps({key: value for key, value in (CONFIG | changed).items() if key not in without})


def tokenizer_config(*, without: tuple[str, ...] = (), **changed: Any) -> str:
    written = json.loads((ASSETS / "qwen3-tiny" / "tokenizer_config.json").read_text()) | changed
    return json.dumps({key: value for key, value in written.items() if key not in without})


def tokenizer(change: Callable[[dict[str, Any]], object]) -> str:
    """tokenizer.json, changed in place."""
    written = json.loads((ASSETS / "qwen3-tiny" / "tokenizer.json").read_text())
    change(written)
    return json.dumps(written)


def repeated_key(text: str, key: str, value: object) -> str:
    """A JSON object with one more member at its end, whose key may be there already."""
    return f"{text.rstrip().removesuffix('}')}, {json.dumps(key)}: {json.dumps(value)}}}"
