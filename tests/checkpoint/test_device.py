"""A layer in another dtype for a while, and a device that is full."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from bot.checkpoint.device import enough_memory, in_float32
from bot.errors import EnvironmentProblem

CPU = torch.device("cpu")


def test_each_tensor_gets_its_own_dtype_back() -> None:
    """GPT-J, CodeGen and DeepSeek V4 keep computed positions in float32 in layers of half precision."""
    linear = nn.Linear(4, 4, dtype=torch.bfloat16)
    layer = nn.Sequential(linear, nn.BatchNorm1d(4))
    positions = torch.arange(4) / 3
    layer.register_buffer("positions", positions.clone(), persistent=False)
    weight = linear.weight.detach().clone()
    with in_float32(layer):
        assert {each.dtype for each in layer.parameters()} == {torch.float32}
    assert linear.weight.dtype == linear.bias.dtype == torch.bfloat16
    assert torch.equal(linear.weight, weight)
    assert torch.equal(layer.get_buffer("positions"), positions)
    assert layer.get_buffer("1.num_batches_tracked").dtype == torch.int64


@pytest.mark.parametrize("error", [MemoryError(), torch.OutOfMemoryError("CUDA out of memory.")])
def test_a_full_device_is_a_problem_of_the_machine(error: Exception) -> None:
    with (
        pytest.raises(
            EnvironmentProblem, match="models/one: cpu does not have enough memory to measure it"
        ) as caught,
        enough_memory(CPU, Path("models/one"), to="measure", hint="Use a larger machine."),
    ):
        raise error
    assert caught.value.hint == "Use a larger machine."


def test_other_errors_stay_as_they_are() -> None:
    with pytest.raises(RuntimeError, match="shapes"), enough_memory(CPU, Path(), to="quantize", hint=""):
        raise RuntimeError("shapes")
