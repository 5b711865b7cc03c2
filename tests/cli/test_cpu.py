"""Without a CUDA GPU: how long it takes is said before anything is done, and large models need --cpu."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest

from bot.cli import doctor
from bot.cli.doctor import folder_on_cpu, jobs_on_cpu, work_on_cpu
from bot.errors import EnvironmentProblem
from bot.jobs import machine
from bot.jobs.machine import has_cuda
from bot.records import Calibration, Job, JobKind, Recipe
from tests.cli.conftest import L4, only_nvidia_smi
from tests.support import factories

LARGE = 1_000_000_001


@pytest.fixture(autouse=True)
def no_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    only_nvidia_smi(tmp_path / "tools", monkeypatch, None)


def job(parameters: int, kind: JobKind = JobKind.RELEASE) -> Job:
    return factories.job(kind=kind, estimate=factories.needs(parameters=parameters, float_operations=1e15))


def model_folder(folder: Path, rows: int) -> Path:
    """One linear of rows x 1,024 in a sparse file, which takes no room on the disk."""
    size = 2 * rows * 1024
    name = "model.layers.0.mlp.up_proj.weight"
    text = json.dumps({name: {"dtype": "F16", "shape": [rows, 1024], "data_offsets": [0, size]}}).encode()
    folder.mkdir()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + size)
    return folder


def test_time_of_all_releases_is_said_as_an_estimate_for_this_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "core_count", lambda: 4)
    said = jobs_on_cpu([job(10**9), job(5), job(LARGE, JobKind.FINISH)], allowed=False)
    assert "no CUDA GPU" in said
    assert "about 4 h 38 min on this CPU with 4 cores" in said  # 60 s + 2e15 / (4 x 3e10)
    assert "rough estimate" in said
    assert jobs_on_cpu([job(LARGE, JobKind.REFRESH)], allowed=False) == ""


def test_models_above_a_billion_parameters_need_the_option() -> None:
    with pytest.raises(EnvironmentProblem, match=r"1\.0 billion parameters: an estimated about") as caught:
        jobs_on_cpu([job(5), job(LARGE)], allowed=False)
    assert caught.value.exit_code == 8
    assert "--cpu" in caught.value.hint
    assert "rough estimate" in jobs_on_cpu([job(5), job(LARGE)], allowed=True)


def test_folder_is_judged_by_its_headers_alone(tmp_path: Path) -> None:
    recipe, calibration = Recipe(), Calibration()
    assert "rough estimate" in folder_on_cpu(model_folder(tmp_path / "a", 1), recipe, calibration, allowed=False)
    large = model_folder(tmp_path / "b", 1_000_000)
    with pytest.raises(EnvironmentProblem, match=r"1\.0 billion"):
        folder_on_cpu(large, recipe, calibration, allowed=False)
    assert "rough estimate" in folder_on_cpu(large, recipe, calibration, allowed=True)
    assert folder_on_cpu(tmp_path / "none", recipe, calibration, allowed=False) == ""


@pytest.mark.parametrize(
    ("torch", "visible", "found"),
    [("2.13.0", None, True), ("2.13.0", "0", True), ("2.13.0", "", False), ("2.13.0+cpu", None, False)],
)
def test_gpu_counts_where_torch_would_use_it(
    torch: str, visible: str | None, found: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    only_nvidia_smi(tmp_path / "gpu", monkeypatch, L4)
    monkeypatch.setattr(machine, "tool_versions", lambda: {"torch": torch})
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert has_cuda() is found
    assert (work_on_cpu(5, 1e9, allowed=False) == "") is found
