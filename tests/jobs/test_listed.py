"""The list of modules that are not quantized, against the headers of the weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from bot.checkpoint.inventory import packed_tensors
from bot.checkpoint.reader import Checkpoint
from bot.checkpoint.skeleton import open_skeleton
from bot.jobs.listed import listing_problem
from bot.quantize.architectures import listed_names, select
from bot.records import Recipe, TensorInfo
from tests.support.tiny_models import build


def headers(packed: tuple[str, ...], weights: dict[str, tuple[int, ...]]) -> dict[str, TensorInfo]:
    parts = [TensorInfo(name=f"{name}.qweight", dtype="I32", shape=(256, 32)) for name in packed]
    others = [TensorInfo(name=f"{name}.weight", dtype="F16", shape=shape) for name, shape in weights.items()]
    return {info.name: info for info in (*parts, *others)}


PACKED = tuple(
    f"model.layers.{layer}.mlp.experts.{expert}.{name}"
    for layer in range(12)
    for expert in range(2)
    for name in ("gate_proj", "up_proj", "down_proj")
)
GATES = tuple(f"model.layers.{layer}.mlp.gate" for layer in range(12))
WEIGHTS = dict.fromkeys(GATES, (2, 256)) | {
    "model.embed_tokens": (2048, 256),
    "model.layers.0.input_layernorm": (256,),
    "model.layers.0.conv": (256, 1, 4),
    "model.layers.12.eh_proj": (256, 512),
    "visual.blocks.3.mlp.fc1": (256, 256),
}
MIXTURE = headers(PACKED, WEIGHTS)


@pytest.mark.parametrize(
    ("listed", "problem"),
    [
        (GATES, None),
        ((*GATES, "visual"), None),
        # Two names of a module: the checkpoint's, and that of the model's class.
        ((*GATES, "model.language_model.layers.0.mlp.gate"), None),
        (GATES[:-1], "'model.layers.11.mlp.gate' is not quantized, and is not listed as such"),
        ((), "'model.layers.0.mlp.gate' is not quantized, and is not listed as such"),
        (
            (*GATES, "model.layers.1"),
            "it lists 'model.layers.1' as not quantized, "
            "and 'model.layers.1.mlp.experts.0.gate_proj' is quantized",
        ),
        (
            (*GATES, "gate"),
            "it lists 'gate' as not quantized, and 'model.layers.0.mlp.experts.0.gate_proj' is quantized",
        ),
        ((*GATES, "lm head"), "'lm head' among its modules that are not quantized is not a module's path"),
        ((*GATES, "model."), "'model.' among its modules that are not quantized is not a module's path"),
    ],
)
def test_the_list_covers_what_is_not_packed_and_nothing_else(listed: tuple[str, ...], problem: str | None) -> None:
    assert listing_problem(listed, MIXTURE) == problem


def test_weights_without_a_quantized_linear_are_a_problem() -> None:
    assert listing_problem((), headers((), {"model.layers.0.mlp.up_proj": (8, 8)})) == (
        "none of its weights are quantized"
    )


def test_a_dense_model_lists_nothing() -> None:
    packed = ("transformer.h.0.attn.c_attn", "transformer.h.1.attn.c_attn")
    assert listing_problem((), headers(packed, {"transformer.wte": (2048, 256)})) is None


@pytest.mark.parametrize(
    "model_type", ["deepseek_v3", "glm4v_moe", "mixtral", "qwen2_5_vl", "qwen3", "qwen3_5_moe", "qwen3_vl"]
)
def test_what_quantizing_lists_is_accepted(model_type: str, tmp_path: Path) -> None:
    source = Checkpoint(build(model_type, tmp_path))
    skeleton = open_skeleton(
        tmp_path, source.tensors, read=source.read, dtype=torch.float32, trust_remote_code=False
    )
    selection = select(skeleton, Recipe(group_size=32))
    linears = {skeleton.name_of(name) for name in selection.packed}
    written = skeleton.tensors_as_written(source.tensors, linears)
    artifact = dict(written)
    for linear in linears:
        shape = artifact.pop(f"{linear}.weight").shape
        artifact |= {info.name: info for info in packed_tensors(linear, shape, 32)}
    listed = listed_names(skeleton, selection, written)
    assert listing_problem(listed, artifact) is None
