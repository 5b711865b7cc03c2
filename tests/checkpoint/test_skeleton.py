"""A model that is filled part by part is the model that transformers loads."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import nn

from bot.checkpoint.reader import Checkpoint
from bot.checkpoint.skeleton import Skeleton, decoder_layers, load_tensors, open_skeleton, read_ahead, unload
from bot.errors import UnsupportedModelError, UpstreamError
from tests.support import tiny_models

CPU = torch.device("cpu")


def skeleton_of(source: Path, dtype: torch.dtype = torch.float32) -> Skeleton:
    checkpoint = Checkpoint(source)
    return open_skeleton(source, checkpoint.tensors, read=checkpoint.read, dtype=dtype, trust_remote_code=False)


def fill_all(skeleton: Skeleton) -> None:
    load_tensors(skeleton.model, skeleton.tensors_before() | skeleton.tensors_after(), device=CPU)
    for index, layer in enumerate(skeleton.layers):
        load_tensors(layer, skeleton.layer_tensors(index), device=CPU)


def loaded(source: Path) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32).eval()


def has_values(module: nn.Module) -> bool:
    return not any(parameter.is_meta for parameter in module.parameters())


@pytest.mark.parametrize("key", ["attn_implementation", "_attn_implementation"])
def test_kernels_that_a_config_asks_for_are_not_needed(key: str, tmp_path: Path) -> None:
    source = tiny_models.build("llama", tmp_path)
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(config | {key: "flash_attention_2"}))
    assert len(skeleton_of(source).layers) > 0


@pytest.mark.parametrize("model_type", ["llama", "qwen3", "gpt_bigcode", "gpt_neox", "opt"])
def test_filled_it_computes_what_transformers_own_model_does(model_type: str, tmp_path: Path) -> None:
    source = tiny_models.build(model_type, tmp_path)
    skeleton = skeleton_of(source)
    fill_all(skeleton)
    blocks = tiny_models.random_blocks(2, 32)
    with torch.no_grad():
        assert torch.equal(skeleton.model(blocks).logits, loaded(source)(blocks).logits)


def test_unfilled_it_holds_shapes_only(tmp_path: Path) -> None:
    skeleton = skeleton_of(tiny_models.build("llama", tmp_path))
    assert all(parameter.is_meta for parameter in skeleton.model.parameters())
    assert not any(buffer.is_meta for buffer in skeleton.model.buffers())
    assert not skeleton.model.training


def test_dropped_it_holds_shapes_only_again(tmp_path: Path) -> None:
    skeleton = skeleton_of(tiny_models.build("llama", tmp_path))
    load_tensors(skeleton.layers[0], skeleton.layer_tensors(0), device=CPU)
    assert has_values(skeleton.layers[0])
    assert not has_values(skeleton.layers[1])
    unload(skeleton.layers[0])
    assert all(parameter.is_meta for parameter in skeleton.model.parameters())
    fill_all(skeleton)
    assert has_values(skeleton.model)


def test_each_end_of_an_untied_model_goes_without_the_others_embedding(tmp_path: Path) -> None:
    skeleton = skeleton_of(tiny_models.build("llama", tmp_path))
    ends = {"model.embed_tokens.weight", "lm_head.weight"}
    assert skeleton.tensors_before().keys() & ends == {"model.embed_tokens.weight"}
    assert skeleton.tensors_after().keys() & ends == {"lm_head.weight"}


def test_tied_embeddings_are_one_piece_of_memory(tmp_path: Path) -> None:
    skeleton = skeleton_of(tiny_models.build("qwen3", tmp_path))
    for tensors in (skeleton.tensors_before(), skeleton.tensors_after()):
        assert tensors["lm_head.weight"].data_ptr() == tensors["model.embed_tokens.weight"].data_ptr()
        load_tensors(skeleton.model, tensors, device=CPU)
        assert skeleton.model.lm_head.weight.data_ptr() == skeleton.model.model.embed_tokens.weight.data_ptr()


def test_names_without_the_base_models_prefix_are_found(tmp_path: Path) -> None:
    source = tiny_models.build("llama", tmp_path)
    tensors = {
        name.removeprefix("model."): value for name, value in load_file(source / "model.safetensors").items()
    }
    expected = loaded(source).state_dict()
    save_file(tensors, source / "model.safetensors", metadata={"format": "pt"})
    skeleton = skeleton_of(source)
    fill_all(skeleton)
    assert all(torch.equal(value, expected[name]) for name, value in skeleton.model.state_dict().items())


def test_floats_come_in_the_dtype_that_is_worked_with(tmp_path: Path) -> None:
    skeleton = skeleton_of(tiny_models.build("llama", tmp_path), torch.bfloat16)
    assert {value.dtype for value in skeleton.layer_tensors(0).values()} == {torch.bfloat16}


def test_what_is_missing_or_of_another_shape_is_named(tmp_path: Path) -> None:
    source = tiny_models.build("llama", tmp_path)
    tensors = load_file(source / "model.safetensors")
    norm = tensors.pop("model.norm.weight")
    save_file(tensors, source / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UpstreamError, match=r'1 missing keys: "model\.norm\.weight"'):
        skeleton_of(source)
    save_file(tensors | {"model.norm.weight": norm[:7]}, source / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UpstreamError, match=r'1 mismatched keys: "model\.norm\.weight"'):
        skeleton_of(source)


def test_a_model_whose_layers_are_in_no_list_is_refused(tmp_path: Path) -> None:
    model = skeleton_of(tiny_models.build("llama", tmp_path)).model
    model.model.layers = nn.ModuleList([model.model.layers[0]])
    with pytest.raises(UnsupportedModelError, match="no list of 2 decoder layers"):
        decoder_layers(model)


def test_one_is_read_while_the_one_before_is_worked_on() -> None:
    read: list[int] = []

    def reading(number: int) -> int:
        read.append(number)
        return number

    seen = []
    for number in read_ahead(partial(reading, number) for number in range(5)):
        seen.append(number)
        assert len(read) <= number + 2
    assert seen == read == [0, 1, 2, 3, 4]


def test_an_error_in_reading_ahead_comes_when_its_turn_comes() -> None:
    def broken() -> int:
        raise UpstreamError("gone")

    ahead = read_ahead([lambda: 1, broken])
    assert next(ahead) == 1
    with pytest.raises(UpstreamError, match="gone"):
        next(ahead)
