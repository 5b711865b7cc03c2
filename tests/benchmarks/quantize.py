"""Our default method against AutoAWQ: time, loss and memory of each.

    make bench-quantize                    all of it: an hour on two cores
    make bench-quantize BENCH=--quick      32 blocks, one draw, 8 and 32 layers: some minutes
    make bench-quantize DEVICE=cuda        real shapes, on a GPU

Every run is a separate process with one thread; the two methods alternate on the same tokens. Losses are on the
committed `test` tokens, which were not used to choose anything.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean, median

import torch

from tests.benchmarks.cases import ASSET_CASES, ASSETS, DEEP, GPU, WIDE, Case, model_folder, write_tokens
from tests.benchmarks.rates import matrix_rate, packing_speedup, work_of
from tests.benchmarks.run import Run, run_apart, store

METHODS = ("autoawq", "awq+gptq")
AT_ONCE = 2  # pairs of runs, each run with one thread
RESULTS = Path(__file__).parent / "results" / "quantize.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """seed: the draw of calibration tokens, whose hash is tokens_sha256."""

    case: str
    seed: int
    tokens_sha256: str
    run: Run


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Ours against AutoAWQ's in one case, over all draws; ratios are theirs / ours for time, ours / theirs else.

    speedup: of CPU seconds; kl_ratios: one for each draw.
    """

    case: str
    speedup: float
    speedup_wall: float
    rss_ratio: float
    kl_ratio: float | None = None
    kl_ratios: tuple[float, ...] = ()
    top1_gain: float | None = None


def measure(case: Case, seed: int, work: Path, *, cuda: bool = False) -> list[Measured]:
    """Both searches in turn, on one draw of tokens."""
    source = model_folder(case, work)
    tokens = work / f"{case.name}-{seed}.safetensors"
    sha256 = write_tokens(case, source, tokens, seed=seed)
    made = []
    for method in METHODS:
        run = _run_case(method, case, source, tokens, cuda=cuda)
        made.append(Measured(case=case.name, seed=seed, tokens_sha256=sha256, run=run))
        print(made[-1], flush=True)
    return made


def compare(case: str, measured: Sequence[Measured]) -> Comparison:
    ours, theirs = (
        [one.run for one in measured if one.case == case and one.run.method == s] for s in ("awq+gptq", "autoawq")
    )
    made = Comparison(
        case=case,
        speedup=median(run.cpu_s for run in theirs) / median(run.cpu_s for run in ours),
        speedup_wall=median(run.duration_s for run in theirs) / median(run.duration_s for run in ours),
        rss_ratio=median(run.rss_used for run in ours) / median(run.rss_used for run in theirs),
    )
    if theirs[0].kl is None:
        return made
    pairs = list(zip(ours, theirs, strict=True))
    return replace(
        made,
        kl_ratio=fmean(run.kl or 0.0 for run in ours) / fmean(run.kl or 0.0 for run in theirs),
        kl_ratios=tuple((mine.kl or 0.0) / (other.kl or 1.0) for mine, other in pairs),
        top1_gain=min((mine.top1 or 0.0) - (other.top1 or 0.0) for mine, other in pairs),
    )


def _run_case(method: str, case: Case, source: Path, tokens: Path, *, cuda: bool) -> Run:
    arguments = [method, str(source), str(tokens)]
    # Of the deep ones it is our memory that is looked at, which the evaluation takes too.
    if case.trained or (case in DEEP and method == "awq+gptq"):
        arguments += ["--test", str(ASSETS / "tokens" / f"{case.tokenizer}.safetensors")]
    return run_apart(arguments, cuda=cuda)


def on_cpu(*, quick: bool) -> None:
    assets = tuple(replace(case, samples=32) for case in ASSET_CASES) if quick else ASSET_CASES
    deep = DEEP[:2] if quick else DEEP
    packing = packing_speedup()
    print(f"packing 4,096 x 4,096: {packing:.0f} times as fast as AutoAWQ")
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        measured: list[Measured] = []
        draws = [(case, seed) for seed in range(1 if quick else 3) for case in assets]
        # The longest first, so that no core waits for it at the end.
        tasks = [(WIDE, 0), *((case, 0) for case in reversed(deep)), *draws]
        with ThreadPoolExecutor(AT_ONCE) as pool:
            for made in pool.map(lambda task: measure(task[0], task[1], work), tasks):
                measured += made
    comparisons = [compare(case.name, measured) for case in (*assets, WIDE, *deep)]
    by_case = {one.case: one for one in comparisons}
    rss = {one.case: one.run.rss_peak for one in measured if one.run.method == "awq+gptq"}
    figures = {
        "speedup": min(by_case[case.name].speedup for case in assets),
        "speedup_wide": by_case[WIDE.name].speedup,
        "kl_ratio": max(by_case[case.name].kl_ratio or 0.0 for case in assets),
        "rss_growth": rss[deep[-1].name] / rss[deep[0].name],
        "rss_ratio": by_case[deep[-1].name].rss_ratio,
    }
    store(
        RESULTS,
        "quick" if quick else "cpu",
        {
            "figures": figures,
            "packing_speedup": packing,
            "comparisons": [asdict(one) for one in comparisons],
            "runs": [asdict(one) for one in measured],
        },
    )
    print(*comparisons, sep="\n")
    print("quantize:", *(f"{name}={value:.3g}" for name, value in figures.items()))


def on_gpu() -> None:
    """Seconds, peak of GPU memory, and how much of what the GPU can do with matrices was done."""
    rate = matrix_rate()
    with tempfile.TemporaryDirectory() as name:
        measured = measure(GPU, 0, Path(name), cuda=True)
    ours = next(one.run for one in measured if one.run.method == "awq+gptq")
    share = work_of(GPU) / ours.duration_s / rate
    comparison = compare(GPU.name, measured)
    store(
        RESULTS,
        "cuda",
        {
            "gpu": torch.cuda.get_device_name(),
            "matrix_rate_flops": rate,
            "matrix_share": share,
            "comparisons": [asdict(comparison)],
            "runs": [asdict(one) for one in measured],
        },
    )
    print(
        f"quantize on {torch.cuda.get_device_name()}: speedup={comparison.speedup_wall:.3g} "
        f"seconds={ours.duration_s:.1f} vram_gib={ours.vram_peak / 2**30:.1f} matrix_share={share:.2f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="32 blocks, one draw, fewer layers")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    asked = parser.parse_args()
    if asked.device == "cpu":
        on_cpu(quick=asked.quick)
    elif torch.cuda.is_available():
        on_gpu()
    else:
        sys.exit("no CUDA device here: the entry `cuda` of the results stays as it is")


if __name__ == "__main__":
    main()
