"""What this machine has, and how much of it a child process may take. Found without importing torch."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from bot.checkpoint.constants import tool_versions
from bot.errors import BotError
from bot.files import DiskFullError
from bot.records import Estimate
from bot.text import size
from bot.watch.sizing import cpu_duration_s

_NVIDIA_QUERY = ("nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader,nounits")
_TOLD = ("PATH", "LD_LIBRARY_PATH")  # it gets no token
# https://docs.kernel.org/admin-guide/cgroup-v2.html#memory-interface-files
_CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")
# Estimates are rough and machines are shared: only what never ends, or nearly so, is stopped.
_TIMES_THE_ESTIMATE = 20
_LEAST_S = 3600.0


def nvidia_smi() -> list[str]:
    """`name, driver, memory in MiB` of each GPU."""
    environment = {name: os.environ[name] for name in _TOLD if name in os.environ}
    try:
        done = subprocess.run(
            _NVIDIA_QUERY, env=environment, capture_output=True, text=True, check=True, timeout=30
        )
    except (OSError, subprocess.SubprocessError):
        return []
    return [line for line in done.stdout.splitlines() if line.count(",") == 2]


def has_cuda() -> bool:
    """Whether torch will find a CUDA GPU, as far as can be seen without importing it."""
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1")
    return not hidden and not tool_versions().get("torch", "").endswith("+cpu") and bool(nvidia_smi())


def core_count() -> int:
    """The number of cores that this process can use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def memory_bytes() -> int:
    """Of the machine, or of the container that this process is in."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        return min(total, int(_CGROUP_LIMIT.read_text()))
    except (OSError, ValueError):  # no container, or `max`
        return total


def time_limit_s(needs: Estimate | None) -> float:
    """How long one stage of a job may take, here."""
    if needs is None:
        return _LEAST_S
    expected = needs.duration_s if has_cuda() else cpu_duration_s(needs.float_operations, cores=core_count())
    return max(_LEAST_S, _TIMES_THE_ESTIMATE * expected)


def name_needed_space(error: BotError, needs: Estimate | None) -> None:
    """Add to the hint of a full disk what the job takes in all."""
    if isinstance(error, DiskFullError) and needs is not None:
        error.hint = f"{error.hint} The job needs {size(needs.disk_bytes)} in all."
