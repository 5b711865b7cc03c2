"""The committed models are what their README says: trained, complete as Hub repos, and hard to quantize."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.assets.corpus import documents

ASSETS = Path(__file__).parent / "assets"
NAMES = ("qwen3-tiny", "llama-tiny")
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
    assert sum(sizes.values()) <= 20_000_000


def test_the_two_models_differ_in_tied_weights_key_heads_and_the_place_of_the_chat_template(repo: Path) -> None:
    first = repo.name == "qwen3-tiny"
    stored, config = dict(_stored(repo)), json.loads((repo / "config.json").read_text())
    assert all(tensor.dtype == torch.float16 and tensor.isfinite().all() for tensor in stored.values())
    assert ("lm_head.weight" not in stored) is config["tie_word_embeddings"] is first
    assert (config["num_key_value_heads"] < config["num_attention_heads"]) is first
    assert (repo / "chat_template.jinja").exists() is first
    assert ("chat_template" in json.loads((repo / "tokenizer_config.json").read_text())) is not first


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


def test_linears_fit_group_size_128_and_the_clip_search(model: Any) -> None:
    linears = [module for module in model.model.layers.modules() if isinstance(module, nn.Linear)]
    assert len(linears) == 4 * 7
    assert all(linear.out_features % 64 == 0 and linear.in_features % 128 == 0 for linear in linears)


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
    inputs: dict[str, Tensor] = {}
    hooks = [
        module.register_forward_pre_hook(lambda _, args, name=name: inputs.update({name: args[0].flatten(0, 1)}))
        for name, module in model.named_modules()
        if name.endswith(("q_proj", "o_proj", "up_proj", "down_proj"))
    ]
    with torch.no_grad():
        model(tokens["test"][:2].long())
    for hook in hooks:
        hook.remove()
    assert len(inputs) == 4 * 4
    for seen in inputs.values():
        size = seen.square().mean(dim=0).sqrt()
        assert size.max() > 5 * size.median()
        assert seen.abs().max() < 10_000


def test_tokenizer_says_the_same_in_transformers_and_in_tokenizers(repo: Path) -> None:
    text = 'def read(self, size=-1):\r\n\t"""Naïve §12,345 €…"""\n\n    return  None\n'
    raw = Tokenizer.from_file(str(repo / "tokenizer.json"))
    tokenizer = AutoTokenizer.from_pretrained(repo)
    assert tokenizer(text).input_ids == raw.encode(text).ids
    assert tokenizer.decode(tokenizer(text, add_special_tokens=False).input_ids) == text


CHATS = {
    "qwen3-tiny": "<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n",
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
def _perplexity(model: Any, blocks: Tensor) -> float:
    """Over all blocks at once, not as the script that trained them does it; blocks: uint16 [n, seq_len]."""
    ids = blocks.long()
    return float(cross_entropy(model(ids).logits[:, :-1].transpose(1, 2), ids[:, 1:]).exp())


def _stored(repo: Path) -> Iterator[tuple[str, Tensor]]:
    for path in sorted(repo.glob("*.safetensors")):
        yield from load_file(path).items()
