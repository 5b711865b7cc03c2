"""Without a CUDA GPU: how long quantizing takes, said before anything is pulled, and which models need `--cpu`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from math import prod
from pathlib import Path
from typing import Annotated

import typer

from bot.checkpoint.constants import tool_versions
from bot.checkpoint.header import read_weight_headers
from bot.cli.doctor import nvidia_smi
from bot.errors import EnvironmentProblem, UpstreamError
from bot.records import Calibration, Job, JobKind, Recipe
from bot.text import duration
from bot.watch.sizing import cpu_duration_s, float_operations

MAX_PARAMETERS = 10**9

CpuOption = Annotated[
    bool, typer.Option("--cpu", help="Quantize models above one billion parameters without a CUDA GPU, too.")
]


def jobs_on_cpu(jobs: Sequence[Job], *, allowed: bool) -> str:
    """As work_on_cpu, for the releases among planned jobs."""
    needs = [job.estimate for job in jobs if job.kind is JobKind.RELEASE and job.estimate is not None]
    if not needs:
        return ""
    largest = max(need.parameters for need in needs)
    return work_on_cpu(largest, sum(need.float_operations for need in needs), allowed=allowed)


def folder_on_cpu(source: Path, recipe: Recipe, calibration: Calibration, *, allowed: bool) -> str:
    """As work_on_cpu, for the model in a folder, by its safetensors headers. Empty where they cannot be read."""
    try:
        tensors = tuple(read_weight_headers(source).tensors.values())
    except UpstreamError:  # reported by the stage itself
        return ""
    parameters = sum(prod(tensor.shape) for tensor in tensors)
    return work_on_cpu(parameters, float_operations(tensors, recipe, calibration), allowed=allowed)


def work_on_cpu(parameters: int, operations: float, *, allowed: bool) -> str:
    """One line on how long quantizing and evaluating takes; empty where there is a CUDA GPU.

    parameters: of the largest model; operations: of all together. Raises EnvironmentProblem above MAX_PARAMETERS
    where that was not allowed.
    """
    if has_cuda():
        return ""
    cores = core_count()
    takes = f"about {duration(cpu_duration_s(operations, cores=cores))} on this CPU with {cores} cores"
    if parameters > MAX_PARAMETERS and not allowed:
        raise EnvironmentProblem(
            f"no CUDA GPU, and a model of {parameters / 1e9:.1f} billion parameters: an estimated {takes}",
            hint="Run it on a machine with a CUDA GPU (`awq-bot doctor` looks for one), or add --cpu.",
        )
    return f"no CUDA GPU: quantizing and evaluating will take {takes}; this is a rough estimate"


def core_count() -> int:
    """Of the cores those that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def has_cuda() -> bool:
    """Whether torch will find a CUDA GPU, as far as can be seen without importing it."""
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1")
    return not hidden and not tool_versions().get("torch", "").endswith("+cpu") and bool(nvidia_smi())
