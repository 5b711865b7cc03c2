"""One method on one model, in this process: its time, memory and loss.

    python -m tests.benchmarks.run METHOD SOURCE TOKENS [--test TOKENS] [--group 64] [--keep FOLDER]

METHOD is awq+gptq, ours, autoawq, or rounding, which needs no tokens. Prints a record as JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TypeVar

import torch
from safetensors.torch import load_file
from torch import Tensor

from bot.checkpoint.constants import tool_versions
from bot.checkpoint.gemm import pack
from bot.checkpoint.header import main_dtype
from bot.checkpoint.reader import TORCH_DTYPES, Checkpoint
from bot.checkpoint.rounding import round_to_nearest
from bot.evaluate.metrics import evaluate
from bot.quantize.artifact import quantize
from bot.records import CalibrationSet, Recipe, no_progress
from tests.benchmarks.peer import load_with_autoawq, quantize_with_autoawq, write_artifact

ROOT = Path(__file__).parents[2]
T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """Times from loaded tokens to packed tensors; memory in bytes; losses as a Report has them.

    Ours counts all it does: hashing and reading the source, writing layers, activations and shards; its peak
    covers the evaluation too, where there is one. AutoAWQ's time begins with its model loaded, and ends unsaved.
    """

    method: str
    duration_s: float = 0.0
    cpu_s: float = 0.0
    rss_imports: int = 0
    rss_peak: int = 0
    vram_peak: int = 0
    kl: float | None = None
    top1: float | None = None
    perplexity: float | None = None
    fallbacks: int = 0

    @property
    def rss_used(self) -> int:
        """Above what the imports use."""
        return self.rss_peak - self.rss_imports


def _now() -> tuple[float, float]:
    """Wall time and CPU time, in seconds."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter(), time.process_time()


def _timed(made: Run, work: Callable[[], T]) -> tuple[Run, T]:
    started, started_cpu = _now()
    result = work()
    ended, ended_cpu = _now()
    vram = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0
    return replace(made, duration_s=ended - started, cpu_s=ended_cpu - started_cpu, vram_peak=vram), result


def run(
    method: str, source: Path, blocks: Tensor, test: Tensor | None, *, group_size: int, keep: Path | None
) -> Run:
    """keep: where the artifact stays; it is deleted otherwise."""
    made = Run(method=method, rss_imports=_memory("VmRSS"))
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak of the imports
    with tempfile.TemporaryDirectory(dir=keep and keep.parent) as name:
        artifact = keep or Path(name) / "out"
        made = METHODS[method](made, source, blocks, artifact, Path(name) / "layers", group_size)
        if test is not None:
            measure = partial(evaluate, source, artifact, tokens=test, text_label="test")
            lost = measure(trust_remote_code=False, progress=no_progress)
            made = replace(made, kl=lost.kl_mean, top1=lost.top1_agreement, perplexity=lost.perplexity_quantized)
    return made if made.rss_peak else replace(made, rss_peak=_memory("VmHWM"))


def _ours(made: Run, source: Path, blocks: Tensor, artifact: Path, layers: Path, group_size: int) -> Run:
    samples, seq_len = blocks.shape
    calibration = CalibrationSet(
        samples=samples, seq_len=seq_len, seed=0, sha256="", sources=(), distinct_token_share=1.0
    )
    recipe = Recipe(group_size=group_size)
    search = partial(quantize, source, artifact, layers=layers, recipe=recipe)
    timed, record = _timed(
        made,
        lambda: search(blocks=blocks, calibration=calibration, trust_remote_code=False, progress=no_progress),
    )
    return replace(timed, fallbacks=sum(bool(module.fallback) for module in record.modules))


def _peer(made: Run, source: Path, blocks: Tensor, artifact: Path, _layers: Path, group_size: int) -> Run:
    cuda = torch.cuda.is_available()
    dtype = TORCH_DTYPES[main_dtype(Checkpoint(source).tensors)] if cuda else torch.float32
    model = load_with_autoawq(source, dtype)
    timed, _ = _timed(made, lambda: quantize_with_autoawq(model, blocks, group_size=group_size))
    timed = replace(timed, rss_peak=_memory("VmHWM"))
    write_artifact(model.model.state_dict(), source, artifact, group_size=group_size)
    return timed


def _rounding(made: Run, source: Path, _blocks: Tensor, artifact: Path, _layers: Path, group_size: int) -> Run:
    checkpoint = Checkpoint(source)
    timed, state = _timed(made, lambda: dict(_rounded_to_nearest(checkpoint, group_size)))
    write_artifact(state, source, artifact, group_size=group_size)
    return timed


def _rounded_to_nearest(checkpoint: Checkpoint, group_size: int) -> Iterator[tuple[str, Tensor]]:
    """The tensors of an artifact: the matrices of the decoder layers packed, all others as they are."""
    for name, info in checkpoint.tensors.items():
        tensor = checkpoint.read(name)
        if ".layers." not in name or len(info.shape) != 2:
            yield name, tensor
            continue
        packed = pack(*round_to_nearest(tensor, group_size=group_size))
        for part, value in packed._asdict().items():
            yield f"{name.removesuffix('.weight')}.{part}", value


METHODS = {"awq+gptq": _ours, "autoawq": _peer, "rounding": _rounding}


def _memory(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))


def run_apart(arguments: Sequence[str], *, cuda: bool = False) -> Run:
    """This module in a separate process, with one thread on a CPU."""
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    if not cuda:
        environment |= {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tests.benchmarks.run", *arguments]
    done = subprocess.run(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return Run(**json.loads(done.stdout.splitlines()[-1]))


def store(results: Path, kind: str, figures: Mapping[str, object]) -> None:
    """Beside what was measured on other devices before."""
    before = json.loads(results.read_text()) if results.exists() else {}
    facts = {"measured": time.strftime("%Y-%m-%d"), "machine": platform.machine(), "versions": tool_versions()}
    results.write_text(json.dumps(before | {kind: {**facts, **figures}}, indent=2) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("method", choices=list(METHODS))
    parser.add_argument("source", type=Path)
    parser.add_argument("tokens", type=Path)
    parser.add_argument("--test", type=Path, help="tokens to measure the losses on")
    parser.add_argument("--group", type=int, default=128, help="input channels with one scale")
    parser.add_argument("--keep", type=Path, help="the folder that the artifact stays in")
    asked = parser.parse_args()
    test = load_file(asked.test)["test"].long() if asked.test else None
    torch.set_num_threads(1)
    blocks = load_file(asked.tokens)["blocks"]
    made = run(asked.method, asked.source, blocks, test, group_size=asked.group, keep=asked.keep)
    print(json.dumps(asdict(made)))


if __name__ == "__main__":
    main()
