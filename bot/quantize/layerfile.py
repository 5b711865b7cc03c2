"""The files of each layer: its hidden states, and the finished layer. A killed job resumes from them.

Hidden states are read and written a few blocks at a time. They are not synced: if a power cut damages them, the
hash does not match and they are computed again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path

import torch
from torch import Tensor, nn

from bot.checkpoint.gemm import Packed, dequantize
from bot.checkpoint.reader import DTYPE_NAMES, TORCH_DTYPES, TensorFile
from bot.checkpoint.skeleton import Skeleton
from bot.checkpoint.writer import write_tensors
from bot.errors import UpstreamError
from bot.files import disk_errors, file_sha256
from bot.records import ExpertTokens, ModuleError, from_json, to_json


@dataclass(frozen=True, slots=True, kw_only=True)
class HiddenStates:
    """shape: [samples, seq_len, hidden]; dtype as safetensors writes it; sha256 over the values in their order.

    peak: the largest absolute value, NaN where there is one.
    """

    shape: tuple[int, ...]
    dtype: str
    sha256: str
    peak: float

    def read(self, path: Path, *, blocks: int) -> Iterator[Tensor]:
        """Some blocks at a time, on the CPU."""
        dtype = TORCH_DTYPES[self.dtype]
        with path.open("rb") as file:
            for start in range(0, self.shape[0], blocks):
                shape = (min(blocks, self.shape[0] - start), *self.shape[1:])
                content = bytearray(prod(shape) * dtype.itemsize)
                file.readinto(content)
                yield torch.frombuffer(content, dtype=dtype).view(shape)

    def is_at(self, path: Path) -> bool:
        """Whether the file exists and holds exactly these values."""
        if not path.is_file():
            return False
        return file_sha256(path) == self.sha256


def hidden_path(folder: Path, index: int) -> Path:
    """The file of the inputs of layer `index`."""
    return folder / f"hidden-{index:05d}.bin"


def quantized_path(folder: Path, index: int) -> Path:
    """The file of the inputs of layer `index` where those before it are quantized; none are before the first."""
    return folder / f"quantized-{index:05d}.bin" if index else hidden_path(folder, index)


def write_hidden(path: Path, parts: Iterable[Tensor]) -> HiddenStates:
    """Write parts, [blocks, seq_len, hidden] each. Raises EnvironmentProblem when the disk is full."""
    digest, written = hashlib.sha256(), []
    try:
        with disk_errors(path), path.open("wb") as file:
            for part in parts:
                plain = part.detach().cpu().contiguous()
                content = plain.view(-1).view(torch.uint8).numpy().data
                digest.update(content)
                file.write(content)
                written.append((plain.shape, plain.dtype, largest(plain)))
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    shapes, dtypes, peaks = zip(*written, strict=True)
    return HiddenStates(
        shape=(sum(shape[0] for shape in shapes), *shapes[0][1:]),
        dtype=DTYPE_NAMES[dtypes[0]],
        sha256=digest.hexdigest(),
        peak=float(torch.tensor(peaks).max()),  # NaN where there is one
    )


def largest(values: Tensor) -> float:
    """The largest absolute value, NaN where there is one; without a second tensor of that size."""
    low, high = torch.aminmax(values)
    return float(torch.maximum(low.abs(), high.abs()))


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """Measurements of one layer. max_activation: the largest absolute value."""

    modules: tuple[ModuleError, ...]
    max_activation: float
    duration_s: float
    experts: tuple[ExpertTokens, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class FinishedLayer:
    """file: the layer's tensors, linears packed and everything else in float32. outputs: of the source's layer;
    quantized_outputs: of this one, if they are followed.
    """

    file: TensorFile
    measured: Measured
    outputs: HiddenStates
    quantized_outputs: HiddenStates | None


def layer_path(folder: Path, index: int) -> Path:
    return folder / f"layer-{index:05d}.safetensors"


def write_layer(
    path: Path,
    tensors: Mapping[str, Tensor],
    *,
    fingerprint: str,
    measured: Measured,
    outputs: HiddenStates,
    quantized_outputs: HiddenStates | None = None,
) -> None:
    """fingerprint: changes with source, recipe, calibration and tool versions."""
    notes = {
        "fingerprint": fingerprint,
        "measured": to_json(measured),
        "outputs": to_json(outputs),
        "quantized_outputs": to_json(quantized_outputs) if quantized_outputs else "",
        "sha256": _digest(tensors),
    }
    write_tensors(path, tensors, metadata=notes)


def open_layer(path: Path) -> FinishedLayer:
    """Raises UpstreamError when the file is damaged."""
    file = TensorFile(path)
    return FinishedLayer(
        file=file,
        measured=from_json(Measured, file.metadata["measured"]),
        outputs=from_json(HiddenStates, file.metadata["outputs"]),
        quantized_outputs=from_json(HiddenStates, noted)
        if (noted := file.metadata["quantized_outputs"])
        else None,
    )


@torch.no_grad()
def load_quantized(layer: nn.Module, path: str, file: TensorFile, skeleton: Skeleton) -> None:
    """Replace a layer's weights by those of its file, as a reader of the artifact has them. path: the layer's."""
    for key, value in layer.state_dict().items():
        origin = skeleton.origins.get(f"{path}.{key}")
        if origin is None:
            continue
        stem = origin.name.removesuffix(".weight")
        if f"{stem}.qweight" in file.tensors:
            value.copy_(dequantize(*(file.read(f"{stem}.{part}") for part in Packed._fields)))
        elif origin.name in file.tensors:
            value.copy_(file.read(origin.name))


def finished_layer(path: Path, *, fingerprint: str) -> FinishedLayer | None:
    """The layer, if its file exists, is undamaged, and has this fingerprint."""
    if not path.is_file():
        return None
    try:
        file = TensorFile(path)
        if file.metadata.get("fingerprint") != fingerprint or file.metadata.get("sha256") != _digest(
            {name: file.read(name) for name in file.tensors}
        ):
            return None
    except UpstreamError:  # a damaged file is written again
        return None
    return open_layer(path)


def _digest(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(tensors[name].detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
