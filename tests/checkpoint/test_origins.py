"""What each tensor of a model is made from, compared with the values that transformers itself loads."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

from bot.checkpoint.reader import Checkpoint
from bot.checkpoint.skeleton import Skeleton, open_skeleton, unused_tensors
from bot.errors import UnsupportedModelError, UpstreamError
from tests.support import tiny_models
from tests.support.artifact_pairs import change_tensors

# For each type: where expert 1 of layer 0 is in the model, and the names under which its linears are stored or
# written: gate, up and down.
STORED_BY_EXPERT = {
    "qwen3_moe": ("model.layers.0.mlp", "model.layers.0.mlp.experts.1.{gate_proj,up_proj,down_proj}.weight"),
    "mixtral": ("model.layers.0.mlp", "model.layers.0.block_sparse_moe.experts.1.{w1,w3,w2}.weight"),
}
STORED_FUSED = {
    "gpt_oss": ("model.layers.0.mlp", "model.layers.0.mlp.experts.1.{gate_proj,up_proj,down_proj}.weight"),
    "llama4_text": (
        "model.layers.0.feed_forward",
        "model.layers.0.feed_forward.experts.1.{gate_proj,up_proj,down_proj}.weight",
    ),
    "granitemoe": (
        "model.layers.0.block_sparse_moe",
        "model.layers.0.block_sparse_moe.experts.1.{gate_proj,up_proj,down_proj}.weight",
    ),
}
EXPERTS = STORED_BY_EXPERT | STORED_FUSED

# The parameters from the weights of all experts, [experts, out, in], as each type reads them; whether transposed.
FUSED: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], bool]] = {
    "qwen3_moe": (lambda gate, up: torch.cat((gate, up), dim=1), False),
    "mixtral": (lambda gate, up: torch.cat((gate, up), dim=1), False),
    "granitemoe": (lambda gate, up: torch.cat((gate, up), dim=1), False),
    "llama4_text": (lambda gate, up: torch.cat((gate, up), dim=1), True),
    "gpt_oss": (lambda gate, up: torch.stack((gate, up), dim=2).flatten(1, 2), True),
}


def opened(folder: Path, model_type: str, **settings: Any) -> tuple[Skeleton, Checkpoint]:
    checkpoint = Checkpoint(tiny_models.build(model_type, folder, **settings))
    return reopened(checkpoint, checkpoint.read), checkpoint


def reopened(source: Checkpoint, read: Callable[[str], Tensor], **others: Any) -> Skeleton:
    return open_skeleton(
        source.folder, source.tensors, read=read, dtype=torch.float32, trust_remote_code=False, **others
    )


def loaded(folder: Path) -> dict[str, Tensor]:
    """The values as transformers itself loads them."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return dict(model.state_dict())


def values(skeleton: Skeleton) -> dict[str, Tensor]:
    """Everything that the skeleton reads, by the model's names."""
    found = skeleton.tensors_before() | skeleton.tensors_after()
    for index in range(len(skeleton.layers)):
        inside = skeleton.layer_tensors(index)
        found |= {f"{skeleton.path}.{index}.{key}": value for key, value in inside.items()}
    return found


def names_of(pattern: str) -> list[str]:
    """`a.{x,y}.b` -> a.x.b, a.y.b."""
    before, _, rest = pattern.partition("{")
    inside, _, after = rest.partition("}")
    return [f"{before}{name}{after}" for name in inside.split(",")]


def fused(model_type: str, found: dict[str, Tensor]) -> dict[str, Tensor]:
    """The values with each expert's put together into the parameters of transformers."""
    merge, transposed = FUSED[model_type]
    experts = {key for key in found if ".experts." in key}
    whole = {key: value for key, value in found.items() if key not in experts}
    for kind in ("weight", "bias"):
        for path in {key.partition(".experts.")[0] for key in experts if key.endswith(kind)}:
            count = sum(key.startswith(f"{path}.experts.") and key.endswith(f"up_proj.{kind}") for key in experts)
            gate, up, down = (
                torch.stack([found[f"{path}.experts.{expert}.{name}_proj.{kind}"] for expert in range(count)])
                for name in ("gate", "up", "down")
            )
            merged = merge(gate, up)
            end = "_bias" if kind == "bias" else ""
            for name, value in (("gate_up_proj", merged), ("down_proj", down)):
                whole[f"{path}.experts.{name}{end}"] = value.mT if transposed and not end else value
    return whole


@pytest.mark.parametrize("model_type", EXPERTS)
def test_values_are_those_that_transformers_loads(model_type: str, tmp_path: Path) -> None:
    skeleton, checkpoint = opened(tmp_path, model_type)
    expected, got = loaded(tmp_path), fused(model_type, values(skeleton))
    assert set(got) == set(expected)
    assert [key for key in got if not torch.equal(got[key], expected[key])] == []
    assert unused_tensors(skeleton.origins, checkpoint.tensors) == frozenset()


def test_experts_are_counted_not_sorted_by_letters(tmp_path: Path) -> None:
    skeleton, _ = opened(tmp_path, "qwen3_moe", num_experts=12)
    expected, got = loaded(tmp_path), fused("qwen3_moe", values(skeleton))
    assert [key for key in got if not torch.equal(got[key], expected[key])] == []


