"""AutoAWQ's search as we use it: the bug that is fixed, what is scaled, and the errors for what does not fit."""

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bot.checkpoint.gemm import pack
from bot.checkpoint.reader import Checkpoint
from bot.checkpoint.rounding import round_to_nearest
from bot.checkpoint.skeleton import Skeleton, open_skeleton
from bot.errors import QuantizationError, UnsupportedModelError
from bot.quantize import autoawq as autoawq_module
from bot.quantize import compensated, correction, in_turn, walk
from bot.quantize import search as search_module
from bot.quantize.architectures import linears_inside
from bot.quantize.artifact import METHODS
from bot.quantize.autoawq import LayerwiseQuantizer, quantize_layers
from bot.quantize.scaling import Group, Scale, unscaled
from bot.quantize.trace import Trace, trace_layer
from bot.quantize.walk import QuantizeContext
from bot.records import Recipe, no_progress
from tests.support import tiny_models
from tests.support.stock_awq import AwqQuantizer

CPU = torch.device("cpu")


def context_of(skeleton: Skeleton, folder: Path) -> QuantizeContext:
    return QuantizeContext(
        skeleton=skeleton,
        blocks=tiny_models.random_blocks(4, 32),
        linears_to_quantize=frozenset(linears_inside(skeleton.layers, skeleton.path)),
        folder=folder,
        fingerprint="key",
        device=CPU,
        recipe=Recipe(),
        progress=no_progress,
    )


def searched(kind: type[AwqQuantizer]) -> tuple[nn.Linear, nn.Linear]:
    """A linear before and after the scale search, which must only look at it. Its inputs have outlier channels."""
    torch.manual_seed(0)
    linear, inputs = nn.Linear(128, 64), torch.randn(2, 32, 128) * torch.exp(torch.randn(128))
    linear.weight.data *= torch.exp(torch.randn(128))
    before = copy.deepcopy(linear)
    quantizer: Any = object.__new__(kind)
    quantizer.group_size, quantizer.w_bit, quantizer.zero_point, quantizer.duo_scaling = 128, 4, True, True
    quantizer.max_chunk_memory, quantizer.n_parallel_calib_samples = 2**30, None
    skeleton = Skeleton(
        model=linear,
        path="",
        layers=nn.ModuleList(),
        origins={},
        stored=(),
        read=before.get_parameter,
        dtype=torch.float32,
        unread=(),
    )
    quantizer._context = context_of(skeleton, Path())
    with torch.no_grad():
        quantizer._search_best_scale(nn.Sequential(nn.Identity(), linear), linear, [linear], inputs)
    return before, linear


def test_search_on_a_cpu_leaves_the_weights_alone_other_than_autoawqs() -> None:
    before, after = searched(AwqQuantizer)
    assert (after.weight - before.weight).norm() > 0.1 * before.weight.norm()
    before, after = searched(LayerwiseQuantizer)
    assert torch.equal(after.weight, before.weight)
    assert "state_dict" not in vars(after)


def opened(
    model_type: str, folder: Path, *, dtype: torch.dtype = torch.float32, **changes: Any
) -> tuple[Checkpoint, Skeleton]:
    checkpoint = Checkpoint(tiny_models.build(model_type, folder / "source", **changes))
    return checkpoint, open_skeleton(
        checkpoint.folder, checkpoint.tensors, read=checkpoint.read, dtype=dtype, trust_remote_code=False
    )


def quantized_layers(skeleton: Skeleton, folder: Path, *, method: str) -> dict[str, Tensor]:
    """All tensors of the finished layers' files."""
    (folder / "layers").mkdir()
    finished = quantize_layers(context_of(skeleton, folder / "layers"), quantizer=METHODS[method])
    return {name: layer.file.read(name) for layer in finished for name in layer.file.tensors}


def quantized(model_type: str, folder: Path, *, method: str, **settings: Any) -> dict[str, Tensor]:
    _, skeleton = opened(model_type, folder, **settings)
    return quantized_layers(skeleton, folder, method=method)


def test_more_text_than_is_corrected_for_goes_through_the_quantized_layers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "whole").mkdir()
    whole = quantized("qwen3", tmp_path / "whole", method="awq+gptq")
    for module in (compensated, correction, in_turn):
        monkeypatch.setattr(module, "CORRECTED_TOKENS", 2 * 32)
    monkeypatch.setattr(walk, "TOKENS_AT_ONCE", 32)
    (tmp_path / "part").mkdir()
    part = quantized("qwen3", tmp_path / "part", method="awq+gptq")
    assert {name: tensor.shape for name, tensor in part.items()} == {
        name: tensor.shape for name, tensor in whole.items()
    }
    name = "model.layers.1.mlp.down_proj.qweight"  # fitted to less text
    assert not torch.equal(part[name], whole[name])


