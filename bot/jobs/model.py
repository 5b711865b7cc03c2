"""A model as transformers builds it without weights: runs in a child process, for the plan."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import CONFIG_MAPPING

from bot.checkpoint.skeleton import Skeleton, open_skeleton
from bot.errors import BotError, UnsupportedModelError
from bot.quantize.architectures import layers_of, listed_names, select
from bot.records import Layers, Recipe, TensorInfo


def read_layers(config: dict[str, Any], tensors: tuple[TensorInfo, ...], recipe: Recipe) -> Layers:
    """Its layers, or why it cannot be built, or its artifact not be served.

    config: upstream's config.json; tensors: its headers.
    """
    model_type = config.get("model_type")
    if model_type not in CONFIG_MAPPING:
        return _refused(
            UnsupportedModelError(
                f"model_type {model_type!r}: transformers {transformers.__version__} does not know it"
            )
        )
    infos = {info.name: info for info in tensors}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "config.json").write_text(json.dumps(config))
        try:
            skeleton = open_skeleton(folder, infos, read=_unread, dtype=torch.bfloat16, trust_remote_code=False)
        except BotError as error:
            return _refused(error, where=f"{folder}: ")
    problem = _served_wrongly(skeleton, infos, recipe)
    return _refused(problem) if problem else layers_of(skeleton, infos)


def _served_wrongly(
    skeleton: Skeleton, tensors: Mapping[str, TensorInfo], recipe: Recipe
) -> UnsupportedModelError | None:
    """Whether servers would take a packed linear for one that is not."""
    try:
        selection = select(skeleton, recipe)
    except BotError:  # the plan comes to the same, from the layers
        return None
    try:
        names = tuple(skeleton.name_of(name) for name in selection.packed)
        listed_names(skeleton, selection, skeleton.tensors_as_written(tensors, names))
    except UnsupportedModelError as error:
        return error
    return None


def _refused(error: BotError, *, where: str = "") -> Layers:
    return Layers(problem=error.message.removeprefix(where), hint=error.hint, exit_code=error.exit_code)


def _unread(name: str) -> Tensor:
    raise AssertionError(f"{name} is read, but only its header is known")
