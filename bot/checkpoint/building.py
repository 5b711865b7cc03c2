"""A model as transformers builds it from config.json: parameters have shapes but no values.

It is built on the meta device: https://docs.pytorch.org/docs/stable/meta.html
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import prod
from pathlib import Path
from typing import Any

import torch
import transformers
from accelerate import init_empty_weights
from torch.overrides import TorchFunctionMode

from bot.checkpoint.config_values import doubtful_value
from bot.errors import EnvironmentProblem, UnsupportedModelError, untrusted_input

# Settings that change what forward returns, but not the logits.
_OUTPUTS = {
    "return_dict": True,
    "output_attentions": False,
    "output_hidden_states": False,
    "output_router_logits": False,
    "torchscript": False,
    "use_cache": False,
}
# Tensors that a model makes beyond those that are stored: layers that share theirs, and computed buffers.
_TENSORS_BEYOND = 10_000


def empty_model(
    folder: Path, config: Mapping[str, Any], *, stored: int, dtype: torch.dtype, trust_remote_code: bool
) -> Any:
    """A language model in eval mode whose parameters have shapes but no values; its buffers have both.

    config: the folder's config.json. stored: the number of tensors in its weights. Raises UnsupportedModelError
    when transformers cannot build it from them.
    """
    transformers.utils.logging.set_verbosity_error()
    limited = _OnMeta(2 * stored + _TENSORS_BEYOND, stored)
    doubtful = doubtful_value(config)

    def refused(reason: str) -> UnsupportedModelError:
        return UnsupportedModelError(
            f"{folder}: transformers {transformers.__version__} cannot build it from config.json: {reason}"
            + (f" ({doubtful})" if doubtful else ""),
            hint="Look at config.json: does the model need its own code (trust_remote_code)?",
        )

    with untrusted_input(refused):
        try:
            model = _built(folder, limited, dtype=dtype, trust_remote_code=trust_remote_code)
        except MemoryError as error:
            raise EnvironmentProblem(
                f"{folder}: the model does not fit into memory",
                hint="Use a machine with more memory; `awq-bot plan` shows how much.",
            ) from error
    model.requires_grad_(False)
    return model.eval()


def _built(folder: Path, limited: _OnMeta, *, dtype: torch.dtype, trust_remote_code: bool) -> Any:
    config = transformers.AutoConfig.from_pretrained(
        folder, trust_remote_code=trust_remote_code, local_files_only=True
    )
    for part in _parts_of(config):
        # It may ask for kernels that this machine does not have.
        part._attn_implementation = part._experts_implementation = None
        for key, value in _OUTPUTS.items():
            if hasattr(part, key):
                setattr(part, key, value)
    # accelerate moves a parameter when it is made already, and those of many experts may not fit into memory.
    with init_empty_weights(include_buffers=False), limited:
        if (known := _named_class(config)) is not None:
            return known._from_config(config, dtype=dtype)
        return transformers.AutoModelForCausalLM.from_config(
            config, dtype=dtype, trust_remote_code=trust_remote_code
        )


def _parts_of(config: transformers.PreTrainedConfig) -> Iterator[transformers.PreTrainedConfig]:
    """The config and those inside of it, such as that of a vision tower."""
    yield config
    for value in vars(config).values():
        if isinstance(value, transformers.PreTrainedConfig):
            yield from _parts_of(value)


class _OnMeta(TorchFunctionMode):
    """Create large tensors on the meta device; no computed buffer is that large. And none beyond `most`."""

    _MADE = frozenset({torch.empty, torch.zeros, torch.ones, torch.rand, torch.randn})
    _LARGE = 1 << 26

    def __init__(self, most: int, stored: int) -> None:
        super().__init__()
        self._left, self._most, self._stored = most, most, stored

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        sizes = args[0] if args and isinstance(args[0], (tuple, list)) else args
        made = func in self._MADE and bool(sizes) and all(isinstance(size, int) for size in sizes)
        self._left -= made
        if self._left < 0:
            raise UnsupportedModelError(
                f"config.json describes more than {self._most} tensors, and the weights hold {self._stored}",
                hint="config.json is wrong; look at it upstream.",
            )
        moved = {"device": "meta"} if made and prod(sizes) >= self._LARGE else {}
        return func(*args, **{**(kwargs or {}), **moved})


def _named_class(config: Any) -> Any:
    """The class of transformers that `architectures` names, if it generates text and is made for this config."""
    names = config.architectures or []
    found: Any = getattr(transformers, str(names[0]), None) if len(names) == 1 else None
    if not (isinstance(found, type) and issubclass(found, transformers.PreTrainedModel)):
        return None
    model: Any = found
    return model if model.can_generate() and model.config_class is type(config) else None
