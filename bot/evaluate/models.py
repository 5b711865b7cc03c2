"""Source and artifact as models: opened, checked against each other, and run layer by layer on all tokens."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn

from bot.checkpoint import gemm
from bot.checkpoint.config import DTYPE_KEYS, parse_config
from bot.checkpoint.constants import BITS, SAFETENSORS_NAMES, TOKENS_AT_ONCE
from bot.checkpoint.device import best_device
from bot.checkpoint.header import main_dtype
from bot.checkpoint.inventory import Inventory, check_inventory, quantized_linears
from bot.checkpoint.layerwise import call_layer, inputs_of_layers, logits_after, output_count, run_layer
from bot.checkpoint.reader import TORCH_DTYPES, Checkpoint
from bot.checkpoint.rounding import dequantize, round_to_nearest
from bot.checkpoint.skeleton import Skeleton, load_tensors, open_skeleton, read_ahead, unload, unused_tensors
from bot.errors import QuantizationError, UpstreamError

LARGER_MACHINE: Final = "Use a larger machine; the artifact is kept."

_CPU = torch.device("cpu")


@dataclass(frozen=True, slots=True, kw_only=True)
class Models:
    """Source and artifact, without weights in memory. source_weights, artifact_weights: where these are read."""

    source: Skeleton
    artifact: Skeleton
    source_weights: Checkpoint
    artifact_weights: Checkpoint
    device: torch.device


def open_models(source: Path, quantized: Path, *, trust_remote_code: bool, device: str | None = None) -> Models:
    """Both folders, checked against each other. device: None for CUDA where it is available.

    Raises QuantizationError when the artifact's tensors do not match the source's; UpstreamError or
    UnsupportedModelError when the source cannot be loaded.
    """
    target = torch.device(device) if device else best_device()
    weights = Checkpoint(source)
    skeleton = partial(
        open_skeleton,
        source,
        weights.tensors,
        # Half precision is slow on a CPU.
        dtype=torch.float32 if target.type == "cpu" else TORCH_DTYPES[main_dtype(weights.tensors)],
        trust_remote_code=trust_remote_code,
        # Also for the artifact: what the source ties is tied there.
        equal=weights.equal,
    )
    opened = skeleton(read=weights.read)
    artifact = open_artifact(quantized, opened, weights.tensors)
    return Models(
        source=opened,
        artifact=skeleton(read=partial(read_dequantized, artifact), stored=readable_names(artifact)),
        source_weights=weights,
        artifact_weights=artifact,
        device=target,
    )


def open_artifact(folder: Path, skeleton: Skeleton, source: Inventory) -> Checkpoint:
    """The artifact's weights; their names, shapes, dtypes and group size match the source and config.json.

    skeleton: of the source. Raises QuantizationError, also for damaged files.
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
        skeleton.tensors_as_written(source, quantized_linears(artifact.tensors)),
        artifact.tensors,
        artifact_dtype=_artifact_dtype(config, path),
        group_size=_group_size(config, path),
        unused=unused_tensors(skeleton.origins, source),
    )
    return artifact


def read_dequantized(artifact: Checkpoint, name: str) -> Tensor:
    """A tensor by the source's name: packed linears are dequantized to float32, others keep their dtype."""
    linear = name.removesuffix(".weight")
    if f"{linear}.qweight" not in artifact.tensors:
        return artifact.read(name)
    return gemm.dequantize(*(artifact.read(f"{linear}.{part}") for part in gemm.Packed._fields))


def readable_names(artifact: Checkpoint) -> frozenset[str]:
    """The names that read_dequantized takes."""
    linears = quantized_linears(artifact.tensors)
    return frozenset(artifact.tensors).union(f"{linear}.weight" for linear in linears)


