"""What is written for a GPU, run on a device that every machine has: nothing is left on the CPU by mistake."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def test_models_are_quantized_and_measured_on_another_device_than_the_cpu() -> None:
    # In a process of its own: PyTorch cannot forget a device.
    command = [sys.executable, "-m", "tests.support.other_device", "qwen3_moe:awq+gptq", "llama:awq"]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    refused, *made = [json.loads(line) for line in done.stdout.splitlines()]
    assert "expected all tensors to be on the same device" in refused["two_devices"]
    assert [each["device"] for each in made] == ["elsewhere", "elsewhere"]
    for each in made:
        assert each["kl"] == pytest.approx(each["kl_cpu"], rel=0.1)
        assert all(ours < plain for ours, plain in zip(each["errors"], each["errors_rounding"], strict=True))
