"""Experts as linears: transformers holds all experts in 3-D parameters, and AWQ packs one linear at a time.

The parameters of such a module are replaced by one small module of linears per expert, and its forward by one that
runs them. How the parameters are laid out is said by `use_experts_implementation`:
https://github.com/huggingface/transformers/blob/main/src/transformers/integrations/moe.py
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

_GATE_AND_UP = ("gate_proj", "up_proj")


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One expert's part of a 3-D parameter: `linear`'s weight or bias.

    count: how many linears the parameter holds for each expert; place: which of them this is. interleaved: their
    rows take turns. transposed: the parameter is [experts, in, out].
    """

    expert: int
    linear: str
    kind: str
    place: int
    count: int
    interleaved: bool
    transposed: bool

    @property
    def name(self) -> str:
        """The tensor's name within the module: `3.gate_proj.weight`."""
        return f"{self.expert}.{self.linear}.{self.kind}"

    def of(self, fused: Tensor) -> Tensor:
        """This part of the expert's slice of the parameter: [out, in], or [out] of a bias."""
        rows = fused.t() if self.transposed and fused.dim() == 2 else fused
        size = len(rows) // self.count
        chosen = rows[self.place :: self.count] if self.interleaved else rows[self.place * size :][:size]
        return chosen.contiguous()


class _Expert(nn.Module):
    """The linears of one expert: `gate_proj` (where there is one), `up_proj` and `down_proj`."""

    def __init__(self, shapes: Mapping[str, tuple[int, int]], *, bias: bool, dtype: torch.dtype) -> None:
        super().__init__()
        for name, (out, columns) in shapes.items():
            self.add_module(name, nn.Linear(columns, out, bias=bias, device="meta", dtype=dtype))


