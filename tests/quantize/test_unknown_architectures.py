"""Models whose architecture no library knows: their code lies in the model's own folder."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn

from bot.errors import UnsupportedModelError
from bot.evaluate.metrics import evaluate, token_figures
from bot.quantize.artifact import quantize
from bot.records import QuantizedModel, Recipe, no_progress
from tests.support import tiny_models
from tests.support.own_code import modeling_crowd, modeling_relay, modeling_sandwich

TOKENS = tiny_models.random_blocks(4, 64, seed=1)


@pytest.fixture(autouse=True)
def own_modules_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where transformers copies a folder's code to before it imports it."""
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))


def build(folder: Path, module: Any, name: str, **settings: Any) -> Any:
    """Write a random model with outlier channels, and its code, into folder. Returns it in float32."""
    torch.manual_seed(0)
    model_class, config_class = getattr(module, f"{name}ForCausalLM"), getattr(module, f"{name}Config")
    model = model_class(config_class(**settings)).eval()
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.05)
            elif key.endswith("bias"):
                parameter.normal_(0, 0.02)
            else:  # a norm, of which some multiply by 1 + weight
                parameter.copy_(torch.exp(torch.randn_like(parameter)) - (1 - parameter.mean()))
    model.half().save_pretrained(folder)
    code = Path(module.__file__)
    shutil.copy(code, folder)
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"] = {
        "AutoConfig": f"{code.stem}.{name}Config",
        "AutoModelForCausalLM": f"{code.stem}.{name}ForCausalLM",
    }
    (folder / "config.json").write_text(json.dumps(config))
    return model.float()


def quantized(folder: Path, *, trust_remote_code: bool = True) -> QuantizedModel:
    blocks = tiny_models.random_blocks(8, 64)
    return quantize(
        folder / "source",
        folder / "out",
        layers=folder / "layers",
        recipe=Recipe(group_size=128),
        blocks=blocks,
        calibration=tiny_models.calibration_set(blocks),
        trust_remote_code=trust_remote_code,
        progress=no_progress,
    )


@torch.no_grad()
def kl_of_plain_rounding(model: nn.Module, packed: set[str]) -> float:
    """Mean KL divergence when these linears are rounded, in nats; of 3-D parameters all are."""
    expected = model(TOKENS).logits
    for name, parameter in model.named_parameters():
        if name.removesuffix(".weight") in packed:
            parameter.copy_(tiny_models.rounded(parameter, 128))
        elif parameter.dim() == 3:
            for expert in parameter:
                expert.copy_(tiny_models.rounded(expert, 128))
    return mean_kl(expected, model(TOKENS).logits)


def mean_kl(expected: Tensor, got: Tensor) -> float:
    return float(
        token_figures(expected[:, :-1].flatten(0, 1), got[:, :-1].flatten(0, 1), TOKENS[:, 1:].flatten()).kl.mean()
    )


def check(folder: Path, model: nn.Module, packed: set[str]) -> None:
    """The artifact packs these, and evaluation, which reads it back, measures less than what rounding loses."""
    assert tiny_models.packed_linears(folder / "out") == packed
    report = evaluate(
        folder / "source",
        folder / "out",
        tokens=TOKENS,
        text_label="random",
        trust_remote_code=True,
        progress=no_progress,
    )
    logits = model(TOKENS).logits.detach()
    nll = nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), TOKENS[:, 1:].flatten())
    assert report.perplexity_source == pytest.approx(float(nll.exp()), rel=1e-3)
    assert 0 < report.kl_mean < kl_of_plain_rounding(model, packed)


@pytest.mark.parametrize("parallel", [False, True])
def test_a_decoder_that_no_library_knows(parallel: bool, tmp_path: Path) -> None:
    model = build(tmp_path / "source", modeling_sandwich, "Sandwich", parallel=parallel)
    done = quantized(tmp_path)
    names = ["mix_in", "mix_out", "feed_in", "feed_out"]
    assert done.modules_to_not_convert == ()
    scaled = {module.module for module in done.modules if module.ratio is not None}
    # Also mix_out: every head has its own values.
    assert scaled == set(names)
    check(tmp_path, model, {f"blocks.{layer}.{name}" for layer in (0, 1) for name in names})


@pytest.mark.parametrize("in_mapping", [False, True], ids=["returned", "mapping"])
def test_values_that_later_layers_read_are_not_scaled(in_mapping: bool, tmp_path: Path) -> None:
    """The first layer alone would compute the same with other values, for its o_proj is scaled with them."""
    model = build(tmp_path / "source", modeling_relay, "Relay", in_mapping=in_mapping)
    modules = quantized(tmp_path).modules
    assert {module.layer for module in modules if module.module == "o_proj" and module.ratio is not None} == set()
    names = [*(f"{name}_proj" for name in "qkvo"), "up", "down"]
    check(tmp_path, model, {f"layers.{layer}.{name}" for layer in range(3) for name in names})


EXPERT_NAMES = {False: ("w1", "w2", "w3"), True: ("gate_proj", "up_proj", "down_proj")}


@pytest.mark.parametrize(
    ("fused", "router"), [(False, "gate"), (False, "chooser"), (True, "gate")], ids=["modules", "named", "fused"]
)
def test_a_mixture_that_no_library_knows(fused: bool, router: str, tmp_path: Path) -> None:
    model = build(tmp_path / "source", modeling_crowd, "Crowd", fused=fused, router=router)
    done = quantized(tmp_path)
    packed = {f"model.layers.{layer}.{name}_proj" for layer in (0, 1) for name in "qkvo"} | {
        f"model.layers.{layer}.moe.experts.{expert}.{name}"
        for layer in (0, 1)
        for expert in range(8)
        for name in EXPERT_NAMES[fused]
    }
    assert done.modules_to_not_convert == tuple(f"model.layers.{layer}.moe.{router}" for layer in (0, 1))
    assert [(tokens.layer, tokens.experts) for tokens in done.experts] == [(0, 8), (1, 8)]
    check(tmp_path, model, packed)


def test_every_expert_has_channels_that_are_scaled(tmp_path: Path) -> None:
    build(tmp_path / "source", modeling_crowd, "Crowd")
    ratios = {module.module: module.ratio for module in quantized(tmp_path).modules if module.layer == 0}
    assert set(ratios) == {f"{name}_proj" for name in "qkvo"} | {f"moe.experts.*.w{place}" for place in (1, 2, 3)}
    assert None not in ratios.values()


def test_code_of_a_folder_does_not_run_without_consent(tmp_path: Path) -> None:
    build(tmp_path / "source", modeling_sandwich, "Sandwich")
    with pytest.raises(
        UnsupportedModelError, match=re.escape(f"transformers {transformers.__version__} cannot build")
    ):
        quantized(tmp_path, trust_remote_code=False)
