"""The code of a model folder: a dense decoder that is put together in an unusual way.

Norms before and after each block that multiply by 1 + weight, one matrix for queries, keys and values, one for up
and gate in this order, biases everywhere, and, if the configuration says so, both blocks side by side.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import GenerationMixin, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast


class SandwichConfig(PreTrainedConfig):  # type: ignore[misc]  # transformers has no types
    model_type = "sandwich"

    def __init__(self, parallel: bool = False, **others: Any) -> None:
        self.vocab_size, self.hidden_size, self.intermediate_size = 512, 256, 384
        self.num_hidden_layers, self.num_attention_heads = 2, 4
        self.parallel = parallel
        super().__init__(**{"tie_word_embeddings": False, **others})


class OnePlusNorm(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(channels))

    def forward(self, states: Tensor) -> Tensor:
        normed = states.float() * torch.rsqrt(states.float().pow(2).mean(-1, keepdim=True) + 1e-6)
        return (normed * (1.0 + self.weight.float())).to(states.dtype)


class SandwichBlock(nn.Module):
    def __init__(self, config: Any) -> None:
        super().__init__()
        hidden, inner = config.hidden_size, config.intermediate_size
        self.heads, self.parallel = config.num_attention_heads, config.parallel
        self.before_mix, self.after_mix = OnePlusNorm(hidden), OnePlusNorm(hidden)
        self.before_feed, self.after_feed = OnePlusNorm(hidden), OnePlusNorm(hidden)
        self.mix_in, self.mix_out = nn.Linear(hidden, 3 * hidden), nn.Linear(hidden, hidden)
        self.feed_in, self.feed_out = nn.Linear(hidden, 2 * inner), nn.Linear(inner, hidden)

    def forward(self, states: Tensor, positions: Tensor) -> Tensor:
        inputs = self.before_mix(states)
        mixed = self.after_mix(self._mix(inputs, positions))
        if self.parallel:
            return states + mixed + self.after_feed(self._feed(inputs))  # type: ignore[no-any-return]  # nn.Module's call has no types
        states = states + mixed
        return states + self.after_feed(self._feed(self.before_feed(states)))  # type: ignore[no-any-return]  # nn.Module's call has no types

    def _mix(self, inputs: Tensor, positions: Tensor) -> Tensor:
        batch, length, hidden = inputs.shape
        shape = (batch, length, self.heads, hidden // self.heads)
        query, key, value = (part.reshape(shape).transpose(1, 2) for part in self.mix_in(inputs).chunk(3, dim=-1))
        mask = positions.unsqueeze(-1) >= positions.unsqueeze(-2)
        mixed = functional.scaled_dot_product_attention(query, key, value, attn_mask=mask.unsqueeze(1))
        return self.mix_out(mixed.transpose(1, 2).reshape(batch, length, hidden))  # type: ignore[no-any-return]  # nn.Module's call has no types

    def _feed(self, inputs: Tensor) -> Tensor:
        up, gate = self.feed_in(inputs).chunk(2, dim=-1)
        return self.feed_out(up * functional.silu(gate))  # type: ignore[no-any-return]  # nn.Module's call has no types


class SandwichForCausalLM(PreTrainedModel, GenerationMixin):  # type: ignore[misc]  # transformers has no types
    config_class = SandwichConfig

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.words = nn.Embedding(config.vocab_size, config.hidden_size)
        self.blocks = nn.ModuleList([SandwichBlock(config) for _ in range(config.num_hidden_layers)])
        self.last_norm = OnePlusNorm(config.hidden_size)
        self.to_words = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.words

    def get_output_embeddings(self) -> nn.Module:
        return self.to_words

    def forward(self, input_ids: Tensor, use_cache: bool = False, **others: Any) -> Any:
        states = self.words(input_ids)
        positions = torch.arange(input_ids.shape[1], device=input_ids.device).unsqueeze(0)
        for block in self.blocks:
            states = block(states, positions)
        return CausalLMOutputWithPast(logits=self.to_words(self.last_norm(states)))