class SeparateExperts(nn.Module):
    """The experts of one layer, as children named `0`, `1`, …; mixed into the class of transformers."""

    num_experts: int
    interleaved: bool
    act_fn: Any
    _apply_gate: Any
    post_expert_norm: Any

    def run(self, expert: int, tokens: Tensor) -> Tensor:
        """One expert on the tokens [tokens, hidden] that are routed to it; not weighted."""
        linears: Any = self.get_submodule(str(expert))
        output: Tensor = linears.down_proj(self._activated(linears, tokens))
        if getattr(self, "has_post_expert_norm", False):
            output = self.post_expert_norm(output)
        return output

    def routed(self, *args: Tensor, **kwargs: Tensor) -> tuple[Tensor, list[Tensor]]:
        """The tokens of one call of forward, [tokens, hidden], and the indices of those that each expert reads."""
        hidden, chosen, _ = self._routing(*args, **kwargs)
        return hidden, [(chosen == expert).any(dim=-1).nonzero().squeeze(-1) for expert in range(self.num_experts)]

    def forward(self, *args: Tensor, **kwargs: Tensor) -> Tensor:
        hidden, chosen, weights = self._routing(*args, **kwargs)
        total = torch.zeros_like(hidden)
        for expert in torch.unique(chosen).tolist():
            if expert < self.num_experts:  # the index one behind the last marks tokens without an expert
                token, place = torch.where(chosen == expert)
                output = self.run(expert, hidden[token]) * weights[token, place].unsqueeze(-1)
                total.index_add_(0, token, output.to(total.dtype))
        return total

    def _routing(
        self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        return hidden_states, top_k_index, top_k_weights

    def _activated(self, linears: Any, tokens: Tensor) -> Tensor:
        up: Tensor = linears.up_proj(tokens)
        if not hasattr(linears, "gate_proj"):
            activated: Tensor = self.act_fn(up)
            return activated
        gate: Tensor = linears.gate_proj(tokens)
        if not hasattr(self, "_apply_gate"):
            gated: Tensor = self.act_fn(gate) * up
            return gated
        # The class expects both in the order in which its parameter holds them.
        both = torch.stack((gate, up), dim=-1).flatten(-2) if self.interleaved else torch.cat((gate, up), dim=-1)
        return self._apply_gate(both)  # type: ignore[no-any-return]  # a method of transformers' class, which has no types


class SortedExperts(SeparateExperts):
    """Experts called with all tokens once for each of them, zero where they are not routed to it (Llama 4)."""

    def routed(self, *args: Tensor, **kwargs: Tensor) -> tuple[Tensor, list[Tensor]]:
        hidden, chosen, _ = self._routing(*args, **kwargs)
        rows = (chosen < self.num_experts).any(dim=-1)
        kept = chosen[rows]
        return hidden[rows], [
            (kept == expert).any(dim=-1).nonzero().squeeze(-1) for expert in range(self.num_experts)
        ]

    def _routing(self, hidden_states: Tensor) -> tuple[Tensor, Tensor, Tensor]:  # type: ignore[override]  # called without indices and weights
        flat = hidden_states.view(-1, hidden_states.shape[-1])
        each = len(flat) // self.num_experts
        expert = torch.arange(self.num_experts, device=flat.device).repeat_interleave(each)
        chosen = torch.where(flat.any(dim=-1), expert, self.num_experts).unsqueeze(-1)
        return flat, chosen, torch.ones_like(chosen, dtype=flat.dtype)


def separate_experts(model: nn.Module) -> dict[str, tuple[Part, ...]]:
    """Replace the 3-D parameters of every mixture by linears, on the meta device.

    Returns for each parameter, by its name in the model, the parts that replace it; a mixture of another form is
    left as it is.
    """
    replaced: dict[str, tuple[Part, ...]] = {}
    for path, module in list(model.named_modules()):
        if (kind := _kind_of(module)) is not None:
            replaced |= {f"{path}.{name}": parts for name, parts in _separate(module, kind).items()}
    return replaced


def _kind_of(module: nn.Module) -> type[SeparateExperts] | None:
    down, up = getattr(module, "down_proj", None), _first_parameter(module)
    if not isinstance(down, nn.Parameter) or up is None or down.dim() != 3 or up.dim() != 3:
        return None
    if hasattr(module, "is_transposed"):
        return SeparateExperts
    return SortedExperts if type(module).__name__ == "Llama4TextExperts" else None


def _first_parameter(module: nn.Module) -> nn.Parameter | None:
    found = [getattr(module, name, None) for name in ("gate_up_proj", "up_proj")]
    return next((each for each in found if isinstance(each, nn.Parameter)), None)


def _separate(module: Any, kind: type[SeparateExperts]) -> dict[str, tuple[Part, ...]]:
    transposed = bool(getattr(module, "is_transposed", True))
    interleaved = not getattr(module, "is_concatenated", True)
    names = [name for name, value in module.named_parameters(recurse=False) if _linears_in(name)]
    shapes: dict[str, tuple[int, int]] = {}
    for name in names:
        value = getattr(module, name)
        if value.dim() == 3:
            rows, columns = value.shape[1:] if not transposed else value.shape[:0:-1]
            linears = _linears_in(name)
            shapes |= dict.fromkeys(linears, (rows // len(linears), columns))
    bias = any(name.endswith("_bias") for name in names)
    count, dtype = len(getattr(module, names[0])), getattr(module, names[0]).dtype
    for name in names:
        delattr(module, name)
    for expert in range(count):
        module.add_module(str(expert), _Expert(shapes, bias=bias, dtype=dtype))
    module.num_experts, module.interleaved = count, interleaved
    cls = type(module)
    module.__class__ = type(cls.__name__, (kind, cls), {"__module__": cls.__module__})
    return {name: tuple(_parts(name, count, interleaved, transposed)) for name in names}


def _linears_in(parameter: str) -> tuple[str, ...]:
    stem = parameter.removesuffix("_bias")
    return {"gate_up_proj": _GATE_AND_UP, "up_proj": ("up_proj",), "down_proj": ("down_proj",)}.get(stem, ())


def _parts(parameter: str, experts: int, interleaved: bool, transposed: bool) -> Iterator[Part]:
    linears = _linears_in(parameter)
    kind = "bias" if parameter.endswith("_bias") else "weight"
    for expert in range(experts):
        for place, linear in enumerate(linears):
            yield Part(
                expert=expert,
                linear=linear,
                kind=kind,
                place=place,
                count=len(linears),
                interleaved=interleaved,
                transposed=transposed,
            )