def round_linears(layer: nn.Module, index: int, *, skeleton: Skeleton, artifact: Inventory) -> None:
    """Plain rounding of the linears that the artifact packs, in groups of the same size; nothing is scaled.

    layer: of the source, loaded. Raises QuantizationError as round_to_nearest does.
    """
    for name, linear in layer.named_modules():
        origin = skeleton.origins.get(f"{skeleton.path}.{index}.{name}.weight")
        packed = origin.name.removesuffix(".weight") if origin else ""
        if isinstance(linear, nn.Linear) and f"{packed}.qweight" in artifact:
            columns, groups = (artifact[f"{packed}.{part}"].shape[0] for part in ("qweight", "scales"))
            weight = linear.weight.detach()
            rounded = dequantize(round_to_nearest(weight, group_size=columns // groups))
            linear.weight = nn.Parameter(rounded.to(weight.dtype), requires_grad=False)


def size_bytes(checkpoint: Checkpoint) -> int:
    """The size of the weight files on disk, headers included."""
    return sum((checkpoint.folder / name).stat().st_size for name in checkpoint.weight_files)


def _artifact_dtype(config: dict[str, Any], path: Path) -> str:
    named = next((config[key] for key in DTYPE_KEYS if key in config), None)
    if not isinstance(named, str) or named not in SAFETENSORS_NAMES:
        raise QuantizationError(
            f"artifact: {path}: dtype {named!r} is neither float16 nor bfloat16", hint="Quantize again."
        )
    return SAFETENSORS_NAMES[named]


def _group_size(config: dict[str, Any], path: Path) -> int:
    """The group size that loaders read from config.json to unpack the tensors, which are checked against it."""
    written = config.get("quantization_config")
    if not isinstance(written, dict):
        raise QuantizationError(f"artifact: {path}: no quantization_config", hint="This is not an AWQ checkpoint.")
    for key, wanted in {"quant_method": "awq", "bits": BITS, "version": "gemm"}.items():
        if written.get(key) != wanted:
            raise QuantizationError(
                f"artifact: {path}: quantization_config.{key} is {written.get(key)!r}, not {wanted!r}",
                hint="This is not an AWQ GEMM checkpoint.",
            )
    group_size = written.get("group_size")
    if type(group_size) is not int or group_size <= 0:
        raise QuantizationError(
            f"artifact: {path}: quantization_config.group_size is {group_size!r}", hint="Quantize again."
        )
    return group_size


@dataclass(frozen=True, slots=True, kw_only=True)
class FinalStates:
    """A model whose layers have run on all tokens, so that logits can be computed.

    tokens: int64 [blocks, seq_len]. states: the outputs of the last layer, [blocks, seq_len, hidden], on the CPU.
    outputs_per_layer: see output_count.
    """

    skeleton: Skeleton
    device: torch.device
    tokens: Tensor
    states: Tensor
    outputs_per_layer: int

    @property
    def vocabulary(self) -> int:
        return int(self.skeleton.model.config.get_text_config().vocab_size)

    def logits(self, blocks: slice) -> Tensor:
        """Float [blocks, seq_len, vocabulary], on the device."""
        states = self.states[blocks].to(self.device)
        return logits_after(
            self.skeleton.model, self.skeleton.layers, states, self.tokens[blocks], self.outputs_per_layer
        )

    def logits_at(self, blocks: Tensor, places: Tensor) -> Tensor:
        """Float [positions, vocabulary], on the device. blocks, places: of each position, no more than seq_len."""
        states = self.states[blocks, places].unsqueeze(0).to(self.device)
        tokens = self.tokens[blocks, places].unsqueeze(0)
        return logits_after(
            self.skeleton.model, self.skeleton.layers, states, tokens, self.outputs_per_layer
        ).squeeze(0)


@torch.no_grad()
def run_layers(
    skeleton: Skeleton,
    tokens: Tensor,
    *,
    device: torch.device,
    step: Callable[[], None],
    change: Callable[[nn.Module, int], None] | None = None,
) -> FinalStates:
    """Run all layers. tokens: int64 [blocks, seq_len]; step: called after each layer.

    change: called with each layer and its number once it is loaded.
    """
    captured = inputs_of_layers(skeleton, tokens)
    states, outputs_per_layer = captured.hidden, 0
    blocks = max(1, TOKENS_AT_ONCE // tokens.shape[1])
    reads = (partial(skeleton.layer_tensors, index) for index in range(len(skeleton.layers)))
    for index, tensors in enumerate(read_ahead(reads)):
        layer, arguments = skeleton.layers[index], captured.arguments[index]
        load_tensors(layer, tensors, device=device)
        if change is not None:
            change(layer, index)
        first = arguments.of(slice(0, 1), device=device)
        outputs_per_layer = output_count(call_layer(layer, states[:1].to(device), first))
        for start in range(0, len(states), blocks):
            part = slice(start, start + blocks)
            states[part] = run_layer(
                layer, states[part], arguments, start=start, total=len(states), blocks=blocks
            ).to(_CPU)
        unload(layer)
        step()
    load_tensors(skeleton.model, skeleton.tensors_after(), device=device)
    return FinalStates(
        skeleton=skeleton, device=device, tokens=tokens, states=states, outputs_per_layer=outputs_per_layer
    )
