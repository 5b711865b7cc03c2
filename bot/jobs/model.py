"""A model as transformers builds it without weights: runs in child processes, for the plan and before a pull."""

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

from bot.checkpoint.config import parse_config
from bot.checkpoint.repo_files import CONFIG
from bot.checkpoint.skeleton import Skeleton, open_skeleton
from bot.errors import ERRORS_BY_EXIT_CODE, BotError, UnsupportedModelError
from bot.quantize.architectures import layers_of, listed_names, select
from bot.records import Details, Layers, Recipe, Skip, TensorInfo, WatchEntry
from bot.watch.refusals import chosen_or_refusal


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
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / CONFIG).write_text(json.dumps(config))
        return _layers_in(folder, tensors, recipe, trust_remote_code=False)


def try_model(folder: Path, tensors: tuple[TensorInfo, ...], entry: WatchEntry) -> None:
    """Build the model of a folder, with its own code where the entry allows that, and choose what to quantize.

    tensors: the headers of its weights, which are not pulled yet. Raises the plan's refusal, as the plan may have
    been made where transformers is not installed.
    """
    config = parse_config((folder / CONFIG).read_bytes())
    layers = _layers_in(folder, tensors, entry.recipe, trust_remote_code=entry.trust_remote_code)
    chosen = chosen_or_refusal(entry, Details(config=config, tensors=tensors, layers=layers))
    if isinstance(chosen, Skip):
        raise ERRORS_BY_EXIT_CODE[chosen.exit_code](chosen.reason, hint=chosen.hint)


def _layers_in(
    folder: Path, tensors: tuple[TensorInfo, ...], recipe: Recipe, *, trust_remote_code: bool
) -> Layers:
    infos = {info.name: info for info in tensors}
    try:
        skeleton = open_skeleton(
            folder, infos, read=_unread, dtype=torch.bfloat16, trust_remote_code=trust_remote_code
        )
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
