"""What a GPU shows in eight minutes: tests, time and memory on real shapes, AutoAWQ, and minutes for whole models.

    make gpu-check                                              on a card with 80 GB; nothing is fetched
    python -m tests.benchmarks.gpu_check --device cpu --tiny    the same steps on a CPU, on shapes that say nothing

Each step is a process with a time limit of its own. If one fails, its error is in the results and the next one
runs. Results are written after each step. Without a card it says so and exits with 0.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Mapping
from pathlib import Path

import torch

from bot.checkpoint.constants import tool_versions
from bot.errors import reason_of
from bot.files import write_atomic
from bot.text import duration
from tests.benchmarks.gpu_steps import STEPS, Figures, Setup
from tests.benchmarks.gpu_table import projected, table

RESULTS = Path(__file__).parent / "results" / "gpu.json"
TOTAL_S = 465.0  # for all steps: a little less than eight minutes
# Seconds for each step at most, its imports included. Together they are more: most steps need less.
LIMITS: Mapping[str, float] = {
    "tests": 90,
    "rates": 30,
    "models": 60,
    "dense": 90,
    "mixture": 120,
    "dense-autoawq": 120,
    "trained": 40,
    "trained-autoawq": 60,
}
ON_A_CPU = 10  # times as long: other work on the machine must not fail a test
LOG_LINES = 30  # of a failed step


def check(setup: Setup, results: Path, *, limits: Mapping[str, float], total_s: float) -> Figures:
    """Run each step for as long as its limit, and what is left of the total, allow. Returns what it stores."""
    deadline = time.monotonic() + total_s
    found: Figures = {
        "measured": time.strftime("%Y-%m-%d"),
        "machine": platform.machine(),
        "versions": tool_versions(),
        "tiny": setup.tiny,
        "steps": {},
    }
    for name, limit_s in limits.items():
        started = time.monotonic()
        figures = run_apart(name, setup, limit_s=min(limit_s, deadline - started))
        found["steps"][name] = {"step_s": round(time.monotonic() - started, 1)} | figures
        print(f"{name}: {figures.get('error', 'done')}", file=sys.stderr, flush=True)
        found["projected"] = projected(found["steps"])
        _store(results, setup.device, found)
    return found


def run_apart(name: str, setup: Setup, *, limit_s: float) -> Figures:
    """A step's figures, or {"error": one line}; then the end of what it printed goes to stderr."""
    if limit_s <= 0:
        return {"error": "no time was left"}
    answer, log = (setup.work / f"{name}.{kind}" for kind in ("json", "log"))
    # CUDA cannot be used in a fork of a process that has looked for a card.
    context = multiprocessing.get_context("fork" if setup.device == "cpu" else "spawn")
    child = context.Process(target=_answer, args=(name, setup, answer, log))  # type: ignore[attr-defined]  # both contexts have it
    child.start()
    try:
        child.join(limit_s)
        if answer.exists():
            found: Figures = json.loads(answer.read_text())
        elif child.exitcode is None:
            found = {"error": f"stopped after {duration(limit_s)}"}
        else:
            found = {"error": f"ended with code {child.exitcode}"}
    finally:
        _end(child)
    if "error" in found and log.exists():
        print(*log.read_text(errors="replace").splitlines()[-LOG_LINES:], sep="\n", file=sys.stderr)
    return found


def _end(child: multiprocessing.process.BaseProcess) -> None:
    """With all that it has started."""
    if child.exitcode is None and child.pid is not None:
        try:
            os.killpg(child.pid, signal.SIGKILL)
        except ProcessLookupError:  # it has not made its own group yet
            child.kill()
        child.join()


def _answer(name: str, setup: Setup, answer: Path, log: Path) -> None:
    """In the child: run the step, and write its figures or its error."""
    os.setsid()
    with log.open("wb", buffering=0) as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    try:
        found = STEPS[name](setup)
    except Exception as error:  # whatever it is, the other steps have to run
        traceback.print_exc()
        found = {"error": f"{type(error).__name__}: {reason_of(error)}"}
    write_atomic(answer, json.dumps(found).encode())


def _store(results: Path, device: str, found: Figures) -> None:
    """Beside what was measured on another kind of device."""
    before = json.loads(results.read_text()) if results.exists() else {}
    write_atomic(results, (json.dumps(before | {device: found}, indent=2) + "\n").encode())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--tiny", action="store_true", help="shapes that a CPU is done with in a minute")
    parser.add_argument("--results", type=Path, default=RESULTS)
    asked = parser.parse_args()
    if asked.device == "cpu" and not asked.tiny:
        parser.error("--device cpu needs --tiny: the real shapes would take it days")
    if asked.device == "cuda" and not torch.cuda.is_available():
        print(f"gpu-check: no CUDA device here, nothing was run, {asked.results} stays as it is")
        return
    os.environ["HF_HUB_OFFLINE"] = "1"
    if asked.device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    times = ON_A_CPU if asked.device == "cpu" else 1
    limits = {name: times * limit for name, limit in LIMITS.items()}
    with tempfile.TemporaryDirectory() as work:
        setup = Setup(device=asked.device, tiny=asked.tiny, work=Path(work))
        found = check(setup, asked.results, limits=limits, total_s=times * TOTAL_S)
    print(table(found))


if __name__ == "__main__":
    main()
