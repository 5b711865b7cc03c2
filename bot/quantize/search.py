"""What a quantized linear loses on its calibration inputs. Pure tensor code."""

from __future__ import annotations

import torch
from torch import Tensor

_TOKENS = 8192  # tokens of the inputs that are held in float32 at a time


def gram(inputs: Tensor, *, device: torch.device) -> Tensor:
    """H = X^T X over all tokens: float32 [in, in] on device, from inputs [..., in]."""
    flat = inputs.reshape(-1, inputs.shape[-1])
    total = torch.zeros(flat.shape[1], flat.shape[1], dtype=torch.float32, device=device)
    for chunk in torch.split(flat, _TOKENS):
        tokens = chunk.to(device=device, dtype=torch.float32)
        total.addmm_(tokens.t(), tokens)
    return total


def output_energy(weight: Tensor, inputs_gram: Tensor) -> float:
    """||W X||^2 = tr(W H W^T) for weight [out, in] and the Gram matrix H of the inputs."""
    return float(((weight @ inputs_gram) * weight).sum(dtype=torch.float64).clamp(min=0))


def relative_error(weight: Tensor, restored: Tensor, inputs_gram: Tensor) -> float:
    """||W X - W' X||^2 / ||W X||^2 for two weights [out, in]; 0 where there is nothing to lose."""
    energy = output_energy(weight, inputs_gram)
    return output_energy(weight - restored, inputs_gram) / energy if energy else 0.0


def diagonal_grams(inputs: Tensor, *, group_size: int, device: torch.device) -> Tensor:
    """The blocks of X^T X / tokens on its diagonal: float32 [in/g, g, g], from inputs [tokens, in]."""
    groups = inputs.to(device=device, dtype=torch.float32).view(len(inputs), -1, group_size).transpose(0, 1)
    return groups.transpose(1, 2) @ groups / len(inputs)


def grouped_energy(weight: Tensor, grams: Tensor) -> Tensor:
    """Mean square over tokens of what each group of channels adds to each output: [out, in/g].

    weight: [out, in/g, g]; grams: as diagonal_grams gives them.
    """
    by_group = weight.transpose(0, 1)
    return ((by_group @ grams) * by_group).sum(dim=-1).t()
