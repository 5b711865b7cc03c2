"""Perplexity of a published repo as transformers and gptqmodel read it; runs without this project installed.

    python tests/support/independent_reader.py REPO_ID REVISION TOKENS.safetensors

TOKENS: `input_ids`, int64 [blocks, seq_len]. Prints {"perplexity": ...}; nothing of our own code is used.
"""

from __future__ import annotations

import json
import sys

import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM


def main(repo_id: str, revision: str, tokens_file: str) -> None:
    tokens = load_file(tokens_file)["input_ids"]
    model = AutoModelForCausalLM.from_pretrained(repo_id, revision=revision, device_map="cpu")
    model.eval()
    total, count = 0.0, 0
    with torch.inference_mode():
        for block in tokens:
            logits = model(input_ids=block.unsqueeze(0), use_cache=False).logits[0, :-1].float()
            total += float(torch.nn.functional.cross_entropy(logits, block[1:], reduction="sum"))
            count += len(block) - 1
    print(json.dumps({"perplexity": float(torch.tensor(total / count).exp())}))


if __name__ == "__main__":
    main(*sys.argv[1:])
