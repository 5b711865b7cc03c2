"""One method on one model, in this process: its time, memory and loss.

    python -m tests.benchmarks.run METHOD SOURCE TOKENS [--test TOKENS]

METHOD is awq+gptq, ours, or autoawq. Prints a record as JSON.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TypeVar

import torch
from safetensors.torch import load_file
from torch import Tensor

from bot.checkpoint.inventory import main_dtype
from bot.checkpoint.reader import TORCH_DTYPES, Checkpoint
from bot.evaluate.metrics import evaluate
from bot.quantize.artifact import quantize
from bot.records import CalibrationSet, Recipe, no_progress
from tests.benchmarks.peer import load_with_autoawq, quantize_with_autoawq, write_artifact

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


def run(method: str, source: Path, blocks: Tensor, test: Tensor | None) -> Run:
    made = Run(method=method, rss_imports=_memory("VmRSS"))
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak of the imports
    with tempfile.TemporaryDirectory() as name:
        artifact = Path(name) / "out"
        made = (_ours if method == "awq+gptq" else _peer)(made, source, blocks, artifact)
        if test is not None:
            measure = partial(evaluate, source, artifact, tokens=test, text_label="test")
            lost = measure(trust_remote_code=False, progress=no_progress)
            made = replace(made, kl=lost.kl_mean, top1=lost.top1_agreement, perplexity=lost.perplexity_quantized)
    return made if made.rss_peak else replace(made, rss_peak=_memory("VmHWM"))


def _ours(made: Run, source: Path, blocks: Tensor, artifact: Path) -> Run:
    samples, seq_len = blocks.shape
    calibration = CalibrationSet(
        samples=samples, seq_len=seq_len, seed=0, sha256="", sources=(), distinct_token_share=1.0
    )
    search = partial(quantize, source, artifact, layers=artifact.with_name("layers"), recipe=Recipe())
    timed, record = _timed(
        made,
        lambda: search(blocks=blocks, calibration=calibration, trust_remote_code=False, progress=no_progress),
    )
    return replace(timed, fallbacks=sum(bool(module.fallback) for module in record.modules))


def _peer(made: Run, source: Path, blocks: Tensor, artifact: Path) -> Run:
    cuda = torch.cuda.is_available()
    dtype = TORCH_DTYPES[main_dtype(Checkpoint(source).tensors)] if cuda else torch.float32
    model = load_with_autoawq(source, dtype)
    timed, _ = _timed(made, lambda: quantize_with_autoawq(model, blocks))
    timed = replace(timed, rss_peak=_memory("VmHWM"))
    write_artifact(model.model, source, artifact)
    return timed


def _memory(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("method", choices=["awq+gptq", "autoawq"])
    parser.add_argument("source", type=Path)
    parser.add_argument("tokens", type=Path)
    parser.add_argument("--test", type=Path, help="tokens to measure the losses on")
    asked = parser.parse_args()
    test = load_file(asked.test)["test"].long() if asked.test else None
    torch.set_num_threads(1)
    print(json.dumps(asdict(run(asked.method, asked.source, load_file(asked.tokens)["blocks"], test))))


if __name__ == "__main__":
    main()
