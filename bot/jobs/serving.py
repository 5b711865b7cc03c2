"""A job's artifact in the inference engines of its entry: each in a child process, isolated as evaluating is.

The child gets no token and no network. It can read the artifact and the engine's environment, and write to one
folder. Its answer is untrusted, as the model may bring code.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Any, Final

from pydantic import ValidationError

from bot.errors import BotError, EnvironmentProblem
from bot.files import disk_errors, write_atomic
from bot.jobs.confined import NOT_ISOLATED
from bot.jobs.environment import child_environment, close_environment
from bot.jobs.folder import JobDir
from bot.jobs.isolation import ESSENTIAL, Confinement, not_isolated, require
from bot.jobs.machine import core_count, has_cuda, memory_bytes
from bot.records import Engine, EngineAnswer, Progress, QuantizedModel, Reference, Served, from_json, to_json
from bot.serve.comparison import compare, refused
from bot.serve.engines import engine_python, last_line
from bot.text import duration

SCRIPT: Final = Path(__file__).parents[1] / "serve" / "engine_script.py"

_NEW_TOKENS: Final = 32  # after each prompt
_MOST_ANSWER_BYTES: Final = 1 << 24
_MOST_LOG_BYTES: Final = 1 << 16
_LARGEST_FILE_BYTES: Final = 1 << 33  # of what an engine compiles and keeps
# Variables that lead Python, or its packages, to other places than the engine's environment.
_OF_PYTHON: Final = ("PYTHONPATH", "PYTHONHOME", "PYTHONUSERBASE", "VIRTUAL_ENV")


def check_engines(engines: tuple[Engine, ...]) -> None:
    """Before anything is downloaded. Raises EnvironmentProblem where an engine cannot run on this machine."""
    if any(engine.name == "vllm" for engine in engines) and not has_cuda():
        hint = "Run it on a machine with a CUDA GPU, or name `gptqmodel`, which runs on a CPU, too."
        raise EnvironmentProblem("serve: vllm needs a CUDA GPU, and there is none", hint=hint)


def install_engines(engines: tuple[Engine, ...], progress: Progress) -> None:
    """Raises EnvironmentProblem where one cannot be installed."""
    close_environment()  # what pip builds runs as this account
    for engine in engines:
        engine_python(engine, progress)


@dataclass(frozen=True, slots=True, kw_only=True)
class Serving:
    """How to serve: limit_s for each engine; script: what runs in the engine's environment."""

    limit_s: float
    progress: Progress
    require_isolation: bool = False
    script: Path = SCRIPT


def serve_with(
    engine: Engine, jobdir: JobDir, quantized: QuantizedModel, reference: Reference, how: Serving
) -> Served:
    """Load the artifact in the engine and compare.

    Raises QualityGateError when the engine fails, takes too long or differs; EnvironmentProblem when it cannot be
    installed or isolated here, or is killed for want of memory.
    """
    if how.require_isolation:
        require()
    close_environment()
    python = engine_python(engine, how.progress)
    what = f"serve with {engine}"
    how.progress(what, 0, 1, "engines")
    request = {
        "engine": engine.name,
        "model": str(jobdir.quantized.resolve()),
        "trust_remote_code": jobdir.job.entry.trust_remote_code,
        "blocks": reference.blocks,
        "prompts": reference.prompts,
        "new_tokens": _NEW_TOKENS,
    }
    answer = _ask(engine, python, jobdir, request, how)
    served = compare(engine, reference, answer, artifact_dtype=quantized.artifact_dtype)
    how.progress(what, 1, 1, "engines")
    return served


def _ask(engine: Engine, python: Path, jobdir: JobDir, request: dict[str, Any], how: Serving) -> EngineAnswer:
    # Below the one folder of a job that may hold links, which caches of libraries do.
    home = (jobdir.hf_home / "serve" / engine.name).resolve()
    shutil.rmtree(home, ignore_errors=True)
    with disk_errors(home):
        (home / "tmp").mkdir(parents=True)
    asked, answered = home / "request.json", home / "answer.json"
    write_atomic(asked, to_json(request).encode())
    try:
        _run(engine, [str(python), "-I", str(how.script), str(asked), str(answered)], home, jobdir, how)
        return _read(engine, answered)
    finally:
        shutil.rmtree(home, ignore_errors=True)


def _run(engine: Engine, command: list[str], home: Path, jobdir: JobDir, how: Serving) -> None:
    environment = Path(command[0]).parents[1]
    confinement = Confinement(
        run=(environment, Path(command[0]).resolve().parents[1]),
        read=(jobdir.quantized, how.script),
        write=(home,),
        need=ESSENTIAL if how.require_isolation else (),
        memory_bytes=memory_bytes(),
        cpu_s=int(how.limit_s * core_count()) + 1,
        file_bytes=_LARGEST_FILE_BYTES,
    )
    seen = {name: value for name, value in child_environment(home).items() if name not in _OF_PYTHON}
    # Without a name, so that it is what the child wrote to its output and nothing else.
    with TemporaryFile() as output:
        child = subprocess.Popen(
            confinement.around(command), env=seen, stdin=subprocess.DEVNULL, stdout=output, stderr=output
        )
        try:
            code = child.wait(how.limit_s)
        except subprocess.TimeoutExpired:
            raise refused(engine, f"it was stopped after {duration(how.limit_s)}") from None
        finally:
            _end(child)
        if code in (130, -signal.SIGINT):
            raise KeyboardInterrupt
        if code != 0:
            raise _failure(engine, code, output)


def _end(child: subprocess.Popen[bytes]) -> None:
    """It has nothing to clean up: whatever it wrote is deleted."""
    if child.poll() is None:
        child.kill()
        child.wait()


def _failure(engine: Engine, code: int, output: IO[bytes]) -> BotError:
    if code == NOT_ISOLATED:
        return not_isolated()
    if code == -signal.SIGKILL:
        hint = "It may have run out of memory: see `dmesg`. Run it again; it resumes."
        return EnvironmentProblem(f"served with {engine}: it was killed by SIGKILL", hint=hint)
    ended = f"it was killed by {signal.Signals(-code).name}" if code < 0 else f"it ended with code {code}"
    return refused(engine, f"{ended} and said {last_line(_end_of(output))!r}")


def _end_of(output: IO[bytes]) -> str:
    size_bytes = output.seek(0, os.SEEK_END)
    output.seek(max(0, size_bytes - _MOST_LOG_BYTES))
    return output.read(_MOST_LOG_BYTES).decode(errors="replace")


def _read(engine: Engine, path: Path) -> EngineAnswer:
    """Raises QualityGateError where it is no answer."""
    if path.is_symlink() or not path.is_file():
        raise refused(engine, "it gave no answer")
    if path.stat().st_size > _MOST_ANSWER_BYTES:
        raise refused(engine, "its answer is none: it is too long")
    try:
        return from_json(EngineAnswer, path.read_bytes())
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise refused(engine, f"its answer is none: {where} {first['msg']}".replace("  ", " ")) from None
