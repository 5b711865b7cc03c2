"""Child processes for what needs torch: no token in their environment, no network.

That frees GPU memory, isolates untrusted files, and lets a killed stage be started again.
"""

from __future__ import annotations

import contextlib
import os
import re
import resource
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from bot.errors import BotError, EnvironmentProblem, QuantizationError, UpstreamError
from bot.jobs.folder import JobDir
from bot.jobs.machine import memory_bytes
from bot.records import JobResult
from bot.text import duration

# Environment variables that a child may see. An allowlist, because secrets can have any name.
_ALLOWED = re.compile(
    r"PATH|HOME|USER|LANG|LC_\w+|TZ|TERM|COLORTERM|COLUMNS|LINES|NO_COLOR|FORCE_COLOR|TMPDIR|VIRTUAL_ENV"
    r"|PYTHON(?!STARTUP)\w*|LD_LIBRARY_PATH|CUDA_\w+|NVIDIA_\w+|OMP_NUM_THREADS|MKL_NUM_THREADS|TORCH_\w+|PYTORCH_\w+"
    r"|MPLCONFIGDIR|COVERAGE_\w+"
)

# In a child: the process id of the one that started it.
PARENT = "AWQ_BOT_PARENT"

# Of children that read no weights. They take seconds to import transformers, and a minute for many experts.
SMALL_S = 300.0
_SMALL_BYTES = 1 << 34
_CLEANUP_S = 30.0

# Of linux/prctl.h.
_SET_PARENT_DEATH_SIGNAL = 1
_SET_DUMPABLE = 4


def run_child(verb: str, jobdir: JobDir, *, limit_s: float, options: tuple[str, ...] = ()) -> None:
    """`python -m bot VERB --job DIR`, its stderr on ours, for limit_s at most and in this machine's memory.

    Raises the error that the child recorded.
    """
    jobdir.forget(JobResult)
    close_environment()
    command = [sys.executable, "-m", "bot", *options, verb, "--job", str(jobdir.path)]
    child = subprocess.Popen(command, env=child_environment(jobdir.hf_home), stdout=subprocess.DEVNULL)
    try:
        _limit_memory(child, memory_bytes())
        code = child.wait(limit_s)
    except subprocess.TimeoutExpired:
        raise _took_too_long(verb, limit_s) from None
    except KeyboardInterrupt:
        # Ctrl-C reached the child as well; it cleans up and ends.
        child.wait()
        raise
    finally:
        _end(child)
    if code in (130, -signal.SIGINT):
        raise KeyboardInterrupt
    if code != 0:
        raise _error_of(verb, jobdir, code)


def _end(child: subprocess.Popen[bytes]) -> None:
    """It is asked to clean up first, which a loop in compiled code does not hear."""
    if child.poll() is None:
        child.terminate()
        try:
            child.wait(_CLEANUP_S)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


def _limit_memory(child: subprocess.Popen[Any], limit_bytes: int) -> None:
    """More is a MemoryError in the child, where the system would otherwise kill some process of the machine."""
    if sys.platform.startswith("linux"):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            # What a process writes to and no file backs: a GPU's reserved addresses do not count.
            resource.prlimit(child.pid, resource.RLIMIT_DATA, (limit_bytes, limit_bytes))


def _took_too_long(verb: str, limit_s: float) -> BotError:
    if verb == "trial":
        return UpstreamError(
            f"the tokenizer, chat template or generation config took more than {duration(limit_s)} to try",
            hint="It has to be corrected upstream.",
        )
    return QuantizationError(
        f"{verb} was stopped after {duration(limit_s)}, many times what the plan estimated",
        hint="Run it again: it resumes. If it goes no further, put the model on `hold:`.",
    )


def ask_child(verb: str, question: str) -> str:
    """`python -m bot VERB` with the question on its stdin. Returns its stdout.

    Raises EnvironmentProblem when the child fails.
    """
    close_environment()
    command = [sys.executable, "-m", "bot", verb]
    pipe = subprocess.PIPE
    with tempfile.TemporaryDirectory() as home:
        environment = child_environment(Path(home))
        with subprocess.Popen(command, env=environment, stdin=pipe, stdout=pipe, stderr=pipe, text=True) as child:
            _limit_memory(child, min(_SMALL_BYTES, memory_bytes()))
            try:
                answer, said = child.communicate(question, SMALL_S)
            except subprocess.TimeoutExpired:
                raise EnvironmentProblem(f"{verb} took more than {duration(SMALL_S)}") from None
            finally:
                child.kill()
    if child.returncode != 0:
        last = (said.strip().splitlines() or ["nothing"])[-1]
        raise EnvironmentProblem(f"{verb} ended with code {child.returncode} and said {last!r}")
    return answer


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
        # lm-eval draws its own bars over ours, and starts processes to estimate standard errors.
        "TQDM_DISABLE": "1",
        "DISABLE_MULTIPROC": "1",
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
