"""Our search against AutoAWQ's, on the same tokens: how long each takes, and what each loses.

    python -m tests.benchmarks.quantize             both models, 3 draws of calibration tokens: an hour on one core
    python -m tests.benchmarks.quantize --quick     32 blocks, 1 draw: some minutes

Every run is a process of its own, and the two searches take turns. Timed is what comes between the loaded model
and tokens and the packed tensors. Losses are on the committed `test` tokens; nothing was chosen on those.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean, median

import torch
from safetensors.torch import load_file

from bot.calibration.blocks import build
from bot.evaluate.metrics import evaluate
from bot.quantize.artifact import SEARCHES, quantize, tool_versions
from bot.records import Calibration, Recipe, no_progress

ASSETS = Path(__file__).parents[1] / "assets"
RESULTS = Path(__file__).parent / "results" / "quantize.json"
MODELS = ("qwen3-tiny", "llama-tiny")
SEQ_LEN = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One search on one model. Both times from loaded model and tokens to packed tensors; kl in nats per token."""

    model: str
    search: str
    samples: int
    seed: int
    tokens_sha256: str
    duration_s: float
    cpu_s: float
    peak_rss_bytes: int
    kl: float
    top1: float
    perplexity: float
    fallbacks: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Ours against AutoAWQ's, for one model, over all draws. speedup: of CPU seconds; speedup_wall: of seconds."""

    model: str
    speedup: float
    speedup_wall: float
    kl_ratio: float
    top1_gain: float
    draws: int


class Clock:
    """Seconds and CPU seconds between the end of loading and the last packed layer."""

    def __init__(self) -> None:
        self.started = self.ended = (0.0, 0.0)

    def __call__(self, what: str, done: int, total: int, unit: str) -> None:
        if (what, done) == ("loading", total):
            self.started = self._now()
        if (what, done) == ("quantizing", total):
            self.ended = self._now()

    def _now(self) -> tuple[float, float]:
        return time.perf_counter(), time.process_time()


def run(model: str, search: str, *, samples: int, seed: int) -> Run:
    torch.set_num_threads(1)  # models this small only wait for a second one
    source = ASSETS / model
    asked = Calibration(samples=samples, seq_len=SEQ_LEN, seed=seed)
    blocks, used = build(asked, tokenizer_folder=source, folder=Path(), trust_remote_code=False)
    clock = Clock()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        made = quantize(
            source,
            folder / "out",
            layers=folder / "layers",
            recipe=Recipe(search=search),
            blocks=blocks,
            calibration=used,
            trust_remote_code=False,
            progress=clock,
        )
        peak_rss_bytes = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        report = evaluate(
            source,
            folder / "out",
            tokens=load_file(ASSETS / "tokens" / f"{model}.safetensors")["test"].long(),
            text_label="test",
            trust_remote_code=False,
            progress=no_progress,
            device="cpu",
        )
    return Run(
        model=model,
        search=search,
        samples=samples,
        seed=seed,
        tokens_sha256=used.sha256,
        duration_s=clock.ended[0] - clock.started[0],
        cpu_s=clock.ended[1] - clock.started[1],
        peak_rss_bytes=peak_rss_bytes,
        kl=report.kl_mean,
        top1=report.top1_agreement,
        perplexity=report.perplexity_quantized,
        fallbacks=sum(bool(module.fallback) for module in made.modules),
    )


def run_apart(model: str, search: str, *, samples: int, seed: int) -> Run:
    """In a process of its own."""
    command = [sys.executable, "-m", "tests.benchmarks.quantize", "--samples", str(samples)]
    command += ["--one", model, search, str(seed)]
    # CUDA is hidden: the figures of a run are those of one core.
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        command, cwd=ASSETS.parents[1], env=environment, stdout=subprocess.PIPE, text=True, check=True
    )
    return Run(**json.loads(done.stdout.splitlines()[-1]))


def compare(model: str, runs: list[Run]) -> Comparison:
    ours = [run for run in runs if run.model == model and run.search == "gram"]
    awq = [run for run in runs if run.model == model and run.search == "awq"]
    assert [run.tokens_sha256 for run in ours] == [run.tokens_sha256 for run in awq]
    return Comparison(
        model=model,
        speedup=median(run.cpu_s for run in awq) / median(run.cpu_s for run in ours),
        speedup_wall=median(run.duration_s for run in awq) / median(run.duration_s for run in ours),
        kl_ratio=fmean(run.kl for run in ours) / fmean(run.kl for run in awq),
        top1_gain=fmean(run.top1 for run in ours) - fmean(run.top1 for run in awq),
        draws=len(ours),
    )


def print_run(run: Run) -> None:
    print(
        f"| {run.model} | {run.search} | {run.samples} x {SEQ_LEN} | {run.seed} | {run.duration_s:.1f} | "
        f"{run.cpu_s:.1f} | {run.kl:.5f} | {run.top1:.2%} | {run.perplexity:.3f} | "
        f"{run.peak_rss_bytes / 2**20:.0f} |",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="32 blocks, one draw")
    parser.add_argument("--seeds", type=int, default=3, help="draws of calibration tokens")
    parser.add_argument("--samples", type=int, default=128, help="blocks of calibration tokens")
    parser.add_argument("--one", nargs=3, metavar=("MODEL", "SEARCH", "SEED"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        model, search, seed = arguments.one
        print(json.dumps(asdict(run(model, search, samples=arguments.samples, seed=int(seed)))))
        return
    samples, seeds = (32, 1) if arguments.quick else (arguments.samples, arguments.seeds)
    print("| model | search | tokens | draw | seconds | CPU seconds | KL | top-1 | perplexity | peak MiB |")
    print("|---|---|---|---|---|---|---|---|---|---|", flush=True)
    runs: list[Run] = []
    for seed in range(seeds):
        for model in MODELS:
            for search in SEARCHES:
                runs.append(run_apart(model, search, samples=samples, seed=seed))
                print_run(runs[-1])
    comparisons = [compare(model, runs) for model in MODELS]
    facts = {
        "quick": arguments.quick,
        "machine": platform.machine(),
        "versions": tool_versions(),
        "comparisons": [asdict(comparison) for comparison in comparisons],
        "runs": [asdict(run) for run in runs],
    }
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(facts, indent=2) + "\n")
    # The worse of the two models.
    speedup = min(comparison.speedup for comparison in comparisons)
    kl_ratio = max(comparison.kl_ratio for comparison in comparisons)
    print(f"quantize: speedup={speedup:.1f} kl_ratio={kl_ratio:.3f}")


if __name__ == "__main__":
    main()
