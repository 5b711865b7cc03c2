"""AutoAWQ's search as we use it: the bug that is fixed, and the errors for models that do not fit."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn

from bot.checkpoint.reader import Checkpoint
from bot.checkpoint.skeleton import Skeleton, open_skeleton
from bot.errors import QuantizationError, UnsupportedModelError
from bot.quantize import search as search_module
from bot.quantize.architectures import linears_inside
from bot.quantize.artifact import METHODS
from bot.quantize.autoawq import LayerwiseQuantizer, check_known, quantize_layers
from bot.quantize.layer import Scale, unscaled
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
        model=linear, path="", layers=nn.ModuleList(), names={}, read=before.get_parameter, dtype=torch.float32
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


def quantized(
    model_type: str, folder: Path, *, method: str, dtype: torch.dtype = torch.float32, **changes: Any
) -> dict[str, Tensor]:
    """All tensors of the finished layers' files."""
    source = tiny_models.build(model_type, folder / "source", **changes)
    checkpoint = Checkpoint(source)
    skeleton = open_skeleton(
        source, checkpoint.tensors, read=checkpoint.read, dtype=dtype, trust_remote_code=False
    )
    check_known(skeleton.model, skeleton.layers)
    (folder / "layers").mkdir()
    finished = quantize_layers(context_of(skeleton, folder / "layers"), quantizer=METHODS[method])
    return {name: layer.file.read(name) for layer in finished for name in layer.file.tensors}


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
    ("model_type", "changes", "problem"),
    [
        # GELU is not homogeneous: what fc1 makes smaller, fc2 cannot make larger again.
        ("opt", {"activation_function": "gelu"}, "layer 0: AutoAWQ's scaling changes what this opt computes"),
        ("falcon", {"new_decoder_architecture": False}, "AutoAWQ does not know this kind of 'falcon': .*ln_attn"),
        ("qwen3_moe", {}, "holds its experts as one tensor"),
    ],
)
def test_layers_that_autoawqs_tables_do_not_fit_are_refused(
    method: str, model_type: str, changes: dict[str, Any], problem: str, tmp_path: Path
) -> None:
    with pytest.raises(UnsupportedModelError, match=problem):
        quantized(model_type, tmp_path, method=method, **changes)


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
    scales = [Scale("gate_up", ("down",), by)]
    assert torch.allclose(unscaled(scaled_up, "gate_up", scales), up)
    assert torch.allclose(unscaled(scaled_down, "down", scales), down)
    assert torch.equal(unscaled(up, "other", scales), up)


def test_types_and_layers_that_autoawq_does_not_know_are_refused() -> None:
    """The quantizer and the evaluator go by one rule, and AutoAWQ's table must be about the same layers."""
    with torch.device("meta"):
        llama = transformers.LlamaForCausalLM(transformers.LlamaConfig(**tiny_models.CONFIGS["llama"]))
        gpt2 = transformers.GPT2LMHeadModel(transformers.GPT2Config())
    check_known(llama, llama.model.layers)
    with pytest.raises(UnsupportedModelError, match="its decoder layers are elsewhere"):
        check_known(llama, nn.ModuleList(llama.model.layers))
    with pytest.raises(UnsupportedModelError, match="no causal language model of type 'gpt2'"):
        check_known(gpt2, gpt2.transformer.h)
