"""Child processes for what needs torch: no token in their environment, no network.

That frees GPU memory, isolates untrusted files, and lets a killed stage be started again.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import bot
from bot.checkpoint.constants import tool_versions
from bot.errors import BotError, EnvironmentProblem, QuantizationError
from bot.files import write_atomic
from bot.jobs.folder import JobDir
from bot.records import Details, JobResult, Layers, Recipe, from_json, sha256_of, to_json

# Environment variables that a child may see. An allowlist, because secrets can have any name.
_ALLOWED = re.compile(
    r"PATH|HOME|USER|LANG|LC_\w+|TZ|TERM|COLORTERM|COLUMNS|LINES|NO_COLOR|FORCE_COLOR|TMPDIR|VIRTUAL_ENV"
    r"|PYTHON(?!STARTUP)\w*|LD_LIBRARY_PATH|CUDA_\w+|NVIDIA_\w+|OMP_NUM_THREADS|MKL_NUM_THREADS|TORCH_\w+|PYTORCH_\w+"
    r"|MPLCONFIGDIR|COVERAGE_\w+"
)

# In a child: the process id of the one that started it.
PARENT = "AWQ_BOT_PARENT"

# Of linux/prctl.h.
_SET_PARENT_DEATH_SIGNAL = 1
_SET_DUMPABLE = 4


def run_child(verb: str, jobdir: JobDir, *, options: tuple[str, ...] = ()) -> None:
    """`python -m bot VERB --job DIR`, its stderr on ours. Raises the error that the child recorded."""
    jobdir.forget(JobResult)
    close_environment()
    command = [sys.executable, "-m", "bot", *options, verb, "--job", str(jobdir.path)]
    child = subprocess.Popen(command, env=child_environment(jobdir.hf_home), stdout=subprocess.DEVNULL)
    try:
        code = child.wait()
    except KeyboardInterrupt:
        # Ctrl-C reached the child as well; it cleans up and ends.
        child.wait()
        raise
    finally:
        if child.poll() is None:
            child.terminate()
            child.wait()
    if code in (130, -signal.SIGINT):
        raise KeyboardInterrupt
    if code != 0:
        raise _error_of(verb, jobdir, code)


_LAYERS_TIMEOUT_S = 300.0  # a model of many experts takes about a minute


def layers_of_model(details: Details, recipe: Recipe) -> Layers:
    """What transformers makes of config.json and the headers.

    Raises EnvironmentProblem when the child process fails for a reason of its own.
    """
    question = to_json({"config": details.config, "tensors": details.tensors, "recipe": recipe})
    kept = _cache() / f"{sha256_of([question, tool_versions(), bot.__version__])}.json"
    with contextlib.suppress(OSError, ValueError):  # not asked before, or damaged
        return from_json(Layers, kept.read_text())
    answer = _ask("layers", question)
    try:
        layers = from_json(Layers, answer)
    except ValueError as error:
        raise EnvironmentProblem(f"layers gave an answer that is none: {error}") from None
    with contextlib.suppress(OSError, EnvironmentProblem):  # it is asked again next time
        write_atomic(kept, answer.encode())
    return layers


def _cache() -> Path:
    """https://specifications.freedesktop.org/basedir-spec/latest/"""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "awq-bot" / "layers"


def _ask(verb: str, question: str) -> str:
    """`python -m bot VERB` with the question on its stdin. Returns its stdout."""
    close_environment()
    command = [sys.executable, "-m", "bot", verb]
    with tempfile.TemporaryDirectory() as home:
        try:
            child = subprocess.run(
                command,
                input=question,
                env=child_environment(Path(home)),
                capture_output=True,
                text=True,
                timeout=_LAYERS_TIMEOUT_S,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise EnvironmentProblem(f"{verb} took more than {_LAYERS_TIMEOUT_S:.0f} s") from None
    if child.returncode != 0:
        last = (child.stderr.strip().splitlines() or ["nothing"])[-1]
        raise EnvironmentProblem(f"{verb} ended with code {child.returncode} and said {last!r}")
    return child.stdout


def close_environment() -> None:
    """Hide the environment that this process was started with from other processes of the same account.

    Otherwise a child, which gets no token itself, could read ours in /proc/PID/environ. Linux lets only root look
    into a process that is not dumpable: https://man7.org/linux/man-pages/man2/PR_SET_DUMPABLE.2const.html
    """
    if sys.platform.startswith("linux"):
        _prctl(_SET_DUMPABLE, 0)


def child_environment(hf_home: Path) -> dict[str, str]:
    allowed = {name: value for name, value in os.environ.items() if _ALLOWED.fullmatch(name)}
    return allowed | {
        # An empty home for the Hub's client: no stored token, no shared cache of remote code.
        "HF_HOME": str(hf_home),
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "TOKENIZERS_PARALLELISM": "false",
        PARENT: str(os.getpid()),
    }


def end_with_parent() -> None:
    """Called in a child: end when the parent is killed, so that two processes never write to one folder."""
    parent = os.environ.get(PARENT)
    if parent is None or not sys.platform.startswith("linux"):
        return
    _prctl(_SET_PARENT_DEATH_SIGNAL, signal.SIGKILL)
    if os.getppid() != int(parent):
        os._exit(1)


def _prctl(option: int, value: int) -> None:
    import ctypes  # noqa: PLC0415 - most verbs need none of it

    ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


def _error_of(verb: str, jobdir: JobDir, code: int) -> BotError:
    result = jobdir.load(JobResult)
    if result is not None and result.error is not None:
        return result.error
    if code < 0:
        name = signal.Signals(-code).name
        hint = (
            "It may have run out of memory: see `dmesg`. Run it again; it resumes."
            if -code == signal.SIGKILL
            else ""
        )
        return QuantizationError(f"{verb} was killed by {name}", hint=hint)
    return QuantizationError(f"{verb} ended with code {code}", hint=f"See its output above, and {jobdir.path}.")
