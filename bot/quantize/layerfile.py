"""One file per finished layer: what makes a killed job go on where it stopped."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from bot.checkpoint.reader import TensorFile
from bot.checkpoint.writer import write_tensors
from bot.errors import UpstreamError
from bot.records import ModuleError, from_json, to_json


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What was seen in one layer. peak: the largest absolute activation."""

    modules: tuple[ModuleError, ...]
    peak: float


@dataclass(frozen=True, slots=True, kw_only=True)
class FinishedLayer:
    """file: packed linears as a reader wants them, everything else of the layer in float32."""

    file: TensorFile
    measured: Measured


def layer_path(folder: Path, index: int) -> Path:
    return folder / f"layer-{index:05d}.safetensors"


def write_layer(path: Path, tensors: Mapping[str, Tensor], *, key: str, measured: Measured) -> None:
    """key: names the source, the recipe, the calibration and the tools that this layer was made with."""
    write_tensors(path, tensors, metadata={"key": key, "measured": to_json(measured)})


def finished_layer(path: Path, *, key: str) -> FinishedLayer | None:
    """The layer, when its file is there, complete, and made with this key."""
    if not path.is_file():
        return None
    try:
        file = TensorFile(path)
    except UpstreamError:  # a damaged file is made again
        return None
    if file.metadata.get("key") != key:
        return None
    return FinishedLayer(file=file, measured=from_json(Measured, file.metadata["measured"]))
