"""Quantizes a tiny model of one type, and compares what comes out with its source and with plain rounding."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from bot.checkpoint.layerwise import inputs_of_layers
from bot.checkpoint.origins import Read, read_values
from bot.checkpoint.reader import Checkpoint
from bot.checkpoint.skeleton import Skeleton, open_skeleton
from bot.errors import BotError
from bot.evaluate.models import run_layers
from bot.quantize.architectures import layers_of
from bot.quantize.artifact import quantize
from bot.records import Progress, QuantizedModel, Recipe, no_progress
from bot.watch.layers import ModelType, choose_linears
from tests.support import tiny_models
from tests.support.structures import structure_of

GROUP_SIZE = 128
# A correct artifact loses less than plain rounding; one with a wrong scaling loses a multiple of it.
TOLERATED = 1.1
CALIBRATION = (256, 128)  # samples and tokens, enough not to fit the calibration text alone
# Layer by layer in float32, against transformers' own forward pass.
SAME_LOGITS = 1e-3
ROUTER_NAMES = frozenset({"router", "gate", "gating", "switch", "shared_expert_gate"})
# How much may stay unpacked depends on the sizes, which the plan knows.
RECIPE = Recipe(group_size=GROUP_SIZE, max_unquantized_share=1.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What came out of a tiny model. scaled: the linears whose inputs were scaled; unscaled: the others.

    error: of a linear's outputs, divided by that of plain rounding, in the median; worst: of the worst linear.
    lost: how far the logits on other tokens are from the source's, divided by the same of plain rounding.
    """

    type: ModelType
    share: float = 0.0
    experts: int = 0
    scaled: tuple[str, ...] = ()
    unscaled: tuple[str, ...] = ()
    error: float = 0.0
    worst: float = 0.0
    lost: float = 0.0


def quantize_into(
    folder: Path,
    source: Path,
    *,
    blocks: Tensor,
    recipe: Recipe = Recipe(group_size=GROUP_SIZE),  # noqa: B008 - it is frozen
    progress: Progress = no_progress,
) -> QuantizedModel:
    """Quantize source into folder / "out"."""
    return quantize(
        source,
        folder / "out",
        layers=folder / "layers",
        recipe=recipe,
        blocks=blocks,
        calibration=tiny_models.calibration_set(blocks),
        trust_remote_code=False,
        progress=progress,
    )


def canary(model_type: str, folder: Path, **settings: Any) -> Outcome:
    """Quantize a tiny model of this type in folder; the reason of the result says what is wrong, if anything."""
    outcome = Outcome(type=ModelType())
    try:
        source = tiny_models.build(model_type, folder / "source", **settings)
        stored = Checkpoint(source)
        skeleton = _open(source, stored.read)
        blocks = tiny_models.random_blocks(*CALIBRATION)
        structure = replace(structure_of(skeleton, stored.tensors), by_sample=_by_sample(skeleton, blocks))
        layers = layers_of(skeleton, stored.tensors)
        outcome = replace(outcome, type=structure, experts=max(layers.experts.values(), default=0))
        if not layers.linears:
            return _failed(outcome, "its layers hold no linears that could be quantized")
        outcome = replace(outcome, share=choose_linears(layers, RECIPE).share)
        made = quantize_into(folder, source, blocks=blocks, recipe=RECIPE)
        outcome = _with_errors(outcome, made)
        reason = _wrong_bytes(folder) or _wrong_router(folder / "out") or _wrong_logits(source)
        if reason is None:
            lost, lost_by_rounding = losses(source, folder / "out")
            outcome = replace(outcome, lost=lost / lost_by_rounding)
            if not outcome.lost <= TOLERATED:
                reason = f"the artifact loses {outcome.lost:.1f} times what plain rounding loses"
    except BotError as error:
        return _failed(outcome, error.message.replace(f"{folder / 'source'}: ", ""))
    except Exception as error:  # code of one of many models: whatever it raises is the result
        return _failed(outcome, f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}")
    return _failed(outcome, reason) if reason else outcome


