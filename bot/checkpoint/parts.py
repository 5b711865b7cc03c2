"""One tensor on its way into an artifact: what it will be called, and its bytes, a chunk at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from math import prod
from typing import Protocol

import torch
from torch import Tensor

from bot.checkpoint.header import ITEM_BYTES
from bot.checkpoint.reader import TORCH_DTYPES
from bot.errors import QuantizationError
from bot.records import TensorInfo

FLOATS = frozenset({"F64", "F32", "F16", "BF16"})


class Chunked(Protocol):
    """A TensorFile or a Checkpoint."""

    @property
    def tensors(self) -> Mapping[str, TensorInfo]: ...

    def chunks(self, name: str, *, chunk_bytes: int = ...) -> Iterator[bytearray]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """info: as it will be written; content: opens its bytes anew at every call."""

    info: TensorInfo
    content: Callable[[], Iterator[bytes | bytearray | memoryview]]

    @property
    def size_bytes(self) -> int:
        return prod(self.info.shape) * ITEM_BYTES[self.info.dtype]


def copy_of(source: Chunked, name: str) -> Part:
    """The tensor's bytes, whatever they mean."""
    return Part(info=source.tensors[name], content=lambda: source.chunks(name))


def part_of(source: Chunked, name: str, *, dtype: str | None = None) -> Part:
    """The tensor's bytes, its floats converted to dtype (F16 or BF16); integers and dtype=None: unchanged.

    While it is written it raises QuantizationError for a value that is not finite, or not in dtype any more.
    """
    info = source.tensors[name]
    if info.dtype not in FLOATS:
        return copy_of(source, name)
    target = dtype or info.dtype
    return Part(
        info=TensorInfo(name=name, dtype=target, shape=info.shape),
        content=lambda: _converted(source, name, info.dtype, target),
    )


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
