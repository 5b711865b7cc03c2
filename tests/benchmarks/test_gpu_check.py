"""`make gpu-check` without a GPU: the same steps on a CPU, with tiny shapes."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from tests.benchmarks import gpu_check, gpu_table
from tests.benchmarks.gpu_steps import GPU_TESTS, STEPS, Figures, Setup

ROOT = Path(__file__).parents[2]
STEP_OF_OURS: Figures = {
    "seconds": 40.0,
    "seconds_per_layer": 9.5,
    "layers": 4,
    "kl": 0.02,
    "top1": 0.9,
    "operations_per_s": 2e13,
    "vram_bytes": 8.0e9,
    "vram_of_plan": 0.75,
    "plan_operations": 1e14,
    "channels": 1000,
}
AUTOAWQ: Figures = {"seconds": 400.0, "seconds_per_layer": 100.0, "kl": 0.05, "top1": 0.8}


@pytest.mark.slow
def test_every_step_runs_on_tiny_shapes_and_leaves_its_figures(tmp_path: Path) -> None:
    results = tmp_path / "gpu.json"
    command = [sys.executable, "-m", "tests.benchmarks.gpu_check", "--device", "cpu", "--tiny"]
    done = subprocess.run(
        [*command, "--results", str(results)], cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True
    )
    [(device, found)] = json.loads(results.read_text()).items()
    steps = found["steps"]
    assert (device, list(steps), list(found["projected"])) == ("cpu", list(STEPS), list(gpu_table.MODELS))
    assert {name: step["error"] for name, step in steps.items() if "error" in step} == {}
    assert steps["rates"].keys() >= {"bfloat16_flops", "float32_flops", "kernel_s"}
    for name in ("dense", "mixture", "trained"):
        assert steps[name].keys() >= {"seconds_per_layer", "operations_per_s", "kl", "plan_vram_bytes", "channels"}
        assert len(steps[name]["seconds_of_layers"]) == steps[name]["layers"] == 1
    assert steps["dense"]["kl"] > 0
    assert steps["dense-autoawq"]["seconds"] > 0
    assert done.stdout.splitlines()[0].startswith("TINY SHAPES")
    assert "30B-A3B would take" in done.stdout


def test_without_a_card_it_says_so_and_exits_with_0(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["gpu_check", "--results", str(tmp_path / "gpu.json")])
    gpu_check.main()
    [line] = capsys.readouterr().out.splitlines()
    assert line.startswith("gpu-check: no CUDA device here, nothing was run")
    assert not list(tmp_path.iterdir())


def _sleeps(setup: Setup) -> Figures:
    time.sleep(60)
    return {}


def _fails(setup: Setup) -> Figures:
    raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate 2 GiB")


def test_a_step_that_fails_or_takes_too_long_does_not_lose_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    steps = {"slow": _sleeps, "full": _fails, "last": lambda setup: {"result": "3 passed"}}
    monkeypatch.setattr(gpu_check, "STEPS", steps)
    setup = Setup(device="cpu", tiny=True, work=tmp_path)
    limits = {"slow": 1, "full": 20, "last": 20}
    found = gpu_check.check(setup, tmp_path / "gpu.json", limits=limits, total_s=60)
    assert {name: step.get("error", step.get("result")) for name, step in found["steps"].items()} == {
        "slow": "stopped after 1 s",
        "full": "OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB",
        "last": "3 passed",
    }
    assert json.loads((tmp_path / "gpu.json").read_text())["cpu"]["steps"].keys() == steps.keys()
    assert "Traceback" in capfd.readouterr().err
    assert "  FAILED: OutOfMemoryError: CUDA out of memory." in gpu_table.table(found)


def test_a_step_for_which_no_time_is_left_is_not_begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_check, "STEPS", {"first": _sleeps, "second": _sleeps})
    setup = Setup(device="cpu", tiny=True, work=tmp_path)
    found = gpu_check.check(setup, tmp_path / "gpu.json", limits={"first": 9, "second": 9}, total_s=1)
    errors = {name: step["error"] for name, step in found["steps"].items()}
    assert errors == {"first": "stopped after 1 s", "second": "no time was left"}


def test_all_steps_have_a_limit_and_together_take_less_than_eight_minutes() -> None:
    assert gpu_check.LIMITS.keys() == STEPS.keys()
    assert gpu_check.TOTAL_S < 8 * 60
    assert (ROOT / GPU_TESTS).is_file()


def test_results_of_other_devices_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "gpu.json").write_text('{"cuda": {"measured": "2026-01-01"}}')
    gpu_check.check(Setup(device="cpu", tiny=True, work=tmp_path), tmp_path / "gpu.json", limits={}, total_s=0)
    assert json.loads((tmp_path / "gpu.json").read_text())["cuda"] == {"measured": "2026-01-01"}


def test_minutes_grow_with_what_the_plan_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    minutes = gpu_table.projected({"dense": STEP_OF_OURS})
    assert list(minutes) == ["4B", "8B", "32B", "70B"]  # nothing was measured that is like 30B-A3B
    # 36 layers, of which q, k, v, gate and up read 2,560 channels, o 4,096, down 9,728.
    channels = 36 * (5 * 2560 + 4096 + 9728)
    assert minutes["4B"]["by_channels"] == pytest.approx(9.5 * 4 * channels / 1000 / 60)
    assert minutes["4B"]["by_operations"] < minutes["8B"]["by_operations"] < minutes["70B"]["by_operations"]


def test_table_says_what_is_far_from_the_plan_and_how_we_compare() -> None:
    rates = {"bfloat16_flops": 8e14, "float32_flops": 5e13, "kernel_s": 3e-6, "gpu": "NVIDIA H200"}
    steps: dict[str, Figures] = {"rates": rates, "dense": STEP_OF_OURS, "dense-autoawq": AUTOAWQ}
    each = {name: step | {"step_s": 1.0} for name, step in steps.items()}
    assert gpu_table.table({"steps": each, "projected": {}, "tiny": False}).splitlines() == [
        "step           seconds",
        "rates                1  NVIDIA H200; 800 TFLOP/s bfloat16, 50 float32; 3.0 µs for a small kernel",
        "dense                1  9.50 s a layer, 40.0 s in all; 2.5% of the matrix rate; KL 0.02, top-1 90.0%; "
        "8.00 GB on the card; 0.75 of the plan's, MORE THAN 15 % OFF",
        "dense-autoawq        1  100.00 s a layer, 400.0 s in all; KL 0.05, top-1 80.0%; ours 10.0 times as fast; "
        "0.4 of its KL",
    ]