def _with_errors(outcome: Outcome, made: QuantizedModel) -> Outcome:
    names = {module.module.rpartition(".")[2]: module.ratio for module in made.modules}
    errors = [
        module.relative_error / module.relative_error_rounding
        for module in made.modules
        if module.relative_error_rounding
    ]
    return replace(
        outcome,
        scaled=tuple(sorted(name for name, ratio in names.items() if ratio is not None)),
        unscaled=tuple(sorted(name for name, ratio in names.items() if ratio is None)),
        error=median(errors),
        worst=max(errors),
    )


def _failed(outcome: Outcome, reason: str) -> Outcome:
    return replace(outcome, type=replace(outcome.type, reason=reason))


def _open(source: Path, read: Read, stored: Any = None) -> Skeleton:
    tensors = Checkpoint(source).tensors
    return open_skeleton(source, tensors, read=read, dtype=torch.float32, trust_remote_code=False, stored=stored)


def _by_sample(skeleton: Skeleton, blocks: Tensor) -> bool:
    return not all(arguments.same_for_all for arguments in inputs_of_layers(skeleton, blocks).arguments)


def _wrong_bytes(folder: Path) -> str | None:
    """Whether the artifact holds the integers and scales of the layers' files."""
    artifact = tiny_models.tensors_of(folder / "out")
    for file in sorted((folder / "layers").glob("layer*.safetensors")):
        for name, value in load_file(file).items():
            packed = name.endswith((".qweight", ".qzeros", ".scales"))
            if packed and not torch.equal(artifact[name], value):
                return f"the artifact does not hold {name} as it was quantized"
    return None


def _wrong_router(out: Path) -> str | None:
    packed = tiny_models.packed_linears(out)
    routers = sorted(name for name in packed if name.rpartition(".")[2] in ROUTER_NAMES)
    return f"{routers[0]}, which may be a router, is packed" if routers else None


def _wrong_logits(source: Path) -> str | None:
    """Whether the source run layer by layer is not transformers' model."""
    tokens = tiny_models.random_blocks(4, 64, seed=1)
    read = Checkpoint(source).read
    skeleton = _open(source, read)
    expected = tiny_models.logits_of(source, tokens)
    found = _logits(skeleton, tokens)
    if not (found - expected).norm() <= SAME_LOGITS * expected.norm():
        off = float((found - expected).norm() / expected.norm())
        return f"run layer by layer its logits differ by {off:.1%}"
    return None


def losses(source: Path, out: Path) -> tuple[float, float]:
    """How far the logits of the artifact, and of plain rounding of the same linears, are from the source's."""
    tokens = tiny_models.random_blocks(4, 64, seed=1)
    skeleton = _open(source, Checkpoint(source).read)
    rounded = _rounded(skeleton, source, out)
    expected = _logits(skeleton, tokens)
    lost, lost_by_rounding = (
        float((_logits(_open(source, weights.__getitem__, stored=weights), tokens) - expected).norm())
        for weights in (tiny_models.dequantized(out), rounded)
    )
    return lost, lost_by_rounding


def _logits(skeleton: Skeleton, tokens: Tensor) -> Tensor:
    final = run_layers(skeleton, tokens, device=torch.device("cpu"), step=lambda: None)
    return torch.cat([final.logits(slice(row, row + 1)) for row in range(len(tokens))])


def _rounded(skeleton: Skeleton, source: Path, out: Path) -> dict[str, Tensor]:
    """The artifact's tensors with plain rounding of the same linears instead."""
    packed = tiny_models.packed_linears(out)
    weights = tiny_models.dequantized(out) | tiny_models.tensors_of(source)
    for key, origin in skeleton.origins.items():
        if origin.name.removesuffix(".weight") in packed:
            (value,) = read_values({key: origin}, skeleton.read, stored=skeleton.stored).values()
            weights[origin.name] = tiny_models.rounded(value, GROUP_SIZE)
    return weights
