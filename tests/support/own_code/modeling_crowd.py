"""The code of a model folder: a decoder with mixtures of experts, as modules or in 3-D parameters."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import GenerationMixin, PreTrainedConfig, PreTrainedModel
from transformers.integrations.moe import use_experts_implementation
from transformers.modeling_outputs import CausalLMOutputWithPast


class CrowdConfig(PreTrainedConfig):  # type: ignore[misc]  # transformers has no types
    model_type = "crowd"

    def __init__(self, fused: bool = False, router: str = "gate", **others: Any) -> None:
        self.vocab_size, self.hidden_size, self.intermediate_size = 512, 256, 128
        self.num_hidden_layers, self.num_attention_heads = 2, 4
        self.num_experts, self.num_experts_per_tok = 8, 2
        self.fused, self.router = fused, router
        super().__init__(**{"tie_word_embeddings": False, **others})


class CrowdExpert(nn.Module):
    def __init__(self, hidden: int, inner: int) -> None:
        super().__init__()
        self.w1, self.w3 = nn.Linear(hidden, inner, bias=False), nn.Linear(hidden, inner, bias=False)
        self.w2 = nn.Linear(inner, hidden, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.w2(functional.silu(self.w1(tokens)) * self.w3(tokens))  # type: ignore[no-any-return]  # nn.Module's call has no types


class CrowdModules(nn.Module):
    """Experts as modules beside a linear that chooses them."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.router, self.top_k = config.router, config.num_experts_per_tok
        self.add_module(config.router, nn.Linear(config.hidden_size, config.num_experts, bias=False))
        self.experts = nn.ModuleList(
            [CrowdExpert(config.hidden_size, config.intermediate_size) for _ in range(config.num_experts)]
        )

    def forward(self, states: Tensor) -> Tensor:
        flat = states.reshape(-1, states.shape[-1])
        scores, chosen = self.get_submodule(self.router)(flat).softmax(dim=-1).topk(self.top_k, dim=-1)
        scores = (scores / scores.sum(dim=-1, keepdim=True)).to(flat.dtype)
        total = torch.zeros_like(flat)
        for number, expert in enumerate(self.experts):
            token, place = torch.where(chosen == number)
            total.index_add_(0, token, expert(flat[token]) * scores[token, place].unsqueeze(-1))
        return total.view_as(states)


@use_experts_implementation
class CrowdFusedExperts(nn.Module):
    """Experts in 3-D parameters, as new architectures of transformers hold them."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        experts, hidden, inner = config.num_experts, config.hidden_size, config.intermediate_size
        self.num_experts, self.act_fn = experts, nn.SiLU()
        self.gate_up_proj = nn.Parameter(torch.empty(experts, 2 * inner, hidden))
        self.down_proj = nn.Parameter(torch.empty(experts, hidden, inner))

    def forward(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        total = torch.zeros_like(hidden_states)
        for number in range(self.num_experts):
            token, place = torch.where(top_k_index == number)
            gate, up = functional.linear(hidden_states[token], self.gate_up_proj[number]).chunk(2, dim=-1)
            output = functional.linear(self.act_fn(gate) * up, self.down_proj[number])
            total.index_add_(0, token, output * top_k_weights[token, place].unsqueeze(-1))
        return total


class CrowdRouter(nn.Module):
    def __init__(self, config: Any) -> None:
        super().__init__()
        self.top_k = config.num_experts_per_tok
        self.weight = nn.Parameter(torch.empty(config.num_experts, config.hidden_size))

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        scores, chosen = functional.linear(tokens, self.weight).sigmoid().topk(self.top_k, dim=-1)
        return chosen, scores / scores.sum(dim=-1, keepdim=True)


class CrowdFused(nn.Module):
    def __init__(self, config: Any) -> None:
        super().__init__()
        self.gate, self.experts = CrowdRouter(config), CrowdFusedExperts(config)

    def forward(self, states: Tensor) -> Tensor:
        flat = states.reshape(-1, states.shape[-1])
        return self.experts(flat, *self.gate(flat)).view_as(states)  # type: ignore[no-any-return]  # nn.Module's call has no types


class CrowdLayer(nn.Module):
    def __init__(self, config: Any) -> None:
        super().__init__()
        hidden = config.hidden_size
        self.heads = config.num_attention_heads
        self.norm1, self.norm2 = nn.RMSNorm(hidden, eps=1e-6), nn.RMSNorm(hidden, eps=1e-6)
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            self.add_module(name, nn.Linear(hidden, hidden, bias=False))
        self.moe = CrowdFused(config) if config.fused else CrowdModules(config)

    def forward(self, states: Tensor) -> Tensor:
        inputs, (batch, length, hidden) = self.norm1(states), states.shape
        query, key, value = (
            self.get_submodule(name)(inputs).view(batch, length, self.heads, -1).transpose(1, 2)
            for name in ("q_proj", "k_proj", "v_proj")
        )
        mixed = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        states = states + self.get_submodule("o_proj")(mixed.transpose(1, 2).reshape(batch, length, hidden))
        return states + self.moe(self.norm2(states))  # type: ignore[no-any-return]  # nn.Module's call has no types


class CrowdModel(PreTrainedModel):  # type: ignore[misc]  # transformers has no types
    config_class = CrowdConfig

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList([CrowdLayer(config) for _ in range(config.num_hidden_layers)])
        self.norm = nn.RMSNorm(config.hidden_size, eps=1e-6)
        self.post_init()

    def forward(self, input_ids: Tensor) -> Tensor:
        states = self.embed_tokens(input_ids)
        for layer in self.layers:
            states = layer(states)
        return self.norm(states)  # type: ignore[no-any-return]  # nn.Module's call has no types


class CrowdForCausalLM(PreTrainedModel, GenerationMixin):  # type: ignore[misc]  # transformers has no types
    config_class = CrowdConfig

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.model = CrowdModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def forward(self, input_ids: Tensor, use_cache: bool = False, **others: Any) -> Any:
        return CausalLMOutputWithPast(logits=self.lm_head(self.model(input_ids)))
