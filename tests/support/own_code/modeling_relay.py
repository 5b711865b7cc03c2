"""The code of a model folder: a decoder whose layers also read the values of the first layer's attention."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn import functional
from transformers import GenerationMixin, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast


class RelayConfig(PreTrainedConfig):  # type: ignore[misc]  # transformers has no types
    model_type = "relay"

    def __init__(self, in_mapping: bool = False, **others: Any) -> None:
        self.vocab_size, self.hidden_size, self.intermediate_size = 512, 256, 384
        self.num_hidden_layers, self.num_attention_heads = 3, 4
        self.in_mapping = in_mapping
        super().__init__(**{"tie_word_embeddings": False, **others})


class RelayLayer(nn.Module):
    """Values of the first layer are returned, or put into a mapping."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        hidden, inner = config.hidden_size, config.intermediate_size
        self.heads = config.num_attention_heads
        self.norm1, self.norm2 = nn.RMSNorm(hidden, eps=1e-6), nn.RMSNorm(hidden, eps=1e-6)
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            self.add_module(name, nn.Linear(hidden, hidden, bias=False))
        self.up, self.down = nn.Linear(hidden, inner, bias=False), nn.Linear(inner, hidden, bias=False)

    def forward(self, states: Tensor, first: Tensor | None = None, shared: Any = None) -> tuple[Tensor, Tensor]:
        inputs, (batch, length, hidden) = self.norm1(states), states.shape
        query, key, value = (
            self.get_submodule(name)(inputs).view(batch, length, self.heads, -1).transpose(1, 2)
            for name in ("q_proj", "k_proj", "v_proj")
        )
        if shared is not None:
            (first,) = shared.setdefault("values", (value,))
        own = value if first is None else 0.5 * (value + first)
        mixed = functional.scaled_dot_product_attention(query, key, own, is_causal=True)
        states = states + self.get_submodule("o_proj")(mixed.transpose(1, 2).reshape(batch, length, hidden))
        return states + self.down(functional.relu(self.up(self.norm2(states)))), value


class RelayForCausalLM(PreTrainedModel, GenerationMixin):  # type: ignore[misc]  # transformers has no types
    config_class = RelayConfig

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList([RelayLayer(config) for _ in range(config.num_hidden_layers)])
        self.norm = nn.RMSNorm(config.hidden_size, eps=1e-6)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def get_decoder(self) -> Any:
        return self

    def forward(self, input_ids: Tensor, use_cache: bool = False, **others: Any) -> Any:
        states = self.embed_tokens(input_ids)
        first: Tensor | None = None
        shared: dict[str, Any] | None = {} if self.config.in_mapping else None
        for layer in self.layers:
            states, value = layer(states, first=first, shared=shared)
            if first is None and shared is None:
                first = value
        return CausalLMOutputWithPast(logits=self.lm_head(self.norm(states)))
