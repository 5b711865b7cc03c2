"""From the source and the finished layers to the artifact's folder."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Literal

import torch

from bot.checkpoint.parts import Part, copy_of, part_of
from bot.checkpoint.reader import Checkpoint, TensorFile
from bot.errors import QuantizationError
from bot.quantize.layerfile import FinishedLayer
from bot.records import PublishedFile

ArtifactDtype = Literal["float16", "bfloat16"]
SAFETENSORS_NAMES: dict[ArtifactDtype, str] = {"float16": "F16", "bfloat16": "BF16"}

# Half of what float16 holds: other text will reach further than the calibration blocks did.
FP16_PEAK = torch.finfo(torch.float16).max / 2


def artifact_dtype(source_dtype: str, layers: Sequence[FinishedLayer]) -> ArtifactDtype:
    """float16, which every reader takes; bfloat16 where the source has it and the activations need it.

    Raises QuantizationError when the activations need it and the source does not have it.
    """
    index, peak = max(enumerate(layer.measured.peak for layer in layers), key=lambda item: item[1])
    if peak <= FP16_PEAK:
        return "float16"
    if source_dtype == "BF16":
        return "bfloat16"
    raise QuantizationError(
        f"layer {index}: activations reach {peak:.4g}, too close to what float16 holds, in a {source_dtype} model",
        hint="Readers would print rubbish. Only a bfloat16 source can be published as bfloat16.",
    )


def artifact_parts(
    source: Checkpoint, layers: Sequence[FinishedLayer], *, dtype: str, unread: Collection[str]
) -> Iterator[Part]:
    """Every tensor of the artifact in the source's order, each from the file that holds it.

    unread: what the model does not read, and dtype may not hold; its bytes are copied.
    """
    made: dict[str, TensorFile] = {name: layer.file for layer in layers for name in layer.file.tensors}
    for name in source.tensors:
        stem = name.removesuffix(".weight")
        if name in unread:
            yield copy_of(source, name)
        elif name in made:
            yield part_of(made[name], name, dtype=dtype)
        elif stem != name and f"{stem}.qweight" in made:
            for part in ("qweight", "qzeros", "scales"):
                yield part_of(made[f"{stem}.{part}"], f"{stem}.{part}")
        else:
            yield part_of(source, name, dtype=dtype)


def described_files(folder: Path) -> tuple[PublishedFile, ...]:
    """Every file of the folder with its size and sha256, by path."""
    return tuple(
        PublishedFile(
            path=path.relative_to(folder).as_posix(), size_bytes=path.stat().st_size, sha256=file_sha256(path)
        )
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    )


def file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
