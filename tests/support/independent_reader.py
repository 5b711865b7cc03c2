"""A published repo as transformers and gptqmodel read it; runs without this project installed.

    python tests/support/independent_reader.py perplexity REPO_ID REVISION TOKENS.safetensors
    python tests/support/independent_reader.py answers REPO_ID REVISION QUESTION ...

TOKENS: `input_ids`, int64 [blocks, seq_len]. Prints {"perplexity": ...} or {"answers": [...]}.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable

import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer


def perplexity(repo_id: str, revision: str, tokens_file: str) -> float:
    tokens = load_file(tokens_file)["input_ids"]
    model = AutoModelForCausalLM.from_pretrained(repo_id, revision=revision, device_map="cpu")
    model.eval()
    total, count = 0.0, 0
    with torch.inference_mode():
        for block in tokens:
            logits = model(input_ids=block.unsqueeze(0), use_cache=False).logits[0, :-1].float()
            total += float(torch.nn.functional.cross_entropy(logits, block[1:], reduction="sum"))
            count += len(block) - 1
    return float(torch.tensor(total / count).exp())


def answers(repo_id: str, revision: str, *questions: str) -> list[str]:
    """The most likely answer to each, of up to 60 tokens."""
    model = AutoModelForCausalLM.from_pretrained(repo_id, revision=revision, device_map="cpu")
    tokenizer = AutoTokenizer.from_pretrained(repo_id, revision=revision)
    found = []
    for question in questions:
        asked = [{"role": "user", "content": question}]
        inputs = tokenizer.apply_chat_template(
            asked, add_generation_prompt=True, return_dict=True, return_tensors="pt"
        )
        output = model.generate(**inputs, max_new_tokens=60, do_sample=False)
        said = tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        found.append(said.strip())
    return found


if __name__ == "__main__":
    readings: dict[str, Callable[..., object]] = {"perplexity": perplexity, "answers": answers}
    print(json.dumps({sys.argv[1]: readings[sys.argv[1]](*sys.argv[2:])}))
