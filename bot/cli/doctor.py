"""Is this machine fit for the planned jobs? And without a CUDA GPU: how long they take, and which need `--cpu`."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator, Sequence
from importlib import metadata
from math import prod
from pathlib import Path
from typing import Annotated, Any

import typer

from bot.checkpoint.config import parse_config
from bot.checkpoint.repo_files import CONFIG
from bot.checkpoint.weight_files import read_weight_headers
from bot.errors import EnvironmentProblem, UpstreamError
from bot.jobs.isolation import missing_here
from bot.jobs.machine import core_count, has_cuda, memory_bytes, nvidia_smi
from bot.jobs.serving import check_engines
from bot.records import Calibration, Check, Details, Engine, Estimate, Job, JobKind, Plan, Recipe
from bot.serve.engines import engine_folder, is_installed
from bot.text import duration
from bot.watch.layers import Chosen, layers_from_headers, model_types
from bot.watch.sizing import cpu_duration_s, float_operations
from bot.watch.stock_tasks import lm_eval_version

_OF_TASKS = re.compile(r"extra == .tasks\b")
_PINNED = re.compile(r"^([A-Za-z0-9_.-]+)==([^;\s]+)")


def check_machine(plan: Plan | None, work: Path, *, runner: bool) -> Iterator[Check]:
    """GPU, disk, memory and versions, compared with the largest planned job.

    runner: a missing GPU is a failure.
    """
    needs = [job.estimate for job in plan.jobs if job.estimate is not None] if plan is not None else []
    yield _check_gpu(needs, runner=runner)
    yield _check_disk(needs, work)
    yield _check_memory(needs)
    yield _check_versions()
    if plan is not None and any(job.tasks for job in plan.jobs):
        yield _check_lm_eval()
    if plan is not None:
        for engine in dict.fromkeys(engine for job in plan.jobs for engine in job.engines):
            yield _check_engine(engine)


def _check_gpu(needs: list[Estimate], *, runner: bool) -> Check:
    wanted = max((need.vram_bytes for need in needs), default=0)
    listed = nvidia_smi()
    if not listed:
        fix = "Install the NVIDIA driver and check with nvidia-smi. Without a GPU only tiny models are practical."
        return Check(name="GPU", status="failed" if runner else "warning", found="none", fix=fix)
    name, driver, mebibytes = (part.strip() for part in listed[0].split(","))
    found = f"{name}, {int(mebibytes) * 2**20 / 1e9:.1f} GB, driver {driver}"
    if int(mebibytes) * 2**20 < wanted:
        fix = f"The largest job needs {wanted / 1e9:.1f} GB: use a larger GPU, or put that model on `hold:`."
        return Check(name="GPU", status="failed", found=found, fix=fix)
    return Check(name="GPU", status="ok", found=found)


def _check_disk(needs: list[Estimate], work: Path) -> Check:
    existing = next(folder for folder in (work.resolve(), *work.resolve().parents) if folder.exists())
    free, wanted = shutil.disk_usage(existing).free, max((need.disk_bytes for need in needs), default=0)
    fix = "Use a folder on a larger disk with --work, or remove finished jobs from it."
    return _enough("disk", free, wanted, f"free in {existing}", fix)


def _check_memory(needs: list[Estimate]) -> Check:
    total = memory_bytes()
    wanted = max((need.ram_bytes for need in needs), default=0)
    return _enough("memory", total, wanted, "in all", "Use a machine with more memory.")


def _enough(name: str, there: int, wanted: int, what: str, fix: str) -> Check:
    found = f"{there / 1e9:.1f} GB {what}" + (f", the largest job needs {wanted / 1e9:.1f} GB" if wanted else "")
    return Check(name=name, status="ok", found=found) if there >= wanted else _failed(name, found, fix)


def _failed(name: str, found: str, fix: str) -> Check:
    return Check(name=name, status="failed", found=found, fix=fix)


def _check_versions() -> Check:
    """Installed versions, compared with the pins of the extra `quantize`."""
    wrong = []
    # lm-eval, which only `tasks:` needs, is looked for by itself.
    lines = [line for line in metadata.requires("awq-bot") or () if not _OF_TASKS.search(line)]
    pins = [match for line in lines if (match := _PINNED.match(line))]
    for name, pinned in (match.groups() for match in pins):
        found = next((item.version for item in metadata.distributions(name=name)), "missing")
        if found.split("+")[0] != pinned:
            wrong.append(f"{name} {found} (pinned {pinned})")
    if wrong:
        fix = "In a checkout of awq-bot: pip install -c constraints.txt '.[quantize]'"
        return _failed("versions", ", ".join(wrong), fix)
    return Check(name="versions", status="ok", found=f"{len(pins)} packages as pinned")


def _check_lm_eval() -> Check:
    """Which `tasks:` of a planned model needs."""
    try:
        (version,) = lm_eval_version().values()
    except EnvironmentProblem as problem:
        return _failed("lm-eval", problem.message, problem.hint)
    return Check(name="lm-eval", status="ok", found=version)


def _check_engine(engine: Engine) -> Check:
    """Which `serve:` of a planned model names."""
    name = f"engine {engine}"
    try:
        check_engines((engine,))
    except EnvironmentProblem as problem:
        return _failed(name, problem.message, problem.hint)
    folder = engine_folder(engine)
    if is_installed(engine):
        return Check(name=name, status="ok", found=f"installed in {folder}")
    fix = "It is installed by the first job that needs it: some gigabytes, with pip and the network."
    return Check(name=name, status="warning", found=f"not installed in {folder} yet", fix=fix)


MAX_PARAMETERS = 10**9

CpuOption = Annotated[
    bool, typer.Option("--cpu", help="Quantize models above one billion parameters without a CUDA GPU, too.")
]


def jobs_on_cpu(jobs: Sequence[Job], *, allowed: bool) -> str:
    """Like work_on_cpu, for the releases among planned jobs."""
    needs = [job.estimate for job in jobs if job.kind is JobKind.RELEASE and job.estimate is not None]
    if not needs:
        return ""
    largest = max(need.parameters for need in needs)
    return work_on_cpu(largest, sum(need.float_operations for need in needs), allowed=allowed)


def own_code_notice(jobs: Sequence[Job]) -> str:
    """One line where models' own code will run in child processes that are not isolated; otherwise empty."""
    named = [job.entry.repo_id for job in jobs if job.entry.trust_remote_code and job.kind is not JobKind.FINISH]
    missing = missing_here() if named else []
    if not missing:
        return ""
    return (
        f"code of {', '.join(named)} will run in child processes that are not isolated on this machine "
        f"({', '.join(missing)}; see `awq-bot doctor`); --require-isolation refuses that"
    )


def folder_on_cpu(source: Path, recipe: Recipe, calibration: Calibration, *, allowed: bool) -> str:
    """Like work_on_cpu, for the model in a folder, by its safetensors headers. Empty where they cannot be read."""
    try:
        tensors = tuple(read_weight_headers(source).tensors.values())
    except UpstreamError:  # reported by the stage itself
        return ""
    config = _config_in(source)
    layers = layers_from_headers(config, tensors, model_types().get(str(config.get("model_type"))))
    chosen = Chosen(layers=layers, packed=layers.linears, share=1.0)
    operations = float_operations(Details(config=config, tensors=tensors), chosen, recipe, calibration)
    return work_on_cpu(sum(prod(tensor.shape) for tensor in tensors), operations, allowed=allowed)


def _config_in(source: Path) -> dict[str, Any]:
    """Empty where it cannot be read, which the stage itself reports."""
    try:
        return parse_config((source / CONFIG).read_bytes())
    except (OSError, UpstreamError):
        return {}


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
