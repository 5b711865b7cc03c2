"""A model that is filled part by part is the model that transformers loads."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import nn

from bot.checkpoint.reader import Checkpoint
from bot.checkpoint.skeleton import Skeleton, decoder_layers, load_tensors, open_skeleton, read_ahead, unload
from bot.errors import UnsupportedModelError, UpstreamError
from tests.support import tiny_models
from tests.support.artifact_pairs import change_config, change_tensors

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


@pytest.mark.parametrize("key", ["attn_implementation", "_attn_implementation"])
def test_kernels_that_a_config_asks_for_are_not_needed(key: str, tmp_path: Path) -> None:
    source = tiny_models.build("llama", tmp_path)
    change_config(source, lambda config: config.update({key: "flash_attention_2"}))
    assert len(skeleton_of(source).layers) > 0


@pytest.mark.parametrize("model_type", ["llama", "qwen3", "gpt_bigcode", "gpt_neox", "opt"])
def test_with_all_tensors_it_computes_what_transformers_own_model_does(model_type: str, tmp_path: Path) -> None:
    source = tiny_models.build(model_type, tmp_path)
    skeleton = skeleton_of(source)
    fill_all(skeleton)
    blocks = tiny_models.random_blocks(2, 32)
    with torch.no_grad():
        assert torch.equal(skeleton.model(blocks).logits, loaded(source)(blocks).logits)


def test_modules_hold_shapes_only_unless_they_are_loaded(tmp_path: Path) -> None:
    skeleton = skeleton_of(tiny_models.build("llama", tmp_path))

    def is_empty(module: nn.Module) -> bool:
        return all(parameter.is_meta for parameter in module.parameters())

    assert is_empty(skeleton.model)
    assert not any(buffer.is_meta for buffer in skeleton.model.buffers())
    assert not skeleton.model.training
    load_tensors(skeleton.layers[0], skeleton.layer_tensors(0), device=CPU)
    assert not any(parameter.is_meta for parameter in skeleton.layers[0].parameters())
    assert is_empty(skeleton.layers[1])
    unload(skeleton.layers[0])
    assert is_empty(skeleton.model)


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
    expected = loaded(source).state_dict()

    def rename(tensors: dict[str, torch.Tensor]) -> None:
        for name in list(tensors):
            tensors[name.removeprefix("model.")] = tensors.pop(name)

    change_tensors(source, rename)
    skeleton = skeleton_of(source)
    fill_all(skeleton)
    assert all(torch.equal(value, expected[name]) for name, value in skeleton.model.state_dict().items())


def test_floats_come_in_the_dtype_that_is_worked_with(tmp_path: Path) -> None:
    skeleton = skeleton_of(tiny_models.build("llama", tmp_path), torch.bfloat16)
    assert {value.dtype for value in skeleton.layer_tensors(0).values()} == {torch.bfloat16}


def test_a_tensor_that_is_missing_or_of_another_shape_is_named(tmp_path: Path) -> None:
    source, name = tiny_models.build("llama", tmp_path), "model.norm.weight"
    change_tensors(source, lambda tensors: tensors.pop(name))
    with pytest.raises(UpstreamError, match=r"upload incomplete: 1 missing keys: 'model\.norm\.weight'$"):
        skeleton_of(source)
    change_tensors(source, lambda tensors: tensors.update({name: torch.ones(7)}))
    with pytest.raises(
        UpstreamError, match=r"1 mismatched keys: 'model\.norm\.weight' is \[7\], config.json says"
    ):
        skeleton_of(source)


def test_a_tensor_that_is_needed_must_be_of_plain_floats(tmp_path: Path) -> None:
    source, name = tiny_models.build("llama", tmp_path), "model.embed_tokens.weight"
    change_tensors(source, lambda tensors: tensors.update({name: tensors[name].to(torch.float8_e4m3fn)}))
    with pytest.raises(UnsupportedModelError, match=f"{name} is F8_E4M3, not one of BF16, F16, F32, F64"):
        skeleton_of(source)
    restored = {name: torch.ones(512, 256), "odd": torch.ones(4).to(torch.float8_e8m0fnu)}
    change_tensors(source, lambda tensors: tensors.update(restored))
    assert skeleton_of(source).origins.keys() >= {name}


def test_a_model_whose_layers_are_in_no_list_is_refused(tmp_path: Path) -> None:
    model = skeleton_of(tiny_models.build("llama", tmp_path)).model
    model.model.layers = nn.ModuleList([model.model.layers[0]])
    with pytest.raises(UnsupportedModelError, match="no list of 2 decoder layers"):
        decoder_layers(model)


def test_reading_is_one_ahead_and_an_error_is_raised_in_its_turn() -> None:
    read: list[int] = []

    def reading(number: int) -> int:
        if number == 5:
            raise UpstreamError("gone")
        read.append(number)
        return number

    ahead = read_ahead(partial(reading, number) for number in range(6))
    for number in range(5):
        assert next(ahead) == number
        assert len(read) <= number + 2
    assert read == [0, 1, 2, 3, 4]
    with pytest.raises(UpstreamError, match="gone"):
        next(ahead)
