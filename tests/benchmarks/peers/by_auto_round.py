"""auto-round by one of its recipes, with its defaults but for the zero point."""

from __future__ import annotations

from typing import Any

import torch
from auto_round import AutoRound
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.benchmarks.peers.apart import Request, answer

# As its command line has them; a learning rate of None follows from the iterations.
RECIPES: dict[str, dict[str, Any]] = {"default": {"iters": 200, "lr": None}, "light": {"iters": 50, "lr": 5e-3}}


def quantize(request: Request) -> None:
    model = AutoModelForCausalLM.from_pretrained(request.source, dtype=torch.float32)
    samples, seq_len = request.blocks.shape
    rows = [{"input_ids": block[None], "attention_mask": torch.ones_like(block[None])} for block in request.blocks]
    AutoRound(
        model,
        AutoTokenizer.from_pretrained(request.source),
        scheme="W4A16",
        sym=False,
        group_size=request.group_size,
        dataset=rows,
        nsamples=samples,
        seqlen=seq_len,
        device_map="cpu",
        amp=False,  # bfloat16, which is slow on most CPUs
        **RECIPES[request.algorithm],
    ).quantize_and_save(request.out, format="auto_awq")


if __name__ == "__main__":
    answer(("auto-round",), quantize)
