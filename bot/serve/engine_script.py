"""Load a model in an inference engine, let it score tokens and write some, and say how it went.

    python -I engine_script.py REQUEST.json ANSWER.json

Runs in the engine's own environment, so it imports nothing of this project.

REQUEST: engine, model (folder), trust_remote_code, blocks and prompts (lists of token ids), new_tokens.
ANSWER: scores of each block, and of each prompt with what was generated from it; generated (token ids); new tokens
per second; kernel; device; versions. A score is of each token but the first: its log-probability in nats, the most
likely token there, and the log-probability of that one.
"""

from __future__ import annotations

import json
import os
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

_TOOLS = ("gptqmodel", "vllm", "transformers", "torch")


def main(request_file: str, answer_file: str) -> None:
    request = json.loads(Path(request_file).read_bytes())
    answer = _RUNS[request["engine"]](request)
    answer["versions"] = _versions() | answer.get("versions", {})
    Path(answer_file).write_text(json.dumps(answer))


def _versions() -> dict[str, str]:
    found = {}
    for name in _TOOLS:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


# --- transformers with gptqmodel ----------------------------------------------------------------------------


def _run_gptqmodel(request: dict[str, Any]) -> dict[str, Any]:
    import torch
    import transformers

    device = "cuda" if torch.cuda.is_available() else "cpu"
    named = json.loads(Path(request["model"], "config.json").read_bytes()).get("architectures") or [""]
    # Of a multimodal model the class that also reads text alone; a model's own code is behind the Auto class.
    usual = transformers.AutoModelForCausalLM
    kind = usual if request["trust_remote_code"] else getattr(transformers, named[0], usual)
    model = kind.from_pretrained(
        request["model"],
        device_map=device,
        local_files_only=True,
        trust_remote_code=request["trust_remote_code"],
    )
    model.eval()
    generated, took_s = [], 0.0
    with torch.inference_mode():
        scores = [_scores(model, block) for block in request["blocks"]]
        for prompt in request["prompts"]:
            ids = torch.tensor([prompt], device=device)
            started = time.monotonic()
            output = model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=request["new_tokens"],
                do_sample=False,
                # What generation_config.json may have beside sampling, which would change the choice.
                repetition_penalty=1.0,
                no_repeat_ngram_size=0,
            )
            took_s += time.monotonic() - started
            generated.append(output[0, len(prompt) :].tolist())
        again = [
            _scores(model, [*prompt, *new]) for prompt, new in zip(request["prompts"], generated, strict=True)
        ]
    return {
        "scores": scores,
        "generated": generated,
        "generated_scores": again,
        "tokens_per_s": sum(map(len, generated)) / took_s if took_s else 0.0,
        "kernel": ", ".join(sorted(_quantized_classes(model))),
        "device": torch.cuda.get_device_name() if device == "cuda" else "CPU",
    }


def _scores(model: Any, tokens: list[int]) -> dict[str, list[Any]]:
    import torch

    ids = torch.tensor([tokens], device=model.device)
    logits = model(input_ids=ids, use_cache=False).logits[0, :-1].float()
    log_probs = logits.log_softmax(dim=-1)
    best = log_probs.max(dim=-1)
    return {
        "log_probs": log_probs.gather(-1, ids[0, 1:].unsqueeze(-1)).squeeze(-1).tolist(),
        "likeliest": best.indices.tolist(),
        "likeliest_log_probs": best.values.tolist(),
    }


def _quantized_classes(model: Any) -> set[str]:
    return {type(module).__name__ for module in model.modules() if hasattr(module, "qweight")}


# --- vLLM ---------------------------------------------------------------------------------------------------


def _run_vllm(request: dict[str, Any]) -> dict[str, Any]:
    # In this process: a function can then be applied to the model without serialising it.
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    os.environ["VLLM_NO_USAGE_STATS"] = "1"
    os.environ["VLLM_CPU_KVCACHE_SPACE"] = "1"  # GiB; by default it is most of the memory
    import torch
    from vllm import LLM, SamplingParams, __version__

    _group_without_sockets()
    longest = max(
        map(len, (*request["blocks"], *(row + [0] * request["new_tokens"] for row in request["prompts"])))
    )
    llm = LLM(
        model=request["model"],
        max_model_len=longest + 1,
        trust_remote_code=request["trust_remote_code"],
        # Scores of a prompt are computed for all of its tokens.
        enable_prefix_caching=False,
    )
    greedy = SamplingParams(temperature=0.0, max_tokens=request["new_tokens"])
    generated, took_s = [], 0.0
    for prompt in request["prompts"]:
        started = time.monotonic()
        output = llm.generate([{"prompt_token_ids": prompt}], greedy, use_tqdm=False)[0]
        took_s += time.monotonic() - started
        generated.append(list(output.outputs[0].token_ids))
    both = [[*prompt, *new] for prompt, new in zip(request["prompts"], generated, strict=True)]
    kernels = llm.apply_model(_quantization_methods)
    return {
        "scores": _vllm_scores(llm, request["blocks"]),
        "generated": generated,
        "generated_scores": _vllm_scores(llm, both),
        "tokens_per_s": sum(map(len, generated)) / took_s,
        "kernel": ", ".join(sorted(set().union(*kernels))),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU",
        "versions": {"vllm": __version__},
    }


def _group_without_sockets() -> None:
    """vLLM makes process groups also for one process, whose backends open sockets. Here are none to open."""
    import torch.distributed as dist
    from torch.testing._internal.distributed.fake_pg import FakeStore

    make = dist.new_group
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=1)
    dist.new_group = lambda ranks=None, *_, **__: make(ranks, backend="fake")


def _vllm_scores(llm: Any, rows: list[list[int]]) -> list[dict[str, list[Any]]]:
    from vllm import SamplingParams

    # Of each prompt token, and of the most likely one there.
    asked = SamplingParams(temperature=0.0, max_tokens=1, prompt_logprobs=1)
    outputs = llm.generate([{"prompt_token_ids": row} for row in rows], asked, use_tqdm=False)
    scores = []
    for row, output in zip(rows, outputs, strict=True):
        places = output.prompt_logprobs[1:]
        best = [max(place.items(), key=lambda item: item[1].logprob) for place in places]
        scores.append(
            {
                "log_probs": [place[token].logprob for place, token in zip(places, row[1:], strict=True)],
                "likeliest": [token for token, _ in best],
                "likeliest_log_probs": [found.logprob for _, found in best],
            }
        )
    return scores


def _quantization_methods(model: Any) -> set[str]:
    """As `MarlinLinearKernel`. Where vLLM chooses among kernels, the name of the method says nothing of them."""
    methods = [getattr(module, "quant_method", None) for module in model.modules()]
    # Linears that are left out have a method, too.
    used = [method for method in methods if method and not type(method).__name__.startswith("Unquantized")]
    return {type(getattr(method, "kernel", None) or method).__name__ for method in used}


_RUNS = {"gptqmodel": _run_gptqmodel, "vllm": _run_vllm}

if __name__ == "__main__":
    main(*sys.argv[1:])
