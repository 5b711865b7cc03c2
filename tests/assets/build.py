"""Train the test models and write their repos: `python -m tests.assets.build [NAME …]`.

What is written by hand (config.json, cards, templates) is in the repos already; this adds tokenizers,
weights and token blocks. About 25 minutes per model on one idle core. Same steps, same seed, same torch build
and same kind of CPU: same weights.
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from tests.assets import corpus, outliers
from tests.assets.training import Schedule, perplexity, train

ASSETS: Final = Path(__file__).parent
SCHEDULES: Final = {
    "qwen3-tiny": Schedule(seed=20, steps=1400),
    "llama-tiny": Schedule(seed=20, steps=1400),
    "qwen3-moe-tiny": Schedule(seed=20, steps=1800),
}
SHARDS: Final = {"qwen3-tiny": 1, "llama-tiny": 2, "qwen3-moe-tiny": 1}
# transformers stacks the projections of all experts in two tensors when it loads a mixture.
FUSED: Final = {"gate_up_proj": ("gate_proj", "up_proj"), "down_proj": ("down_proj",)}


def main() -> None:
    """Build the named repos, or all of them."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("names", nargs="*", default=[*SCHEDULES], metavar="NAME")
    # More threads add up sums in another order, and the weights would depend on the machine's cores.
    torch.set_num_threads(1)
    for name in parser.parse_args().names:
        build(name)


def build(name: str) -> None:
    """Tokenizer, training, outliers, weights and token blocks of one repo; prints what was measured."""
    repo = ASSETS / name
    schedule = SCHEDULES[name]
    corpus.write_tokenizer(repo)
    if name.startswith("qwen"):
        corpus.write_vocabulary(repo)
    tokens = {split: corpus.blocks(repo, split) for split in ("dev", "test")}
    (ASSETS / "tokens").mkdir(exist_ok=True)
    _save(tokens, ASSETS / "tokens" / f"{name}.safetensors")
    torch.manual_seed(schedule.seed)
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(repo), dtype=torch.float32)
    train(model, corpus.training_stream(repo), tokens["dev"].long(), schedule=schedule)
    finish(model, tokens, repo, schedule.seed)


def finish(model: Any, tokens: dict[str, Tensor], repo: Path, seed: int) -> None:
    """Add the outliers, write the weights as fp16, and show that neither changed what the model says."""
    model.eval()
    probe = tokens["dev"][:2].long()
    with torch.no_grad():
        logits = model(probe).logits
        _report("trained", model, tokens)
        outliers.rescale(model, seed=seed)
        torch.testing.assert_close(model(probe).logits, logits, rtol=1e-3, atol=1e-3)
    trained = _report("rescaled", model, tokens)
    write_weights(model, repo, shards=SHARDS[repo.name])
    written = AutoModelForCausalLM.from_pretrained(repo, dtype=torch.float32)
    rounded = _report("as fp16", written.eval(), tokens)
    if abs(rounded / trained - 1) > 0.005:
        raise SystemExit(f"{repo.name}: fp16 moved perplexity from {trained:.2f} to {rounded:.2f}")


def write_weights(model: Any, repo: Path, *, shards: int) -> None:
    """fp16 safetensors, in the model's order of tensors; an index where there is more than one shard."""
    tensors = {name: tensor.half().contiguous() for name, tensor in _stored(model)}
    if model.config.tie_word_embeddings:
        del tensors["lm_head.weight"]
    if shards == 1:
        _save(tensors, repo / "model.safetensors")
        return
    size = sum(tensor.nbytes for tensor in tensors.values())
    weight_map: dict[str, str] = {}
    written = 0
    for name, tensor in tensors.items():
        shard = min(written * shards // size, shards - 1) + 1
        weight_map[name] = f"model-{shard:05}-of-{shards:05}.safetensors"
        written += tensor.nbytes
    for file in sorted(set(weight_map.values())):
        _save({name: tensors[name] for name in tensors if weight_map[name] == file}, repo / file)
    index = {"metadata": {"total_size": size}, "weight_map": dict(sorted(weight_map.items()))}
    (repo / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")


def _stored(model: Any) -> Iterator[tuple[str, Tensor]]:
    """The model's tensors as repos store them: one per expert and projection."""
    for name, tensor in model.state_dict().items():
        experts, _, fused = name.rpartition(".")
        if not experts.endswith(".experts"):
            yield name, tensor
            continue
        for index, expert in enumerate(tensor):
            parts = zip(FUSED[fused], expert.chunk(len(FUSED[fused])), strict=True)
            yield from ((f"{experts}.{index}.{part}.weight", weight) for part, weight in parts)


def _save(tensors: dict[str, Tensor], path: Path) -> None:
    save_file(tensors, path, metadata={"format": "pt"})
    path.chmod(0o644)  # safetensors writes files that only their owner can read


def _report(stage: str, model: Any, tokens: dict[str, Tensor]) -> float:
    measured = {split: perplexity(model, blocks) for split, blocks in tokens.items()}
    print(f"{stage}: perplexity", *(f"{split} {value:.3f}" for split, value in measured.items()), flush=True)
    return measured["test"]


if __name__ == "__main__":
    main()
