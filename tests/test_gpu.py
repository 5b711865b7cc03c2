"""What only a GPU can show. `make gpu-check` runs these first; tests/quantize/test_other_device.py needs none."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from bot.errors import EnvironmentProblem
from bot.evaluate.metrics import evaluate
from bot.jobs.environment import child_environment
from bot.jobs.isolation import Confinement
from bot.jobs.machine import has_cuda, memory_bytes, nvidia_smi
from bot.quantize.search import gram
from bot.records import Recipe, no_progress
from bot.records.config import Method
from tests.support import tiny_models
from tests.support.canary import quantize_into

pytestmark = pytest.mark.gpu

ASSETS = Path(__file__).parent / "assets"
SMALL: dict[str, Any] = {"hidden_size": 128, "intermediate_size": 256, "max_position_embeddings": 64}
BLOCKS = tiny_models.random_blocks(4, 32)


def tokens_of(model: str) -> tuple[Tensor, Tensor]:
    """To calibrate on, and to measure on."""
    tokens = load_file(ASSETS / "tokens" / f"{model}.safetensors")
    return tokens["dev"][:16].long(), tokens["test"][:8].long()


@pytest.mark.parametrize(
    ("model", "method", "most"),
    [("qwen3-tiny", "awq+gptq", 0.08), ("llama-tiny", "awq", 0.04), ("qwen3-moe-tiny", "awq+gptq", 0.2)],
)
def test_a_gpu_makes_as_good_an_artifact_and_measures_as_a_cpu_does(
    model: str, method: Method, most: float, tmp_path: Path
) -> None:
    source, (blocks, test) = ASSETS / model, tokens_of(model)
    record = quantize_into(tmp_path, source, blocks=blocks, recipe=Recipe(method=method))
    assert record.device == torch.cuda.get_device_name()
    assert all(module.relative_error < module.relative_error_rounding for module in record.modules)
    there, here = (
        evaluate(
            source,
            tmp_path / "out",
            tokens=test,
            text_label="test",
            trust_remote_code=False,
            progress=no_progress,
            device=device,
        )
        for device in ("cuda", "cpu")
    )
    assert here.kl_mean < most
    assert there.kl_mean == pytest.approx(here.kl_mean, rel=0.05)
    assert there.perplexity_source == pytest.approx(here.perplexity_source, rel=0.01)


@pytest.mark.parametrize("model_type", ["llama", "qwen3_moe"])
def test_the_same_input_gives_the_same_bytes(model_type: str, tmp_path: Path) -> None:
    source = tiny_models.build(model_type, tmp_path / "source", dtype=torch.bfloat16, **SMALL)
    first, second = (quantize_into(tmp_path / name, source, blocks=BLOCKS).files for name in ("first", "second"))
    assert first == second


def test_gram_matrices_are_computed_in_full_float32() -> None:
    """TF32 has 10 bits of a significand: its relative error is about 1e-3."""
    inputs = torch.randn(4096, 1024, generator=torch.Generator().manual_seed(0))
    expected = inputs.double().t() @ inputs.double()
    found = gram(inputs, device=torch.device("cuda")).cpu().double()
    assert float((found - expected).norm() / expected.norm()) < 1e-5


def test_too_little_memory_on_the_card_is_said_so(tmp_path: Path) -> None:
    source = tiny_models.build("llama", tmp_path / "source", **SMALL)
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(1e-6)
    try:
        with pytest.raises(EnvironmentProblem, match="does not have enough memory to quantize it"):
            quantize_into(tmp_path, source, blocks=BLOCKS)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


def test_a_child_process_finds_the_card_within_its_limits(tmp_path: Path) -> None:
    """In the environment that children get, with the machine's memory as the limit of what they may write to."""
    assert nvidia_smi()
    assert has_cuda()
    limit = memory_bytes()
    script = "import torch; print(float(torch.ones(1 << 28, device='cuda').sum()))"
    confinement = Confinement(write=(tmp_path,), memory_bytes=limit, cpu_s=600, file_bytes=1 << 30)
    (tmp_path / "tmp").mkdir()
    done = subprocess.run(
        confinement.around([sys.executable, "-c", script]),
        env=child_environment(tmp_path),
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    assert float(done.stdout) == 1 << 28
