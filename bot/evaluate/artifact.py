"""The artifact as it lies on disk: opened, checked against its source, restored to full weights, and weighed."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

from torch import Tensor

from bot.checkpoint import gemm
from bot.checkpoint.config import DTYPE_KEYS, parse_config
from bot.checkpoint.inventory import Inventory, check_inventory
from bot.checkpoint.reader import Checkpoint
from bot.errors import QuantizationError, UpstreamError

_DTYPES = {"float16": "F16", "bfloat16": "BF16"}


def open_artifact(folder: Path, source: Inventory, *, unread: Collection[str]) -> Checkpoint:
    """The artifact's weights, once names, shapes, dtypes and group size are what source and config.json say.

    unread: the source's tensors that its model has no place for. Raises QuantizationError, also for what the
    reader calls a damaged upload: here the upload would be ours.
    """
    path = folder / "config.json"
    try:
        config = parse_config(path.read_bytes(), where=str(path))
        artifact = Checkpoint(folder)
    except UpstreamError as error:
        raise QuantizationError(f"artifact: {error}", hint="Quantize again.") from error
    except OSError as error:
        reason = f"{path}: cannot be read: {error.strerror}"
        raise QuantizationError(f"artifact: {reason}", hint="Quantize again.") from error
    check_inventory(
        source,
        artifact.tensors,
        artifact_dtype=_artifact_dtype(config, path),
        group_size=_group_size(config, path),
        unread=unread,
    )
    return artifact


def restored(artifact: Checkpoint, name: str) -> Tensor:
    """A tensor under the source's name: packed linears in float32, the others in their own dtype."""
    linear = name.removesuffix(".weight")
    if f"{linear}.qweight" not in artifact.tensors:
        return artifact.read(name)
    return gemm.dequantize(*(artifact.read(f"{linear}.{part}") for part in gemm.Packed._fields))


def size_bytes(checkpoint: Checkpoint) -> int:
    """Of the weight files on disk, headers included."""
    return sum((checkpoint.folder / name).stat().st_size for name in checkpoint.weight_files)


def _artifact_dtype(config: dict[str, Any], path: Path) -> str:
    named = next((config[key] for key in DTYPE_KEYS if key in config), None)
    if not isinstance(named, str) or named not in _DTYPES:
        raise QuantizationError(
            f"artifact: {path}: dtype {named!r} is neither float16 nor bfloat16", hint="Quantize again."
        )
    return _DTYPES[named]


def _group_size(config: dict[str, Any], path: Path) -> int:
    """What readers take from config.json to unpack with, so that is what the tensors are held against."""
    written = config.get("quantization_config")
    if not isinstance(written, dict):
        raise QuantizationError(f"artifact: {path}: no quantization_config", hint="This is no AWQ checkpoint.")
    for key, wanted in {"quant_method": "awq", "bits": gemm.BITS, "version": "gemm"}.items():
        if written.get(key) != wanted:
            raise QuantizationError(
                f"artifact: {path}: quantization_config.{key} is {written.get(key)!r}, not {wanted!r}",
                hint="This is no AWQ GEMM checkpoint.",
            )
    group_size = written.get("group_size")
    if type(group_size) is not int or group_size <= 0:
        raise QuantizationError(
            f"artifact: {path}: quantization_config.group_size is {group_size!r}", hint="Quantize again."
        )
    return group_size
