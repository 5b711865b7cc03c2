"""The plan's answer from the model itself: against the one from headers and the table, and in a child process."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from bot.checkpoint.weight_files import read_weight_headers
from bot.jobs.model import read_layers
from bot.jobs.worker import layers_of_model
from bot.records import Details, Recipe, TensorInfo
from bot.watch.layers import layers_from_headers, model_types, table_version
from tests.support import tiny_models

SAME = ("path", "stored_path", "experts")
QUICK = ("gemma3", "gpt_oss", "mixtral", "qwen3_next")


def tiny(model_type: str, folder: Path) -> Details:
    source = tiny_models.build(model_type, folder / "source", dtype=torch.bfloat16)
    config = json.loads((source / "config.json").read_text())
    return Details(config=config, tensors=tuple(read_weight_headers(source).tensors.values()))


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
    assert (missing.problem.startswith("1 missing keys: "), missing.exit_code) == (True, 3)
    broken = read_layers(details.config | {"hidden_size": "odd"}, details.tensors, Recipe())
    assert ("cannot load it" in broken.problem, broken.exit_code) == (True, 4)


def test_table_covers_every_causal_language_model() -> None:
    assert set(model_types()) >= set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


def test_the_child_answers_as_the_function_does(tmp_path: Path) -> None:
    details = tiny("llama", tmp_path)
    assert layers_of_model(details, Recipe()) == read_layers(details.config, details.tensors, Recipe())
