"""The source model as transformers loads it: from a local folder, no code of strangers unless it is trusted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import transformers

from bot.errors import EnvironmentProblem, UnsupportedModelError, UpstreamError


def best_device() -> torch.device:
    return torch.device("cuda:0" if torch.cuda.is_available() else "cpu")


def device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def load_model(source: Path, *, dtype: torch.dtype, trust_remote_code: bool) -> Any:
    """A causal language model on the CPU, in eval mode, every weight taken from the checkpoint.

    Raises UnsupportedModelError when transformers cannot build it, UpstreamError when weights are missing,
    EnvironmentProblem when memory runs out.
    """
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    try:
        model, loaded = transformers.AutoModelForCausalLM.from_pretrained(
            source,
            dtype=dtype,
            trust_remote_code=trust_remote_code,
            local_files_only=True,
            use_safetensors=True,
            ignore_mismatched_sizes=True,  # they are reported below, by name
            output_loading_info=True,
        )
    except (MemoryError, torch.OutOfMemoryError) as error:
        raise EnvironmentProblem(
            f"{source}: the model does not fit into memory",
            hint="Use a machine with more memory; plan says how much.",
        ) from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ImportError, RuntimeError) as error:
        raise UnsupportedModelError(
            f"{source}: transformers {transformers.__version__} cannot load it: {_first_line(error)}",
            hint="Does config.json fit the weight files, and does the model bring code of its own?",
        ) from error
    _check_complete(source, loaded)
    model.config.use_cache = False
    model.eval()
    return model


def _check_complete(source: Path, loaded: dict[str, Any]) -> None:
    """transformers fills what is missing with random numbers and goes on."""
    for kind in ("missing_keys", "mismatched_keys"):
        # A mismatch is told as (name, shape, shape).
        names = sorted(item if isinstance(item, str) else item[0] for item in loaded.get(kind) or ())
        if names:
            shown = json.dumps(names[:4])[1:-1]
            raise UpstreamError(
                f"{source}: {len(names)} {kind.replace('_', ' ')}: {shown}",
                hint="The weights do not belong to this config.json, or the upload is not complete.",
            )


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