@pytest.mark.parametrize("method", METHODS)
def test_a_search_in_half_precision_ends_in_norms_that_are_not_rounded_to_it(method: str, tmp_path: Path) -> None:
    """As on a GPU: the grid runs in the source's dtype, scales and integers are applied in float32."""
    tensors = quantized("qwen3", tmp_path, method=method, dtype=torch.bfloat16)
    norm = tensors["model.layers.0.input_layernorm.weight"]
    assert norm.dtype == torch.float32
    assert not torch.equal(norm, norm.bfloat16().float())
    assert tensors["model.layers.0.mlp.up_proj.qweight"].shape == (256, 48)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("model_type", "changes", "divided", "as_it_was"),
    [
        # GELU is not homogeneous: what fc1 makes smaller, fc2 cannot make larger again.
        ("opt", {"activation_function": "gelu"}, "final_layer_norm.bias", "fc1.bias"),
        ("opt", {"activation_function": "relu"}, "fc1.bias", "fc2.bias"),
        ("falcon", {"new_decoder_architecture": False}, "input_layernorm.weight", ""),
        ("qwen3", {}, "post_attention_layernorm.weight", "self_attn.q_norm.weight"),
    ],
)
def test_only_what_leaves_the_layers_outputs_as_they_are_is_scaled(
    method: str, model_type: str, changes: dict[str, Any], divided: str, as_it_was: str, tmp_path: Path
) -> None:
    source, skeleton = opened(model_type, tmp_path, **changes)
    tensors = quantized_layers(skeleton, tmp_path, method=method)
    before = {name: source.read(name).float() for name in source.tensors}
    assert not torch.equal(tensors[f"{skeleton.path}.0.{divided}"], before[f"{skeleton.path}.0.{divided}"])
    if as_it_was:
        assert torch.equal(tensors[f"{skeleton.path}.0.{as_it_was}"], before[f"{skeleton.path}.0.{as_it_was}"])
    linears = linears_inside(skeleton.layers, skeleton.path)
    assert {name.removesuffix(".qweight") for name in tensors if name.endswith(".qweight")} == set(linears)


@pytest.mark.parametrize("method", METHODS)
def test_a_scaling_that_changes_the_outputs_is_refused(
    method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is proved on one block of tokens before, and checked again when all factors are known."""

    def wrong(*args: Any) -> Trace:
        found = trace_layer(*args)
        return replace(found, groups=(*found.groups, Group(producer="fc1", readers=("fc2",))))

    monkeypatch.setattr(autoawq_module, "trace_layer", wrong)
    with pytest.raises(UnsupportedModelError, match="layer 0: scaling changes what this layer computes"):
        quantized("opt", tmp_path, method=method, activation_function="gelu")


@pytest.mark.parametrize(
    ("model_type", "problem"),
    [
        ("qwen3_moe", "does not support mixtures"),
        ("gemma4_text", "needs arguments that are the same for all samples"),
    ],
)
def test_layers_that_autoawqs_search_cannot_run_are_refused_and_ours_runs_them(
    model_type: str, problem: str, tmp_path: Path
) -> None:
    (tmp_path / "ours").mkdir()
    assert any(name.endswith("qweight") for name in quantized(model_type, tmp_path / "ours", method="awq+gptq"))
    with pytest.raises(UnsupportedModelError, match=f"layer 0: AutoAWQ's search {problem}") as refused:
        quantized(model_type, tmp_path, method="awq")
    assert "awq+gptq" in refused.value.hint


@pytest.mark.parametrize("method", METHODS)
def test_linears_that_no_token_reaches_are_rounded_to_nearest(method: str, tmp_path: Path) -> None:
    source, skeleton = opened("llama", tmp_path)
    layers: Any = skeleton.layers
    for layer in layers:
        layer.mlp.forward = nn.Identity().forward
    tensors = quantized_layers(skeleton, tmp_path, method=method)
    for name in ("gate_proj", "up_proj", "down_proj"):
        path = f"model.layers.1.mlp.{name}"
        rounded = pack(*round_to_nearest(source.read(f"{path}.weight").float(), group_size=Recipe().group_size))
        for part, expected in rounded._asdict().items():
            assert torch.equal(tensors[f"{path}.{part}"], expected)


def test_a_search_that_finds_nothing_names_its_layer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing(*args: object, **kwargs: object) -> None:
        raise Exception  # what AutoAWQ raises when no loss is finite

    monkeypatch.setattr(AwqQuantizer, "_compute_best_scale", nothing)
    monkeypatch.setattr(search_module, "output_energy", lambda *args: float("nan"))
    for method in METHODS:
        with pytest.raises(QuantizationError, match="layer 0: the search found no finite scales"):
            quantized("llama", tmp_path / method, method=method)


def test_scaling_is_undone_in_rows_and_columns() -> None:
    up, down = torch.randn(6, 4), torch.randn(5, 3)
    by = torch.tensor([0.5, 2.0, 3.0])
    scaled_up, scaled_down = up.clone(), down * by
    scaled_up[-3:] /= by.unsqueeze(1)  # the last rows of a merged gate and up
    scales = [Scale(Group(producer="gate_up", readers=("down",)), by)]
    assert torch.allclose(unscaled(scaled_up, "gate_up", scales), up)
    assert torch.allclose(unscaled(scaled_down, "down", scales), down)
    assert torch.equal(unscaled(up, "other", scales), up)
