"""The committed models are what their README says: trained, complete as Hub repos, and hard to quantize."""

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn.functional import cross_entropy, linear, silu
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.assets.corpus import documents

ASSETS = Path(__file__).parent / "assets"
NAMES = ("qwen3-tiny", "llama-tiny", "qwen3-moe-tiny")
MIXTURE = "qwen3-moe-tiny"
COMPLETE = {
    *("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"),
    *("special_tokens_map.json", "README.md", "LICENSE"),
}


@pytest.fixture(scope="module", params=NAMES)
def repo(request: pytest.FixtureRequest) -> Path:
    return ASSETS / str(request.param)


@pytest.fixture(scope="module")
def model(repo: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(repo, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def tokens(repo: Path) -> dict[str, Tensor]:
    return load_file(ASSETS / "tokens" / f"{repo.name}.safetensors")


def test_repos_hold_what_hub_repos_hold(repo: Path) -> None:
    files = {path.name for path in repo.iterdir()}
    assert files >= COMPLETE
    front_matter = (repo / "README.md").read_text().split("---")[1]
    assert all(f"\n{key}:" in front_matter for key in ("license", "language", "pipeline_tag", "library_name"))


def test_all_files_together_are_small_enough_to_commit() -> None:
    sizes = {path: path.stat().st_size for path in ASSETS.rglob("*") if path.is_file()}
    assert max(sizes.values()) < 10_000_000
    assert sum(sizes.values()) <= 28_000_000


def test_models_differ_in_tied_weights_key_heads_and_the_place_of_the_chat_template(repo: Path) -> None:
    qwen = repo.name.startswith("qwen3")
    stored, config = dict(_stored(repo)), json.loads((repo / "config.json").read_text())
    assert all(tensor.dtype == torch.float16 and tensor.isfinite().all() for tensor in stored.values())
    assert ("lm_head.weight" not in stored) is config["tie_word_embeddings"] is qwen
    assert (config["num_key_value_heads"] < config["num_attention_heads"]) is qwen
    assert (repo / "chat_template.jinja").exists() is qwen
    assert ("chat_template" in json.loads((repo / "tokenizer_config.json").read_text())) is not qwen


def test_config_is_written_as_transformers_4_wrote_it_and_means_the_same(repo: Path, model: Any) -> None:
    config = json.loads((repo / "config.json").read_text())
    assert config["torch_dtype"] == "float16"
    assert config["transformers_version"].startswith("4.")
    assert not {"rope_parameters", "dtype"} & config.keys()
    exponents = torch.arange(0, config["head_dim"], 2) / config["head_dim"]
    torch.testing.assert_close(model.model.rotary_emb.inv_freq, 1 / config["rope_theta"] ** exponents)


def test_index_names_every_tensor_of_every_shard() -> None:
    repo = ASSETS / "llama-tiny"
    index = json.loads((repo / "model.safetensors.index.json").read_text())
    stored = {name: path.name for path in repo.glob("*.safetensors") for name in load_file(path)}
    assert index["weight_map"] == stored
    assert len(set(stored.values())) == 2
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for _, tensor in _stored(repo))


def test_weights_are_named_as_transformers_saves_them(repo: Path, model: Any, tmp_path: Path) -> None:
    """transformers has one tensor for all experts in memory, and files with one per expert."""
    model.save_pretrained(tmp_path)
    saved, stored = dict(_stored(tmp_path)), dict(_stored(repo))
    assert saved.keys() == stored.keys()
    assert all(torch.equal(saved[name].half(), stored[name]) for name in stored)
    assert any(".mlp.experts.3.gate_proj.weight" in name for name in stored) is (repo.name == MIXTURE)


def test_linears_fit_group_size_128_and_the_clip_search(repo: Path) -> None:
    linears = {name: tensor for name, tensor in _stored(repo) if name.endswith("_proj.weight")}
    assert len(linears) == (3 * (4 + 8 * 3) if repo.name == MIXTURE else 4 * 7)
    assert all(weight.shape[0] % 64 == 0 and weight.shape[1] % 128 == 0 for weight in linears.values())


@pytest.mark.parametrize("split", ["dev", "test"])
def test_token_blocks_come_from_their_split(repo: Path, tokens: dict[str, Tensor], split: str) -> None:
    """Python's releases differ a little, so most lines are asked for, not all."""
    assert tokens[split].dtype == torch.uint16
    assert tokens[split].shape == (64, 512)
    tokenizer = AutoTokenizer.from_pretrained(repo)
    text = tokenizer.decode(tokens[split].long().flatten().tolist(), skip_special_tokens=True)
    lines = [line for line in text.splitlines() if len(line) > 40]
    known = set("".join(documents(split)).splitlines())
    assert sum(line in known for line in lines) > 0.5 * len(lines)


def test_models_are_trained_well_enough_to_rank_methods(model: Any, tokens: dict[str, Tensor]) -> None:
    assert _perplexity(model, tokens["test"][::8]) < 30


def test_activations_have_strong_outliers_that_fit_fp16(model: Any, tokens: dict[str, Tensor]) -> None:
    """The largest channel is several times the median one, as in real models; fp16 ends at 65,504."""
    inputs = _inputs(model, tokens["test"][:2].long())
    assert len(inputs) == (3 * (2 + 8 * 2) if hasattr(model.config, "num_experts") else 4 * 4)
    for seen in inputs.values():
        size = seen.square().mean(dim=0).sqrt()
        assert size.max() > 5 * size.median()
        assert seen.abs().max() < 10_000


def test_the_router_uses_every_expert_and_tells_tokens_apart() -> None:
    model = AutoModelForCausalLM.from_pretrained(ASSETS / MIXTURE, dtype=torch.float32).eval()
    ids = load_file(ASSETS / "tokens" / f"{MIXTURE}.safetensors")["dev"].long()
    with torch.no_grad():
        layers = model(ids, output_router_logits=True).router_logits
    assert len(layers) == 3
    for logits in layers:
        assert logits.shape == (ids.numel(), 8)
        tokens_per_expert = logits.topk(2).indices.flatten().bincount(minlength=8)
        assert tokens_per_expert.min() > 0.5 * ids.numel() * 2 / 8
        # Uniform probabilities would give the first two a quarter.
        assert logits.softmax(dim=-1).topk(2).values.sum(dim=-1).mean() > 0.5


def test_tokenizer_says_the_same_in_transformers_and_in_tokenizers(repo: Path) -> None:
    text = 'def read(self, size=-1):\r\n\t"""Naïve §12,345 €…"""\n\n    return  None\n'
    raw = Tokenizer.from_file(str(repo / "tokenizer.json"))
    tokenizer = AutoTokenizer.from_pretrained(repo)
    assert tokenizer(text).input_ids == raw.encode(text).ids
    assert tokenizer.decode(tokenizer(text, add_special_tokens=False).input_ids) == text


CHATML = "<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n"
CHATS = {
    "qwen3-tiny": CHATML,
    "qwen3-moe-tiny": CHATML,
    "llama-tiny": "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nhello<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\n",
}


def test_chat_template_renders_with_tokens_of_the_vocabulary(repo: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(repo)
    messages = [{"role": "user", "content": "hello"}]
    rendered = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert rendered == CHATS[repo.name]
    ids = tokenizer(rendered, add_special_tokens=False).input_ids
    assert tokenizer.eos_token_id in ids
    assert max(ids) < 2048


@torch.no_grad()
def _inputs(model: Any, ids: Tensor) -> dict[str, Tensor]:
    """What the linears of a model read, [n_tokens, channels] by name; an expert's are its own tokens only."""
    inputs: dict[str, Tensor] = {}

    def see(name: str, module: Any, args: tuple[Tensor, ...]) -> None:
        if not name.endswith("experts"):
            inputs[name] = args[0].flatten(0, 1)
            return
        hidden, chosen = args[:2]
        for index in range(module.num_experts):
            routed = hidden[(chosen == index).any(dim=-1)]
            gate, up = linear(routed, module.gate_up_proj[index]).chunk(2, dim=-1)
            inputs[f"{name}.{index}.up_proj"] = routed
            inputs[f"{name}.{index}.down_proj"] = silu(gate) * up

    hooks = [
        module.register_forward_pre_hook(partial(see, name))
        for name, module in model.named_modules()
        if name.endswith(("q_proj", "o_proj", "up_proj", "down_proj", "experts"))
    ]
    model(ids)
    for hook in hooks:
        hook.remove()
    return inputs


@torch.no_grad()
def _perplexity(model: Any, blocks: Tensor) -> float:
    """Over all blocks at once, not as the script that trained them does it; blocks: uint16 [n, seq_len]."""
    ids = blocks.long()
    return float(cross_entropy(model(ids).logits[:, :-1].transpose(1, 2), ids[:, 1:]).exp())


def _stored(repo: Path) -> Iterator[tuple[str, Tensor]]:
    for path in sorted(repo.glob("*.safetensors")):
        yield from load_file(path).items()
