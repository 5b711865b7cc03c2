"""Where models are computed: the first GPU where there is one, else the CPU; and what happens when it is full."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn

from bot.errors import EnvironmentProblem


def best_device() -> torch.device:
    return torch.device("cuda:0" if torch.cuda.is_available() else "cpu")


def device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


@contextmanager
def enough_memory(device: torch.device, where: Path, *, to: str, hint: str) -> Iterator[None]:
    """Around work that may need more memory than there is. Raises EnvironmentProblem then.

    A full GPU raises a RuntimeError, not a MemoryError.
    """
    try:
        yield
    except (MemoryError, torch.OutOfMemoryError) as error:
        message = f"{where}: {device_name(device)} does not have enough memory to {to} it"
        raise EnvironmentProblem(message, hint=hint) from error


@contextmanager
def in_float32(module: nn.Module) -> Iterator[None]:
    """The module in float32; then each tensor in its own dtype again."""
    dtypes = dtypes_of(module)
    module.float()
    yield
    set_dtypes(module, dtypes)


def dtypes_of(module: nn.Module) -> dict[str, torch.dtype]:
    """Of each parameter and buffer.

    A layer in half precision may compute buffers in float32, such as positions, which half precision would round.
    """
    return {name: tensor.dtype for name, tensor in (*module.named_parameters(), *module.named_buffers())}


def set_dtypes(module: nn.Module, dtypes: Mapping[str, torch.dtype]) -> None:
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        tensor.data = tensor.data.to(dtypes[name])
