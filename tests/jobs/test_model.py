"""The plan's answer from the model itself: against the one from headers and the table, and in a child process."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from bot.checkpoint.weight_files import read_weight_headers
from bot.jobs.model import read_layers
from bot.jobs.trial import layers_of_model
from bot.records import Details, Recipe, TensorInfo
from bot.watch.layers import layers_from_headers, model_types, table_version
from tests.support import tiny_models

SAME = ("path", "stored_path", "experts")
QUICK = ("gemma3", "gpt_oss", "mixtral", "qwen3_next")


def tiny(model_type: str, folder: Path) -> Details:
    source = tiny_models.build(model_type, folder / "source", dtype=torch.bfloat16)
    config = json.loads((source / "config.json").read_text())
    return Details(config=config, tensors=tuple(read_weight_headers(source).tensors.values()))


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Details:
    return tiny("llama", tmp_path_factory.mktemp("llama"))


def by_name(tensors: tuple[TensorInfo, ...]) -> dict[str, TensorInfo]:
    return {tensor.name: tensor for tensor in tensors}


@pytest.mark.parametrize(
    "model_type",
    [
        pytest.param(name, marks=() if name in QUICK else pytest.mark.slow)
        for name, known in model_types().items()
        if known.layers
    ],
)
def test_headers_and_model_agree(model_type: str, tmp_path: Path) -> None:
    details = tiny(model_type, tmp_path)
    model = read_layers(details.config, details.tensors, Recipe())
    headers = layers_from_headers(details.config, details.tensors, model_types()[model_type])
    assert [getattr(headers, name) for name in SAME] == [getattr(model, name) for name in SAME]
    found, expected = by_name(headers.linears), by_name(model.linears)
    assert found.items() <= expected.items()
    assert headers.fixed.items() <= model.fixed.items()
    # A layer whose weights are another's has no tensors of its own.
    assert len(found) == len(expected) or model_type in {"zamba", "zamba2"}


def test_a_model_that_is_not_known_or_not_complete_says_so(tmp_path: Path) -> None:
    details = tiny("llama", tmp_path)
    unknown = read_layers(details.config | {"model_type": "noway"}, details.tensors, Recipe())
    assert unknown.problem == f"model_type 'noway': transformers {table_version()} does not know it"
    missing = read_layers(details.config, details.tensors[1:], Recipe())
    assert (missing.problem.startswith("upload incomplete: 1 missing keys: "), missing.exit_code) == (True, 3)


@pytest.mark.parametrize(
    ("change", "words", "exit_code"),
    [
        ({"hidden_size": "256"}, "config.json: hidden_size is '256', not a positive whole number", 4),
        ({"num_hidden_layers": 10**9}, "config.json: num_hidden_layers is 1000000000, and the weights hold 21", 4),
        (
            {"rms_norm_eps": "small"},
            "cannot build it from config.json: Validation error for field 'rms_norm_eps'",
            4,
        ),
        ({"rope_scaling": {"rope_type": "su"}}, "cannot build it from config.json: ", 4),
        ({"hidden_act": "noway"}, "cannot build it from config.json: KeyError: ", 4),
        ({"pad_token_id": 2048}, "(config.json: pad_token_id is 2048, and vocab_size 512)", 4),
        ({"vocab_size": 2000}, "'lm_head.weight' is [512, 256], config.json says [2000, 256]", 3),
        ({"hidden_size": 512}, "is [512, 256], config.json says [512, 512]", 3),
        ({"intermediate_size": 10**7}, "config.json says [10000000, 256]", 3),
        ({"get_text_config": 1}, "cannot", 4),
        ({"architectures": 3}, "cannot build it from config.json", 4),
    ],
)
def test_what_transformers_does_not_accept_is_named_at_once(
    change: dict[str, Any], words: str, exit_code: int, llama: Details
) -> None:
    started = time.perf_counter()
    found = read_layers(llama.config | change, llama.tensors, Recipe())
    assert words in found.problem
    assert (found.exit_code, "\n" in found.problem) == (exit_code, False)
    assert time.perf_counter() - started < 10


def test_a_model_of_far_more_tensors_than_are_stored_is_not_built(tmp_path: Path) -> None:
    details = tiny("qwen2_vl", tmp_path)
    tower = details.config["vision_config"] | {"depth": 10**9}
    found = read_layers(details.config | {"vision_config": tower}, details.tensors, Recipe())
    assert found.problem.startswith("config.json describes more than 10")
    assert found.problem.endswith(f"tensors, and the weights hold {len(details.tensors)}")


def test_table_covers_every_causal_language_model() -> None:
    assert set(model_types()) >= set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


def test_the_child_answers_as_the_function_does(tmp_path: Path) -> None:
    details = tiny("llama", tmp_path)
    assert layers_of_model(details, Recipe()) == read_layers(details.config, details.tensors, Recipe())
