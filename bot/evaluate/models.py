"""Source and artifact as two models of one architecture: same config, same code, different weights."""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from bot.checkpoint.reader import Checkpoint
from bot.errors import QuantizationError
from bot.evaluate.artifact import restored_tensors


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedModel:
    """model: in evaluation mode on its device. unexpected: tensors on file that the architecture does not use."""

    model: Any
    unexpected: frozenset[str]

    @property
    def tied(self) -> Set[str]:
        """Tensors that the model takes from another one, such as lm_head.weight from the embeddings."""
        return frozenset(self.model.all_tied_weights_keys)


def load_source(folder: Path, *, device: torch.device, trust_remote_code: bool) -> LoadedModel:
    """In float32 on a CPU, where half precision is slow; in the source's own dtype elsewhere.

    Raises QuantizationError when the folder does not load, or some of its weights would be made up.
    """
    try:
        model, info = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=torch.float32 if device.type == "cpu" else "auto",
            local_files_only=True,
            trust_remote_code=trust_remote_code,
            output_loading_info=True,
        )
    # The files, and with trust_remote_code the code, are a stranger's: whatever comes up is about them.
    except Exception as error:
        raise _not_loaded("source model", error) from error
    return _checked("source model", model, info, device)


def load_artifact(artifact: Checkpoint, source: LoadedModel, *, device: torch.device) -> LoadedModel:
    """The source's architecture and config with the artifact's weights, packed linears dequantized.

    Raises QuantizationError when the weights do not fill the architecture exactly as the source's do.
    """
    tensors = dict(restored_tensors(artifact, dtype=source.model.dtype))
    try:
        model, info = type(source.model).from_pretrained(
            None,
            config=source.model.config,
            state_dict=tensors,
            dtype=source.model.dtype,
            output_loading_info=True,
        )
    except Exception as error:
        raise _not_loaded("artifact", error) from error
    loaded = _checked("artifact", model, info, device)
    if loaded.unexpected != source.unexpected:
        odd = sorted(loaded.unexpected ^ source.unexpected)
        raise QuantizationError(
            f"artifact: {odd[0]} is used in one of source and artifact only", hint="Quantize again."
        )
    return loaded


def _checked(what: str, model: Any, info: dict[str, Any], device: torch.device) -> LoadedModel:
    missing = sorted(info["missing_keys"])
    reshaped = sorted(str(key[0]) for key in info["mismatched_keys"])
    if missing or reshaped or info["error_msgs"]:
        # transformers would fill these with random numbers and go on.
        first = (missing + reshaped + list(info["error_msgs"]))[0]
        raise QuantizationError(
            f"{what}: the weights do not fill the architecture: {first}",
            hint="Do its config.json and its weight files belong together?",
        )
    return LoadedModel(model=model.eval().to(device), unexpected=frozenset(info["unexpected_keys"]))


def _not_loaded(what: str, error: Exception) -> QuantizationError:
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return QuantizationError(f"{what} does not load: {reason}", hint="Check its config.json and weight files.")
