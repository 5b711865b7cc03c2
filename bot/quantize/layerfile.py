"""One file per finished layer: what makes a killed job go on where it stopped."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from bot.checkpoint.reader import TensorFile
from bot.checkpoint.writer import write_tensors
from bot.errors import UpstreamError
from bot.quantize.hidden import HiddenStates
from bot.records import ModuleError, from_json, to_json


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What was seen in one layer. peak: the largest absolute activation."""

    modules: tuple[ModuleError, ...]
    peak: float
    duration_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class FinishedLayer:
    """file: packed linears as a reader wants them, everything else of the layer in float32.

    outputs: what the source's layer gave to the next one.
    """

    file: TensorFile
    measured: Measured
    outputs: HiddenStates


def layer_path(folder: Path, index: int) -> Path:
    return folder / f"layer-{index:05d}.safetensors"


def write_layer(
    path: Path, tensors: Mapping[str, Tensor], *, key: str, measured: Measured, outputs: HiddenStates
) -> None:
    """key: names the source, the recipe, the calibration and the tools that this layer was made with."""
    notes = {"key": key, "measured": to_json(measured), "outputs": to_json(outputs), "sha256": _digest(tensors)}
    write_tensors(path, tensors, metadata=notes)


def open_layer(path: Path) -> FinishedLayer:
    """Raises UpstreamError when the file is damaged."""
    file = TensorFile(path)
    return FinishedLayer(
        file=file,
        measured=from_json(Measured, file.metadata["measured"]),
        outputs=from_json(HiddenStates, file.metadata["outputs"]),
    )


def finished_layer(path: Path, *, key: str) -> FinishedLayer | None:
    """The layer, when its file is there, whole to the last bit, and made with this key."""
    if not path.is_file():
        return None
    try:
        file = TensorFile(path)
        if file.metadata.get("key") != key or file.metadata.get("sha256") != _digest(
            {name: file.read(name) for name in file.tensors}
        ):
            return None
    except UpstreamError:  # a damaged file is made again
        return None
    return open_layer(path)


def _digest(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(tensors[name].detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
