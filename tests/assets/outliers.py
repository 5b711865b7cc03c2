"""Channels with strong outliers, as the activations of large language models have, without another function.

Activation-aware quantization has little to do where all channels are alike, and a small model trained
for an hour has not grown the outliers that large ones have. Each pair below is (what makes a channel,
what reads it): the first is multiplied by r, the second divided by it.
"""

from typing import Any, Final

import torch
from torch import Tensor

SPREAD: Final = 0.8


@torch.no_grad()
def rescale(model: Any, *, seed: int) -> None:
    """Multiply channels by exp(SPREAD · N(0, 1)) in place and undo it in the linears that read them."""
    generator = torch.Generator().manual_seed(seed)
    config = model.config
    for layer in model.model.layers:
        attention = layer.self_attn
        attended = (attention.q_proj.weight, attention.k_proj.weight, attention.v_proj.weight)
        _move(layer.input_layernorm.weight, attended, _ratios((config.hidden_size,), generator))
        read_by, up, down = _mlp(layer.mlp)
        _move(layer.post_attention_layernorm.weight, read_by, _ratios((config.hidden_size,), generator))
        _move(up, (down,), _ratios(up.shape[:-1], generator))
        value = _ratios((attention.v_proj.out_features,), generator)
        attention.v_proj.weight.mul_(value[:, None])
        attention.o_proj.weight.div_(_for_every_head(value, config))


def _mlp(mlp: Any) -> tuple[tuple[Tensor, ...], Tensor, Tensor]:
    """What reads the norm, then up_proj and down_proj; of a mixture, with every expert's [experts, out, in]."""
    if not hasattr(mlp, "experts"):
        return (mlp.gate_proj.weight, mlp.up_proj.weight), mlp.up_proj.weight, mlp.down_proj.weight
    gate_up, down = mlp.experts.gate_up_proj, mlp.experts.down_proj
    return (gate_up, mlp.gate.weight), gate_up[:, gate_up.shape[1] // 2 :], down


def _move(made: Tensor, read_by: tuple[Tensor, ...], ratios: Tensor) -> None:
    """`made` is a norm's weight [channels] or a linear's [..., channels, in]; readers are [..., out, channels]."""
    made.mul_(ratios if made.ndim == 1 else ratios[..., None])
    for weight in read_by:
        weight.div_(ratios[..., None, :])


def _for_every_head(value: Tensor, config: Any) -> Tensor:
    """Ratios of v_proj's rows [kv_heads · head_dim] as o_proj reads them: [heads · head_dim]."""
    per_head = value.view(config.num_key_value_heads, -1)
    return per_head.repeat_interleave(config.num_attention_heads // config.num_key_value_heads, dim=0).flatten()


def _ratios(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return torch.exp(SPREAD * torch.randn(shape, generator=generator))
