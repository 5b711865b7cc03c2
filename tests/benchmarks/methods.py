"""What is compared: ours, plain rounding, AutoAWQ, and other libraries, each in an environment of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bot.checkpoint.constants import tool_versions
from bot.checkpoint.reader import Checkpoint
from bot.errors import EnvironmentProblem, untrusted_input
from bot.files import cache_folder, file_sha256, locked, write_atomic
from bot.serve.engines import last_line
from tests.benchmarks.peer import write_artifact
from tests.benchmarks.peers.layouts import as_gemm
from tests.benchmarks.run import ROOT, Run, run_apart

PEERS_FOLDER = Path(__file__).parent / "peers"
OUR_CODE = ("bot/quantize", "bot/checkpoint")


class CannotRunError(EnvironmentProblem):
    """A library cannot be installed here, or its run failed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    """label: as tables have it. All quantize to 4 bits, with a zero point for each group.

    package: what is installed into an environment of its own, pinned in peers/<package>.txt; None: run.py knows
    the method. script: the module in peers/ that runs there, with this algorithm.
    """

    name: str
    label: str
    package: str | None = None
    script: str = ""
    algorithm: str = ""


OURS = Method(name="awq+gptq", label="ours, `awq+gptq`")
ROUNDING = Method(name="rounding", label="rounding to nearest")
AUTOAWQ = Method(name="autoawq", label="AutoAWQ, fixed")
GPTQMODEL = Method(
    name="gptqmodel", label="GPTQModel, GPTQ", package="gptqmodel", script="by_gptqmodel", algorithm="gptq"
)
LLM_COMPRESSOR = tuple(
    Method(
        name=f"llm-compressor-{algorithm}",
        label=f"llm-compressor, {label}",
        package="llmcompressor",
        script="by_llm_compressor",
        algorithm=algorithm,
    )
    for algorithm, label in {"awq": "AWQ", "gptq": "GPTQ", "awq+gptq": "AWQ, then GPTQ"}.items()
)
AUTO_ROUND, AUTO_ROUND_LIGHT = (
    Method(
        name=name,
        label=f"auto-round, {label}",
        package="auto-round",
        script="by_auto_round",
        algorithm=recipe,
    )
    for name, recipe, label in (
        ("auto-round", "default", "200 iterations"),
        ("auto-round-light", "light", "its `light` recipe, 50 iterations"),
    )
)
# Of the libraries in environments of their own; the quickest first.
INSTALLED = (GPTQMODEL, LLM_COMPRESSOR[1], LLM_COMPRESSOR[0], LLM_COMPRESSOR[2], AUTO_ROUND, AUTO_ROUND_LIGHT)
METHODS = {method.name: method for method in (AUTOAWQ, ROUNDING, *INSTALLED, OURS)}


def code_of(method: Method) -> Any:
    """What, of code and pins, an artifact depends on. Only ours depends on our method."""
    if method == OURS:
        return [tool_versions(), code_sha256(OUR_CODE)]
    if method == ROUNDING:
        return []
    if method == AUTOAWQ:
        return [{name: tool_versions().get(name) for name in ("autoawq", "torch", "transformers")}]
    return [_pins(method).read_text(), file_sha256(PEERS_FOLDER / f"{method.script}.py")]


def code_sha256(folders: Sequence[str]) -> dict[str, str]:
    files = sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))
    return {str(path.relative_to(ROOT)): file_sha256(path) for path in files}


def make(
    method: Method, source: Path, tokens: Path, folder: Path, *, group_size: int
) -> tuple[Run, dict[str, str]]:
    """Write folder/artifact, an AWQ GEMM checkpoint, and say what it took, by which versions.

    tokens: a safetensors file with `blocks`. Raises CannotRunError for a library that cannot be installed or run.
    """
    artifact = folder / "artifact"
    if method.package is None:
        keep = ["--group", str(group_size), "--keep", str(artifact)]
        try:
            return run_apart([method.name, str(source), str(tokens), *keep]), tool_versions()
        except subprocess.CalledProcessError as error:
            raise CannotRunError(f"{method.name}: its process ended with {error.returncode}") from error
    answer = _run_installed(method, source, tokens, folder / "saved", group_size=group_size)
    with untrusted_input(lambda reason: CannotRunError(f"{method.name}: what it saved cannot be read: {reason}")):
        # auto-round writes into a folder in the one it is given.
        saved = next((folder / "saved").rglob("model*.safetensors")).parent
        write_artifact(dict(as_gemm(Checkpoint(saved))), source, artifact, group_size=group_size)
    return Run(method=method.name, **answer["run"]), answer["versions"]


def _run_installed(method: Method, source: Path, tokens: Path, out: Path, *, group_size: int) -> dict[str, Any]:
    python = _environment(method)
    asked = {
        "source": str(source),
        "out": str(out),
        "algorithm": method.algorithm,
        "group_size": group_size,
    }
    threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    # GPTQModel's pool of threads has at least two.
    settings = threads | {"CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1", "GPTQMODEL_CPU_WORKERS": "2"}
    out.mkdir(parents=True)
    request = json.dumps({"request": asked, "tokens": str(tokens)})
    with (out.parent / "log.txt").open("w") as log:
        done = subprocess.run(
            [str(python), "-m", f"tests.benchmarks.peers.{method.script}", request],
            # In a folder of its own, as llm-compressor writes its logs where it runs.
            cwd=out.parent,
            env=os.environ | settings | {"PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            check=False,
        )
    if done.returncode:
        raise CannotRunError(f"{method.name}: {last_line((out.parent / 'log.txt').read_text())}")
    return dict(json.loads(last_line(done.stdout)))


def _environment(method: Method) -> Path:
    """The python of an environment with the pinned packages; made by the first call."""
    pins = _pins(method)
    folder = cache_folder("peers") / pins.stem
    python, installed = folder / "bin" / "python", folder / "installed.txt"
    with locked(folder.with_suffix(".lock"), make_parents=True):
        if not installed.exists() or installed.read_text() != pins.read_text():
            _install(method, folder, python)
            write_atomic(installed, pins.read_bytes())
    return python


def _install(method: Method, folder: Path, python: Path) -> None:
    subprocess.run([sys.executable, "-m", "venv", "--clear", "--without-pip", str(folder)], check=True)
    pip = [sys.executable, "-m", "pip", "--python", str(python), "--quiet", "--disable-pip-version-check"]
    command = [*pip, "install", "--requirement", str(_pins(method))]
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise CannotRunError(f"{method.name}: pip cannot install it: {last_line(done.stderr)}")


def _pins(method: Method) -> Path:
    return PEERS_FOLDER / f"{method.package}.txt"
