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
        attention, mlp = layer.self_attn, layer.mlp
        hidden, intermediate = mlp.gate_proj.in_features, mlp.gate_proj.out_features
        attended = (attention.q_proj, attention.k_proj, attention.v_proj)
        _move(layer.input_layernorm.weight, attended, _ratios(hidden, generator))
        _move(layer.post_attention_layernorm.weight, (mlp.gate_proj, mlp.up_proj), _ratios(hidden, generator))
        _move(mlp.up_proj.weight, (mlp.down_proj,), _ratios(intermediate, generator))
        value = _ratios(attention.v_proj.out_features, generator)
        attention.v_proj.weight.mul_(value[:, None])
        attention.o_proj.weight.div_(_for_every_head(value, config))


def _move(made: Tensor, read_by: tuple[Any, ...], ratios: Tensor) -> None:
    """`made` is a norm's weight [channels] or a linear's [channels, in]; readers' weights are [out, channels]."""
    made.mul_(ratios if made.ndim == 1 else ratios[:, None])
    for linear in read_by:
        linear.weight.div_(ratios)


def _for_every_head(value: Tensor, config: Any) -> Tensor:
    """Ratios of v_proj's rows [kv_heads · head_dim] as o_proj reads them: [heads · head_dim]."""
    per_head = value.view(config.num_key_value_heads, -1)
    return per_head.repeat_interleave(config.num_attention_heads // config.num_key_value_heads, dim=0).flatten()


def _ratios(channels: int, generator: torch.Generator) -> Tensor:
    return torch.exp(SPREAD * torch.randn(channels, generator=generator))
