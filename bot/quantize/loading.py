"""What the model is quantized on."""

from __future__ import annotations

import torch


def best_device() -> torch.device:
    return torch.device("cuda:0" if torch.cuda.is_available() else "cpu")


def device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
