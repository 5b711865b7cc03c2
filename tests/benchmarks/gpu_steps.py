"""The steps of `make gpu-check`: each returns its figures, and runs in a process of its own."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, TypeVar

import torch
from safetensors.torch import load_file
from torch import Tensor

from bot.checkpoint.config import open_config
from bot.checkpoint.header import main_dtype
from bot.checkpoint.reader import TORCH_DTYPES, Checkpoint
from bot.evaluate.metrics import evaluate
from bot.quantize.artifact import quantize
from bot.records import Calibration, CalibrationSet, Details, Evaluation, Recipe, WatchEntry, no_progress
from bot.watch.layers import choose_linears, layers_from_headers, model_types
from bot.watch.sizing import estimate
from tests.benchmarks.cases import ASSETS, GPU, GPU_MIXTURE, TINY, TINY_MIXTURE, Case, model_folder, write_tokens
from tests.benchmarks.peer import load_with_autoawq, quantize_with_autoawq, write_artifact
from tests.benchmarks.rates import kernel_seconds, matrix_rate, work_of

ROOT = Path(__file__).parents[2]
GPU_TESTS = "tests/test_gpu.py"
RECIPE = Recipe()
TEST_BLOCKS = 16  # of the committed test tokens, 512 each

Figures = dict[str, Any]
T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """tiny: shapes that a CPU is done with in seconds. work: a folder that the steps share."""

    device: str
    tiny: bool
    work: Path

    def case(self, name: str) -> Case:
        if self.tiny:
            return TINY_MIXTURE if name == "mixture" else TINY
        return {"dense": GPU, "mixture": GPU_MIXTURE, "trained": TRAINED}[name]

    def test_tokens(self, case: Case) -> Tensor:
        tokens = load_file(ASSETS / "tokens" / f"{case.tokenizer}.safetensors")["test"][:TEST_BLOCKS].long()
        return tokens[:2, : case.seq_len] if self.tiny else tokens


TRAINED = Case(name="qwen3-tiny", samples=128, seq_len=512)


def run_tests(setup: Setup) -> Figures:
    """The tests marked `gpu`; on a CPU there are none to run."""
    if setup.device == "cpu":
        return {"result": "not run on a CPU"}
    # A warning that only shows on a GPU should be seen, and not end the test.
    options = ["-q", "-m", "gpu", "-W", "default", f"--basetemp={setup.work / 'pytest'}"]
    command = [sys.executable, "-m", "pytest", *options, GPU_TESTS]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=False)
    print(done.stdout)
    last = (done.stdout.strip().splitlines() or ["nothing"])[-1].strip("= ")
    if done.returncode:
        raise RuntimeError(f"pytest ended with code {done.returncode}: {last}")
    return {"result": last}


def measure_rates(setup: Setup) -> Figures:
    """Of square matrix products, and of starting a small kernel."""
    size = 256 if setup.tiny else 8192
    found: Figures = {
        "bfloat16_flops": matrix_rate(size, device=setup.device, dtype=torch.bfloat16),
        "float32_flops": matrix_rate(size, device=setup.device, dtype=torch.float32),
        "kernel_s": kernel_seconds(device=setup.device),
    }
    if setup.device == "cuda":
        properties = torch.cuda.get_device_properties(0)
        found |= {
            "gpu": torch.cuda.get_device_name(),
            "gpu_bytes": properties.total_memory,
            "cuda": torch.version.cuda,
            "float32_precision": torch.get_float32_matmul_precision(),
        }
    return found


def make_models(setup: Setup) -> Figures:
    """The random models, and the tokens of all cases."""
    for name in ("dense", "mixture", "trained"):
        case = setup.case(name)
        source = model_folder(case, setup.work, device=setup.device)
        if not (path := _tokens_path(setup, case)).exists():
            write_tokens(case, source, path, seed=0)
    return {"bytes": sum(path.stat().st_size for path in setup.work.rglob("*.safetensors"))}


def measure_ours(setup: Setup, name: str) -> Figures:
    """Our default method: time, memory beside what the plan said, and loss."""
    case = setup.case(name)
    source, blocks = model_folder(case, setup.work), _blocks(setup, case)
    planned = _planned(setup, case, source)
    with tempfile.TemporaryDirectory(dir=setup.work) as folder:
        out = Path(folder) / "out"
        seconds, memory, record = _timed(
            setup,
            partial(
                quantize,
                source,
                out,
                layers=Path(folder) / "layers",
                recipe=RECIPE,
                blocks=blocks,
                calibration=_calibration_set(case),
                trust_remote_code=False,
                progress=no_progress,
            ),
        )
        evaluate_s, evaluate_memory, loss = _timed(setup, partial(_loss, setup, case, source, out))
    layers = [round(each, 3) for each in record.layer_durations_s]
    found = {
        "method": RECIPE.method,
        "seconds": seconds,
        "seconds_of_layers": layers,
        "seconds_per_layer": median(layers),
        "evaluate_s": evaluate_s,
        "operations_per_s": work_of(case) / seconds,
        "fallbacks": sum(bool(module.fallback) for module in record.modules),
        **loss,
        **planned,
    }
    if memory is not None and evaluate_memory is not None:
        peak = max(each["allocated"] for each in (memory, evaluate_memory)) + memory["context"]
        found |= {
            "vram_bytes": peak,
            "quantize_memory": memory,
            "evaluate_memory": evaluate_memory,
        }
        if not case.trained:  # too small for more than the fixed part of the plan's estimate
            found["vram_of_plan"] = peak / planned["plan_vram_bytes"]
    return found


def measure_autoawq(setup: Setup, name: str) -> Figures:
    """AutoAWQ from its loaded model to the packed tensors, and the loss of an artifact written as ours are."""
    case = setup.case(name)
    source, blocks = model_folder(case, setup.work), _blocks(setup, case)
    stored = TORCH_DTYPES[main_dtype(Checkpoint(source).tensors)]
    model = load_with_autoawq(source, torch.float32 if setup.device == "cpu" else stored)
    work = partial(quantize_with_autoawq, model, blocks, group_size=RECIPE.group_size)
    seconds, memory, _ = _timed(setup, work)
    state = model.model.state_dict()
    with tempfile.TemporaryDirectory(dir=setup.work) as folder:
        out = Path(folder) / "out"
        write_artifact(state, source, out, group_size=RECIPE.group_size)
        del model, state
        loss = _loss(setup, case, source, out)
    found = {"method": "autoawq", "seconds": seconds, "seconds_per_layer": seconds / _layer_count(source), **loss}
    return found | ({"vram_bytes": memory["allocated"] + memory["context"]} if memory else {})


STEPS: dict[str, Callable[[Setup], Figures]] = {
    "tests": run_tests,
    "rates": measure_rates,
    "models": make_models,
    "dense": partial(measure_ours, name="dense"),
    "mixture": partial(measure_ours, name="mixture"),
    "dense-autoawq": partial(measure_autoawq, name="dense"),
    "trained": partial(measure_ours, name="trained"),
    "trained-autoawq": partial(measure_autoawq, name="trained"),
}


def _timed(setup: Setup, work: Callable[[], T]) -> tuple[float, dict[str, int] | None, T]:
    """Seconds, GPU memory and what the work returns.

    allocated: the peak of tensors; reserved: that of PyTorch's cache; context: what the card has in use besides,
    by CUDA and by other processes.
    """
    cuda = setup.device == "cuda"
    if cuda:
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    started = time.perf_counter()
    result = work()
    if cuda:
        torch.cuda.synchronize()
    seconds = time.perf_counter() - started
    if not cuda:
        return seconds, None, result
    free, total = torch.cuda.mem_get_info()
    memory = {
        "allocated": torch.cuda.max_memory_allocated(),
        "reserved": torch.cuda.max_memory_reserved(),
        "context": total - free - torch.cuda.memory_reserved(),
    }
    return seconds, memory, result


def _loss(setup: Setup, case: Case, source: Path, artifact: Path) -> Figures:
    report = evaluate(
        source,
        artifact,
        tokens=setup.test_tokens(case),
        text_label="test",
        trust_remote_code=False,
        progress=no_progress,
        device=setup.device,
    )
    return {
        "kl": report.kl_mean,
        "top1": report.top1_agreement,
        "perplexity_source": report.perplexity_source,
        "perplexity": report.perplexity_quantized,
    }


def _planned(setup: Setup, case: Case, source: Path) -> Figures:
    """What the plan says of this model before it is downloaded, without the evaluation's time."""
    _, config = open_config(source)
    tensors = Checkpoint(source).tensors
    found = Details(config=config, tensors=tuple(tensors.values()))
    chosen = choose_linears(
        layers_from_headers(config, found.tensors, model_types()[config["model_type"]]), RECIPE
    )
    asked = WatchEntry(
        repo_id=f"local/{case.name}",
        target=f"local/{case.name}-awq",
        recipe=RECIPE,
        calibration=Calibration(samples=case.samples, seq_len=case.seq_len),
        evaluation=Evaluation(tokens=0),
    )
    needs = estimate(found, chosen, asked, download_bytes=0)
    return {
        "layers": config["num_hidden_layers"],
        "plan_vram_bytes": needs.vram_bytes,
        "plan_s": needs.duration_s,
        "plan_operations": needs.float_operations,
        "channels": sum(linear.shape[1] for linear in chosen.packed),
    }


def _layer_count(source: Path) -> int:
    return int(open_config(source)[1]["num_hidden_layers"])


def _tokens_path(setup: Setup, case: Case) -> Path:
    """The same for cases that have as many, and the same tokenizer."""
    return setup.work / f"tokens-{case.tokenizer}-{case.samples}-{case.seq_len}.safetensors"


def _blocks(setup: Setup, case: Case) -> Tensor:
    return load_file(_tokens_path(setup, case))["blocks"]


def _calibration_set(case: Case) -> CalibrationSet:
    return CalibrationSet(
        samples=case.samples, seq_len=case.seq_len, seed=0, sha256="", sources=(), distinct_token_share=1.0
    )
