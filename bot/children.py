"""The two stages that need torch, as processes of their own: no token in their environment, no network.

That gives GPU memory back, isolates what strangers uploaded, and lets a killed stage be started again.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys

from bot.errors import ERRORS_BY_EXIT_CODE, BotError, QuantizationError
from bot.jobdir import JobDir
from bot.records import Failure

# What a child may see. A list of what is allowed, for nobody knows the names of all secrets.
_ALLOWED = re.compile(
    r"PATH|HOME|USER|LANG|LC_\w+|TZ|TERM|COLORTERM|COLUMNS|LINES|NO_COLOR|FORCE_COLOR|TMPDIR|VIRTUAL_ENV"
    r"|PYTHON(?!STARTUP)\w*|LD_LIBRARY_PATH|CUDA_\w+|NVIDIA_\w+|OMP_NUM_THREADS|MKL_NUM_THREADS|TORCH_\w+|PYTORCH_\w+"
    r"|MPLCONFIGDIR|COVERAGE_\w+"
)


def run_child(verb: str, jobdir: JobDir, *, options: tuple[str, ...] = ()) -> None:
    """`python -m bot VERB --job DIR`, its stderr on ours. Raises what the child wrote down as its failure."""
    jobdir.forget(Failure)
    command = [sys.executable, "-m", "bot", *options, verb, "--job", str(jobdir.path)]
    child = subprocess.Popen(command, env=child_environment(jobdir), stdout=subprocess.DEVNULL)
    try:
        code = child.wait()
    except KeyboardInterrupt:
        # Ctrl-C reached the child as well; it puts its things away and ends.
        child.wait()
        raise
    finally:
        if child.poll() is None:
            child.terminate()
            child.wait()
    if code in (130, -signal.SIGINT):
        raise KeyboardInterrupt
    if code != 0:
        raise _failure_of(verb, jobdir, code)


def child_environment(jobdir: JobDir) -> dict[str, str]:
    allowed = {name: value for name, value in os.environ.items() if _ALLOWED.fullmatch(name)}
    return allowed | {
        # An empty home of the Hub's client: nobody's stored token, no shared cache of remote code.
        "HF_HOME": str(jobdir.hf_home),
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "AWQ_BOT_PARENT": str(os.getpid()),
    }


def end_with_parent() -> None:
    """In a child: stop when the process that started us is killed, so that two never write one folder."""
    parent = os.environ.get("AWQ_BOT_PARENT")
    if parent is None or not sys.platform.startswith("linux"):
        return
    import ctypes  # noqa: PLC0415 - only a child needs it

    set_parent_death_signal = 1
    ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGKILL)
    if os.getppid() != int(parent):
        os._exit(1)


def _failure_of(verb: str, jobdir: JobDir, code: int) -> BotError:
    failure = jobdir.load(Failure)
    if failure is not None:
        kind = ERRORS_BY_EXIT_CODE.get(failure.exit_code, BotError)
        return kind(failure.message, hint=failure.hint)
    if code < 0:
        name = signal.Signals(-code).name
        hint = "Was it out of memory? `dmesg` tells. Run it again; it goes on." if -code == signal.SIGKILL else ""
        return QuantizationError(f"{verb} was ended by {name}", hint=hint)
    return QuantizationError(f"{verb} ended with code {code}", hint=f"See its output above, and {jobdir.path}.")
