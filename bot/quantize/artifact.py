"""Make a complete AWQ folder from a source folder: open, quantize the layers, assemble, check."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path

import torch
from torch import Tensor

import bot
from bot.checkpoint.config import artifact_config, open_config
from bot.checkpoint.constants import QUANTIZER_VERSIONS, SAFETENSORS_NAMES, ArtifactDtype, tool_versions
from bot.checkpoint.device import best_device, device_name, enough_memory
from bot.checkpoint.header import kept_float32, main_dtype
from bot.checkpoint.inventory import bits_per_weight, bits_per_weight_file, check_inventory
from bot.checkpoint.reader import TORCH_DTYPES, Checkpoint, TensorFile
from bot.checkpoint.repo_files import carry_small_files
from bot.checkpoint.skeleton import open_skeleton, unused_tensors
from bot.checkpoint.writer import Part, copy_of, part_of, write_checkpoint
from bot.errors import QuantizationError, UnsupportedModelError
from bot.files import atomic_folder, describe_folder, disk_errors, file_sha256, write_atomic
from bot.quantize import architectures, destination
from bot.quantize.autoawq import LayerwiseQuantizer, quantize_layers
from bot.quantize.compensated import CompensatedQuantizer
from bot.quantize.layerfile import FinishedLayer
from bot.quantize.walk import QuantizeContext
from bot.records import (
    CalibrationSet,
    Progress,
    QuantizedModel,
    Recipe,
    TensorInfo,
    byte_counter,
    sha256_of,
)

METHODS: dict[str, type[LayerwiseQuantizer]] = {"awq+gptq": CompensatedQuantizer, "awq": LayerwiseQuantizer}
# Half of float16's maximum: on other text activations may be larger than on the calibration blocks.
FP16_PEAK = torch.finfo(torch.float16).max / 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """The source as read before its weights are loaded."""

    folder: Path
    config: bytes
    checkpoint: Checkpoint
    dtype: str
    trust_remote_code: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantizedLayers:
    """linears: the stored names of the quantized linears, without `.weight`.

    tensors: the source's, as the artifact has them before they are packed; unused: those that the model does not
    have. listed: see selection.Selection, by stored names.
    """

    layers: tuple[FinishedLayer, ...]
    linears: tuple[str, ...]
    tensors: Mapping[str, TensorInfo]
    unused: frozenset[str]
    listed: tuple[str, ...]


def quantize(
    source: Path,
    out: Path,
    *,
    layers: Path,
    recipe: Recipe,
    blocks: Tensor,
    calibration: CalibrationSet,
    trust_remote_code: bool,
    progress: Progress,
    planned: Collection[str] = (),
    with_record: bool = False,
    device: str | None = None,
) -> QuantizedModel:
    """Quantize the model in source and write a complete AWQ folder; out appears only when it is complete.

    layers: the folder for one file per finished layer; those of an earlier run with the same input are used again.
    blocks: token ids, int64 [samples, seq_len]; calibration: where they come from. planned: see
    `carry_small_files`. with_record: write a record of the files beside out, so that a later run may replace it.
    device: None for CUDA where it is available.
    The same input gives the same bytes on the same machine. Raises UpstreamError, UnsupportedModelError and
    WatchlistError for what cannot be quantized, QuantizationError for numbers that are not finite,
    EnvironmentProblem for a full disk or memory.
    """
    started, target = time.monotonic(), torch.device(device) if device else best_device()
    destination.check_replaceable(out)
    opened = _open(source, recipe, trust_remote_code)
    weights = _weight_hashes(opened, progress)
    fingerprint = _fingerprint(opened, weights, recipe, calibration, target)
    done = _quantize_layers(
        opened, layers, recipe=recipe, blocks=blocks, fingerprint=fingerprint, device=target, progress=progress
    )
    dtype = artifact_dtype(opened.dtype, done.layers)
    with atomic_folder(out) as folder:
        carry_small_files(source, folder, trust_remote_code=trust_remote_code, planned=planned)
        artifact = _write(folder, opened, done, recipe, dtype)
        written_bytes = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        files = describe_folder(folder, byte_counter(progress, "hashing the artifact", written_bytes))
        if with_record:
            written = destination.Written(source_sha256=_source_sha256(opened, weights), files=files)
            destination.write_record(out, written)
    quantized_parameters = sum(prod(done.tensors[f"{linear}.weight"].shape) for linear in done.linears)
    return QuantizedModel(
        folder=out.name,
        files=files,
        recipe=recipe,
        calibration=calibration,
        artifact_dtype=dtype,
        modules_to_not_convert=done.listed,
        modules=tuple(module for layer in done.layers for module in layer.measured.modules),
        quantized_parameters=quantized_parameters,
        bits_per_weight=bits_per_weight(artifact.tensors),
        bits_per_weight_file=bits_per_weight_file(done.tensors, artifact.tensors, done.unused),
        versions=tool_versions(),
        device=device_name(target),
        duration_s=time.monotonic() - started,
        layer_durations_s=tuple(layer.measured.duration_s for layer in done.layers),
        experts=tuple(tokens for layer in done.layers for tokens in layer.measured.experts),
    )


def check_folders(
    source: Path,
    out: Path,
    *,
    recipe: Recipe,
    trust_remote_code: bool,
    progress: Progress,
    with_record: bool = False,
) -> None:
    """Raises what quantize() would raise at once, before time is spent on calibration text.

    with_record: also when out exists and its record does not show that it may be replaced.
    """
    destination.check_replaceable(out)
    opened = _open(source, recipe, trust_remote_code)
    if with_record:
        destination.check_ours(out, lambda: _source_sha256(opened, _weight_hashes(opened, progress)))


def _open(folder: Path, recipe: Recipe, trust_remote_code: bool) -> Source:
    if (recipe.bits, recipe.zero_point, recipe.version) != (4, True, "gemm") or recipe.method not in METHODS:
        raise UnsupportedModelError(f"only 4-bit GEMM checkpoints with zero points are supported, not {recipe}")
    config, _ = open_config(folder)
    checkpoint = Checkpoint(folder)
    return Source(
        folder=folder,
        config=config,
        checkpoint=checkpoint,
        dtype=main_dtype(checkpoint.tensors),
        trust_remote_code=trust_remote_code,
    )


def _quantize_layers(
    source: Source,
    folder: Path,
    *,
    recipe: Recipe,
    blocks: Tensor,
    fingerprint: str,
    device: torch.device,
    progress: Progress,
) -> QuantizedLayers:
    progress("loading", 0, 1, "model")
    # float16 on a CPU is about ten times slower than float32.
    dtype = torch.float32 if device.type == "cpu" else TORCH_DTYPES[source.dtype]
    tensors = source.checkpoint.tensors
    skeleton = open_skeleton(
        source.folder,
        tensors,
        read=source.checkpoint.read,
        dtype=dtype,
        trust_remote_code=source.trust_remote_code,
        equal=source.checkpoint.equal,
    )
    selection = architectures.select(skeleton, recipe)
    linears = tuple(skeleton.name_of(name) for name in selection.packed)
    written = skeleton.tensors_as_written(tensors, linears)
    architectures.check_dtypes({name: written[f"{name}.weight"] for name in linears})
    architectures.check_blocks(blocks, skeleton.model)
    progress("loading", 1, 1, "model")
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    context = QuantizeContext(
        skeleton=skeleton,
        blocks=blocks,
        linears_to_quantize=frozenset(selection.packed),
        folder=folder,
        fingerprint=fingerprint,
        device=device,
        recipe=recipe,
        progress=progress,
    )
    hint = "Use a larger machine, or fewer calibration samples. Finished layers are kept."
    with enough_memory(device, source.folder, to="quantize", hint=hint):
        return QuantizedLayers(
            layers=quantize_layers(context, quantizer=METHODS[recipe.method]),
            linears=linears,
            tensors=written,
            unused=unused_tensors(skeleton.origins, tensors),
            listed=architectures.listed_names(skeleton, selection, written),
        )


def _weight_hashes(source: Source, progress: Progress) -> list[str]:
    paths = [source.folder / name for name in source.checkpoint.weight_files]
    count = byte_counter(progress, "hashing the source", sum(path.stat().st_size for path in paths))
    return [file_sha256(path, count) for path in paths]


def _source_sha256(source: Source, weights: list[str]) -> str:
    return sha256_of([weights, source.config.decode()])


def _fingerprint(
    source: Source, weights: list[str], recipe: Recipe, calibration: CalibrationSet, device: torch.device
) -> str:
    """Changes with everything that a finished layer depends on."""
    config = source.config.decode()
    # The hash of the calibration is over its tokens in order, whatever the shape of the blocks.
    text = [calibration.sha256, calibration.samples, calibration.seq_len]
    versions = [tool_versions(), bot.__version__, QUANTIZER_VERSIONS[recipe.method]]
    return sha256_of([weights, config, recipe, text, versions, device_name(device)])


def _write(
    folder: Path, source: Source, done: QuantizedLayers, recipe: Recipe, dtype: ArtifactDtype
) -> Checkpoint:
    """Write weights and config.json of the artifact, and check the tensors as read back."""
    name = SAFETENSORS_NAMES[dtype]
    parts = artifact_parts(source.checkpoint, done.layers, done.tensors, dtype=name, unused=done.unused)
    write_checkpoint(folder, parts)
    config = artifact_config(
        source.config,
        recipe=recipe,
        modules_to_not_convert=done.listed,
        artifact_dtype=dtype,
        trust_remote_code=source.trust_remote_code,
    )
    write_atomic(folder / "config.json", config)
    artifact = Checkpoint(folder)
    check_inventory(
        done.tensors,
        artifact.tensors,
        artifact_dtype=name,
        group_size=recipe.group_size,
        quantized=done.linears,
        unused=done.unused,
    )
    return artifact


def artifact_dtype(source_dtype: str, layers: Sequence[FinishedLayer]) -> ArtifactDtype:
    """float16, which every reader supports, or bfloat16 where the source has it and the activations need it.

    Raises QuantizationError when the activations need it and the source does not have it.
    """
    index, peak = max(enumerate(layer.measured.max_activation for layer in layers), key=lambda item: item[1])
    if peak <= FP16_PEAK:
        return "float16"
    if source_dtype == "BF16":
        return "bfloat16"
    raise QuantizationError(
        f"layer {index}: activations reach {peak:.4g}, too close to float16's maximum, in a {source_dtype} model",
        hint="Readers would compute wrong numbers. Only a bfloat16 source can be published as bfloat16.",
    )


def artifact_parts(
    source: Checkpoint,
    layers: Sequence[FinishedLayer],
    tensors: Collection[str],
    *,
    dtype: str,
    unused: Collection[str],
) -> Iterator[Part]:
    """Every tensor of the artifact in this order, each from the file that holds it.

    tensors: the names before packing. unused: tensors that the model does not read; their bytes are copied, as
    their values may not fit dtype.
    """
    kept = kept_float32(source.tensors)
    layer_files: dict[str, TensorFile] = {name: layer.file for layer in layers for name in layer.file.tensors}
    for name in tensors:
        stem = name.removesuffix(".weight")
        if name in unused:
            yield copy_of(source, name)
        elif name in layer_files:
            yield part_of(layer_files[name], name, dtype=None if name in kept else dtype)
        elif stem != name and f"{stem}.qweight" in layer_files:
            for part in ("qweight", "qzeros", "scales"):
                yield part_of(layer_files[f"{stem}.{part}"], f"{stem}.{part}")
        else:
            yield part_of(source, name, dtype=None if name in kept else dtype)
