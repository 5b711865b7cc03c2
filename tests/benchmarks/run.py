"""One method on one model, in this process: its time, memory and loss.

    python -m tests.benchmarks.run METHOD SOURCE TOKENS [--test TOKENS] [--threads N]

METHOD is awq+gptq, ours, or autoawq. Prints a record as JSON.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from bot.checkpoint.inventory import main_dtype
from bot.checkpoint.reader import TORCH_DTYPES, Checkpoint
from bot.evaluate.metrics import evaluate
from bot.quantize.artifact import quantize
from bot.records import CalibrationSet, Recipe, Report, no_progress
from tests.benchmarks.peer import quantize_with_autoawq, write_artifact


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


class Clock:
    def __init__(self) -> None:
        self.start()

    def start(self) -> None:
        self._wall, self._cpu = time.perf_counter(), time.process_time()

    def seconds(self) -> tuple[float, float]:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return time.perf_counter() - self._wall, time.process_time() - self._cpu


def run(method: str, source: Path, blocks: Tensor, test: Tensor | None) -> Run:
    made = Run(method=method, rss_imports=_memory("VmRSS"))
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak of the imports
    with tempfile.TemporaryDirectory() as name:
        artifact = Path(name) / "out"
        made = (
            _ours(made, source, blocks, artifact)
            if method == "awq+gptq"
            else _peer(made, source, blocks, artifact)
        )
        if test is not None:
            report = _lost(source, artifact, test)
            made = replace(
                made, kl=report.kl_mean, top1=report.top1_agreement, perplexity=report.perplexity_quantized
            )
    return made if made.rss_peak else replace(made, rss_peak=_memory("VmHWM"))


def _ours(made: Run, source: Path, blocks: Tensor, artifact: Path) -> Run:
    samples, seq_len = blocks.shape
    calibration = CalibrationSet(
        samples=samples, seq_len=seq_len, seed=0, sha256="", sources=(), distinct_token_share=1.0
    )
    clock = Clock()
    record = quantize(
        source,
        artifact,
        layers=artifact.with_name("layers"),
        recipe=Recipe(),
        blocks=blocks,
        calibration=calibration,
        trust_remote_code=False,
        progress=no_progress,
    )
    duration_s, cpu_s = clock.seconds()
    fallbacks = sum(bool(module.fallback) for module in record.modules)
    return replace(made, duration_s=duration_s, cpu_s=cpu_s, vram_peak=_vram(), fallbacks=fallbacks)


def _peer(made: Run, source: Path, blocks: Tensor, artifact: Path) -> Run:
    clock = Clock()
    cuda = torch.cuda.is_available()
    dtype = TORCH_DTYPES[main_dtype(Checkpoint(source).tensors)] if cuda else torch.float32
    model = quantize_with_autoawq(source, blocks, dtype=dtype, loaded=clock.start)
    duration_s, cpu_s = clock.seconds()
    made = replace(made, duration_s=duration_s, cpu_s=cpu_s, rss_peak=_memory("VmHWM"), vram_peak=_vram())
    write_artifact(model, source, artifact)
    return made


def _lost(source: Path, artifact: Path, test: Tensor) -> Report:
    return evaluate(
        source, artifact, tokens=test, text_label="test", trust_remote_code=False, progress=no_progress
    )


def _memory(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))


def _vram() -> int:
    return torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    yield
    torch.set_num_threads(before)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("method", choices=["awq+gptq", "autoawq"])
    parser.add_argument("source", type=Path)
    parser.add_argument("tokens", type=Path)
    parser.add_argument("--test", type=Path, help="tokens to measure the losses on")
    parser.add_argument("--threads", type=int, default=1)
    asked = parser.parse_args()
    test = load_file(asked.test)["test"].long() if asked.test else None
    with _threads(asked.threads):
        print(json.dumps(asdict(run(asked.method, asked.source, load_file(asked.tokens)["blocks"], test))))


if __name__ == "__main__":
    main()
