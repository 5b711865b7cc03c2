"""What is written for a GPU, run on a device that every machine has: nothing is left on the CPU by mistake."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]


def lines_of(*arguments: str) -> list[dict[str, Any]]:
    """What it prints. In a process of its own: PyTorch cannot forget a device."""
    command = [sys.executable, "-m", "tests.support.other_device", *arguments]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_models_are_quantized_and_measured_on_another_device_than_the_cpu() -> None:
    refused, *made = lines_of("qwen3_moe:awq+gptq", "llama:awq")
    assert "expected all tensors to be on the same device" in refused["two_devices"]
    assert [each["device"] for each in made] == ["elsewhere", "elsewhere"]
    for each in made:
        assert each["kl"] == pytest.approx(each["kl_cpu"], rel=0.1)
        assert all(ours < plain for ours, plain in zip(each["errors"], each["errors_rounding"], strict=True))


@pytest.mark.slow
def test_the_plan_covers_the_memory_that_a_wide_layer_takes() -> None:
    _, found = lines_of("--memory", "qwen3:awq+gptq")
    assert found["peak"] <= found["plan"] <= 2 * found["peak"]
