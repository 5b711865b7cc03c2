"""What the scripts of the libraries share: they read a request, and print the time and memory that it took.

They run in environments that this project is not installed in, so nothing of it is imported.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Request:
    """algorithm: one of those that the script knows; blocks: int64 [samples, seq_len].

    All quantize to 4 bits, with a zero point for each group.
    """

    source: str
    out: str
    algorithm: str
    group_size: int
    blocks: Tensor


def answer(packages: tuple[str, ...], quantize: Callable[[Request], None]) -> None:
    """quantize: from the model's folder to the saved artifact; all of this is timed, and nothing else."""
    asked = json.loads(sys.argv[1])
    request = Request(**asked["request"], blocks=load_file(asked["tokens"])["blocks"])
    torch.set_num_threads(1)
    imports = _memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak of the imports
    started, started_cpu = time.perf_counter(), time.process_time()
    quantize(request)
    run = {
        "duration_s": time.perf_counter() - started,
        "cpu_s": time.process_time() - started_cpu,
        "rss_imports": imports,
        "rss_peak": _memory("VmHWM"),
    }
    versions = {name: metadata.version(name) for name in ("torch", "transformers", *packages)}
    print("\n" + json.dumps({"run": run, "versions": versions}), flush=True)


def _memory(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))
