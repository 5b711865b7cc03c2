"""Is this machine fit for the jobs that the watchlist asks of it? Looked at before GPU hours are spent."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from bot.records import Check, Estimate, Plan

_PINNED = re.compile(r"^([A-Za-z0-9_.-]+)==([^;\s]+)")
_DOCKER_SOCKET = Path("/var/run/docker.sock")
_NVIDIA_QUERY = ("nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader,nounits")


def check_machine(plan: Plan | None, work: Path, *, runner: bool) -> Iterator[Check]:
    """GPU, disk, memory and versions, held against the largest planned job.

    runner: a missing GPU is a failure, and what strangers' files could reach is looked at.
    """
    needs = [job.estimate for job in plan.jobs if job.estimate is not None] if plan is not None else []
    yield _check_gpu(needs, runner=runner)
    yield _check_disk(needs, work)
    yield _check_memory(needs)
    yield _check_versions()
    if runner:
        yield from _check_isolation()


def _check_isolation() -> Iterator[Check]:
    """What a model's files could do to this machine, or in our name, if one of them ran as code."""
    if os.geteuid() == 0:
        fix = "Run the runner as an account of its own: see .github/runner."
        yield Check(name="account", status="warning", found="root", fix=fix)
    else:
        yield Check(name="account", status="ok", found=f"number {os.geteuid()}, not root")
    if os.access(_DOCKER_SOCKET, os.W_OK):
        fix = "Who may talk to Docker is root on its host: keep the socket away from jobs."
        yield Check(name="docker", status="warning", found=f"{_DOCKER_SOCKET} can be written", fix=fix)
    if os.environ.get("ACTIONS_ID_TOKEN_REQUEST_TOKEN"):
        fix = "Take `id-token: write` from the job that quantizes; only the one that publishes needs it."
        yield _failed("id-token", "this job may ask for one", fix)


def _check_gpu(needs: list[Estimate], *, runner: bool) -> Check:
    wanted = max((need.vram_bytes for need in needs), default=0)
    listed = _nvidia_smi()
    if not listed:
        fix = "Install the NVIDIA driver and check with nvidia-smi. Without a GPU only tiny models make sense."
        return Check(name="GPU", status="failed" if runner else "warning", found="none", fix=fix)
    name, driver, mebibytes = (part.strip() for part in listed[0].split(","))
    found = f"{name}, {int(mebibytes) * 2**20 / 1e9:.1f} GB, driver {driver}"
    if int(mebibytes) * 2**20 < wanted:
        fix = f"The largest job needs {wanted / 1e9:.1f} GB: use a larger GPU, or put that model on `hold:`."
        return Check(name="GPU", status="failed", found=found, fix=fix)
    return Check(name="GPU", status="ok", found=found)


def _nvidia_smi() -> list[str]:
    try:
        done = subprocess.run(_NVIDIA_QUERY, capture_output=True, text=True, check=True, timeout=30)
    except (OSError, subprocess.SubprocessError):
        return []
    return [line for line in done.stdout.splitlines() if line.count(",") == 2]


def _check_disk(needs: list[Estimate], work: Path) -> Check:
    there = next(folder for folder in (work.resolve(), *work.resolve().parents) if folder.exists())
    free, wanted = shutil.disk_usage(there).free, max((need.disk_bytes for need in needs), default=0)
    fix = "Name a folder on a larger disk with --work, or remove finished jobs from it."
    return _enough("disk", free, wanted, f"free in {there}", fix)


def _check_memory(needs: list[Estimate]) -> Check:
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    wanted = max((need.ram_bytes for need in needs), default=0)
    return _enough("memory", total, wanted, "in all", "Use a machine with more memory.")


def _enough(name: str, there: int, wanted: int, what: str, fix: str) -> Check:
    found = f"{there / 1e9:.1f} GB {what}" + (f", the largest job needs {wanted / 1e9:.1f} GB" if wanted else "")
    return Check(name=name, status="ok", found=found) if there >= wanted else _failed(name, found, fix)


def _failed(name: str, found: str, fix: str) -> Check:
    return Check(name=name, status="failed", found=found, fix=fix)


def _check_versions() -> Check:
    """Installed versions against the pins of the extra `quantize`."""
    wrong = []
    pins = [match for line in metadata.requires("awq-bot") or () if (match := _PINNED.match(line))]
    for name, pinned in (match.groups() for match in pins):
        found = next((item.version for item in metadata.distributions(name=name)), "missing")
        if found.split("+")[0] != pinned:
            wrong.append(f"{name} {found} (pinned {pinned})")
    if wrong:
        fix = "In a checkout of awq-bot: pip install -c constraints.txt '.[quantize]'"
        return _failed("versions", ", ".join(wrong), fix)
    return Check(name="versions", status="ok", found=f"{len(pins)} pins hold")
