"""Figures are those of the model that transformers loads, whatever config.json ties or asks forward to return."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from bot.checkpoint.reader import Checkpoint
from bot.checkpoint.skeleton import open_skeleton
from bot.evaluate.metrics import evaluate
from bot.evaluate.models import open_artifact, read_dequantized, readable_names, run_layers
from bot.records import no_progress
from tests.support import tiny_models
from tests.support.artifact_pairs import VOCABULARY, Pair, Tensors, change_config, change_tensors, make_pair
from tests.support.artifact_pairs import quantized_pair as quantized

CPU = torch.device("cpu")
TOKENS = torch.randint(0, VOCABULARY, (2, 32), generator=torch.Generator().manual_seed(1))
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"


def store_another_head(tensors: Tensors) -> None:
    tensors[HEAD] = tensors[EMBEDDING].flip(0).contiguous()


def store_the_same_head(tensors: Tensors) -> None:
    tensors[HEAD] = tensors[EMBEDDING].clone()


def store_only_the_head(tensors: Tensors) -> None:
    tensors[HEAD] = tensors.pop(EMBEDDING)


def store_only_the_embedding(tensors: Tensors) -> None:
    assert HEAD not in tensors


def differ_in_the_last_value(tensors: Tensors) -> None:
    store_the_same_head(tensors)
    tensors[HEAD][-1, -1] += 1


STORED = [
    store_another_head,
    store_the_same_head,
    store_only_the_head,
    store_only_the_embedding,
    differ_in_the_last_value,
]


@pytest.fixture(scope="module")
def qwen3(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_pair("qwen3", tmp_path_factory.mktemp("qwen3")).source


def expected(folder: Path) -> Tensor:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        logits: Tensor = model(TOKENS, return_dict=True).logits
    return logits


def evaluated(pair: Pair) -> tuple[Tensor, Tensor]:
    """The logits of source and artifact as they are evaluated."""
    source = Checkpoint(pair.source)
    opened = partial(
        open_skeleton,
        pair.source,
        source.tensors,
        dtype=torch.float32,
        trust_remote_code=False,
        equal=source.equal,
    )
    skeleton = opened(read=source.read)
    artifact = open_artifact(pair.quantized, skeleton, source.tensors)
    other = opened(read=partial(read_dequantized, artifact), stored=readable_names(artifact))
    finals = [run_layers(each, TOKENS, device=CPU, step=lambda: None) for each in (skeleton, other)]
    with torch.no_grad():
        return finals[0].logits(slice(0, 2)), finals[1].logits(slice(0, 2))


@pytest.mark.parametrize("change", STORED)
def test_tied_matrices_are_used_as_transformers_uses_them(
    change: Callable[[Tensors], None], qwen3: Path, tmp_path: Path
) -> None:
    source = shutil.copytree(qwen3, tmp_path / "source")
    change_tensors(source, change)
    pair = quantized(source, tmp_path)
    for found, folder in zip(evaluated(pair), (pair.source, pair.restored), strict=True):
        torch.testing.assert_close(found, expected(folder), rtol=1e-4, atol=1e-4)


def test_bits_count_each_matrix_that_is_used(qwen3: Path, tmp_path: Path) -> None:
    bits = {}
    for change in STORED[:4]:
        folder = tmp_path / change.__name__
        source = shutil.copytree(qwen3, folder / "source")
        change_tensors(source, change)
        made = quantized(source, folder).quantized
        settings: dict[str, Any] = {"text_label": "x", "trust_remote_code": False, "progress": no_progress}
        bits[change] = evaluate(source, made, tokens=TOKENS, device="cpu", **settings).bits_per_weight_file
    assert bits[store_only_the_head] == bits[store_only_the_embedding]
    assert bits[store_the_same_head] > bits[store_only_the_embedding]
    # The second matrix is 16 bits for each of its parameters, which count.
    assert bits[store_only_the_embedding] < bits[store_another_head] < 16


# What forward returns, how, and what is done in training only.
SETTINGS: dict[str, Any] = {
    "return_dict": False,
    "output_attentions": True,
    "output_hidden_states": True,
    "output_router_logits": True,
    "torchscript": True,
    "use_cache": True,
    "attention_dropout": 0.5,
    "gradient_checkpointing": True,
    "pruned_heads": {"0": [0]},
    "problem_type": "regression",
    "router_jitter_noise": 0.5,
    "experts_implementation": "grouped_mm",
    "chunk_size_feed_forward": 8,
}


@pytest.mark.parametrize(
    ("model_type", "part"), [("qwen3", ""), ("mixtral", ""), ("gpt2", ""), ("gemma3", "text_config")]
)
def test_settings_of_what_forward_returns_change_no_figure(model_type: str, part: str, tmp_path: Path) -> None:
    source = tiny_models.build(model_type, tmp_path)

    def logits() -> Tensor:
        found = Checkpoint(source)
        skeleton = open_skeleton(
            source, found.tensors, read=found.read, dtype=torch.float32, trust_remote_code=False
        )
        with torch.no_grad():
            return run_layers(skeleton, TOKENS, device=CPU, step=lambda: None).logits(slice(0, 2))

    plain = logits()
    change_config(source, lambda config: config.update(SETTINGS))
    if part:
        change_config(source, lambda config: config[part].update(SETTINGS))
    assert torch.equal(logits(), plain)
