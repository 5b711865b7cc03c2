"""What an inference engine's answers are compared with: the artifact's scores of the first evaluation tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import torch

from bot.evaluate.models import FinalStates
from bot.records import Reference

_TOKENS: Final = 2048


@torch.no_grad()
def make_reference(states: FinalStates, prompts: Sequence[Sequence[int]]) -> Reference:
    """states: of the artifact, on the evaluation's blocks. prompts: token ids."""
    count = max(1, _TOKENS // states.tokens.shape[1])
    log_probs, likeliest, margins = [], [], []
    for number, block in enumerate(states.tokens[:count]):
        # A block at a time: a large vocabulary takes a gigabyte for some thousand tokens.
        found = states.logits(slice(number, number + 1))[0, :-1].float().log_softmax(dim=-1)
        best = found.topk(2, dim=-1)
        chosen = found.gather(-1, block[1:].to(found.device).unsqueeze(-1)).squeeze(-1)
        log_probs.append(tuple(chosen.tolist()))
        likeliest.append(tuple(best.indices[:, 0].tolist()))
        margins.append(tuple((best.values[:, 0] - best.values[:, 1]).tolist()))
    return Reference(
        blocks=tuple(tuple(block.tolist()) for block in states.tokens[:count]),
        log_probs=tuple(log_probs),
        likeliest=tuple(likeliest),
        margins=tuple(margins),
        prompts=tuple(tuple(prompt) for prompt in prompts),
    )