@pytest.mark.parametrize("model_type", EXPERTS)
def test_the_linears_of_an_expert_have_a_name_of_their_own(model_type: str, tmp_path: Path) -> None:
    skeleton, _ = opened(tmp_path, model_type)
    path, pattern = EXPERTS[model_type]
    linears = [f"{path}.experts.1.{name}_proj" for name in ("gate", "up", "down")]
    assert [f"{skeleton.name_of(linear)}.weight" for linear in linears] == names_of(pattern)
    assert [skeleton.why_fixed(f"{linear}.weight") for linear in linears] == [None] * 3


@pytest.mark.parametrize("model_type", EXPERTS)
def test_packed_experts_are_written_one_by_one_and_read_back(model_type: str, tmp_path: Path) -> None:
    """As an artifact has them: under the name of each expert, none under the names of the source."""
    skeleton, checkpoint = opened(tmp_path, model_type)
    linears = [key.removesuffix(".weight") for key in skeleton.origins if ".experts." in key and "weight" in key]
    written = skeleton.tensors_as_written(checkpoint.tensors, {skeleton.name_of(name) for name in linears})
    before = values(skeleton)
    by_name = {skeleton.origins[key].name: value for key, value in before.items()}
    assert set(written) == set(by_name)
    assert {name: info.shape for name, info in written.items()} == {
        name: tuple(value.shape) for name, value in by_name.items()
    }
    assert (set(written) == set(checkpoint.tensors)) == (model_type in STORED_BY_EXPERT)

    again = values(reopened(checkpoint, by_name.__getitem__, stored=frozenset(by_name)))
    assert set(again) == set(before)
    assert [key for key in again if not torch.equal(again[key], before[key])] == []


@pytest.mark.parametrize("model_type", STORED_FUSED)
def test_experts_that_are_not_packed_keep_their_names(model_type: str, tmp_path: Path) -> None:
    skeleton, checkpoint = opened(tmp_path, model_type)
    assert skeleton.tensors_as_written(checkpoint.tensors, set()) == dict(checkpoint.tensors)


@pytest.mark.parametrize(
    ("model_type", "path"),
    [("kimi_linear", "model.layers.0.self_attn"), ("olmo_hybrid", "model.layers.0.linear_attn")],
)
def test_a_conversion_that_is_not_of_experts(model_type: str, path: str, tmp_path: Path) -> None:
    """The convolutions of queries, keys and values are one in the model."""
    skeleton, checkpoint = opened(tmp_path, model_type)
    expected, got = loaded(tmp_path), values(skeleton)
    (key,) = [key for key in expected if key.startswith(path) and key.endswith("conv1d.weight")]
    assert key not in checkpoint.tensors
    assert torch.equal(got[key], expected[key])
    assert skeleton.why_fixed(key) == "stored in another form"
    stored = {f"{path}.{letter}_conv1d.weight" for letter in "qkv"}
    assert set(skeleton.origins[key].names(checkpoint.tensors)) == stored


def test_experts_that_cannot_be_written_one_by_one_are_refused(tmp_path: Path) -> None:
    checkpoint = Checkpoint(tiny_models.build("ernie4_5_vl_moe", tmp_path))
    with pytest.raises(UnsupportedModelError, match="cannot be written one by one") as refused:
        reopened(checkpoint, checkpoint.read)
    assert refused.value.hint == "Put it on `hold:` on the watchlist."


CONVOLUTIONS = [f"model.layers.1.self_attn.{part}_conv1d.weight" for part in "qkv"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda tensors: tensors.pop(CONVOLUTIONS[2]), "no self_attn.v_conv1d.weight"),
        (lambda tensors: _cut(tensors, slice(0, 8)), f"{CONVOLUTIONS[2]} [8, 1, 4]"),
        (lambda tensors: _cut(tensors, 0), f"{CONVOLUTIONS[2]} [1, 4]"),
    ],
    ids=["missing", "other shape", "other dimensions"],
)
def test_tensors_that_cannot_be_merged_are_named_as_they_are_stored(
    change: Callable[[dict[str, Tensor]], object], words: str, tmp_path: Path
) -> None:
    source = tiny_models.build("kimi_linear", tmp_path)
    change_tensors(source, change)
    checkpoint = Checkpoint(source)
    with pytest.raises(UpstreamError, match=r"model\.layers\.1\.self_attn\.conv1d\.weight") as caught:
        reopened(checkpoint, checkpoint.read)
    assert f"merged from {CONVOLUTIONS[0]} [256, 1, 4], {CONVOLUTIONS[1]} [256, 1, 4], {words}" in str(
        caught.value
    )
    assert caught.value.hint == "The weights are not complete, or broken."
    assert "config" not in str(caught.value).replace(str(tmp_path), "")


def _cut(tensors: dict[str, Tensor], rows: slice | int) -> None:
    tensors[CONVOLUTIONS[2]] = tensors[CONVOLUTIONS[2]][rows].contiguous()


def test_an_expert_that_is_missing_is_seen_by_the_number_of_tensors(tmp_path: Path) -> None:
    source = tiny_models.build("qwen3_moe", tmp_path)
    change_tensors(source, lambda tensors: tensors.pop("model.layers.1.mlp.experts.2.up_proj.weight"))
    checkpoint = Checkpoint(source)
    found = r"experts\.0\.gate_proj\.weight \[128, 256\] and 3 more, .*up_proj\.weight \[128, 256\] and 2 more"
    with pytest.raises(UpstreamError, match=found):
        reopened(checkpoint, checkpoint.read)
