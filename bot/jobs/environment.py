"""The variables that a child process gets, and those of this process, hidden from it."""

from __future__ import annotations

import ctypes
import os
import re
import resource
import site
import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path

from bot.jobs.confined import PARENT
from bot.redaction import SECRET_NAME, known_secrets, redacted

# Names, not prefixes: a secret can have any name. What libraries read to find a GPU and to print.
_ALLOWED = re.compile(
    r"PATH|USER|LOGNAME|LANG|LANGUAGE|LC_ALL|LC_COLLATE|LC_CTYPE|LC_MESSAGES|LC_NUMERIC|LC_TIME|TZ"
    r"|TERM|COLORTERM|COLUMNS|LINES|NO_COLOR|FORCE_COLOR|VIRTUAL_ENV"
    r"|PYTHONPATH|PYTHONHOME|PYTHONUTF8|PYTHONIOENCODING|PYTHONUNBUFFERED|PYTHONWARNINGS|PYTHONHASHSEED"
    r"|PYTHONDONTWRITEBYTECODE|PYTHONPYCACHEPREFIX|PYTHONFAULTHANDLER|PYTHONNOUSERSITE|PYTHONSAFEPATH"
    r"|LD_LIBRARY_PATH|OMP_NUM_THREADS|MKL_NUM_THREADS"
    r"|CUDA_VISIBLE_DEVICES|CUDA_DEVICE_ORDER|CUDA_HOME|CUDA_PATH|CUDA_LAUNCH_BLOCKING|CUDA_MODULE_LOADING"
    r"|CUDA_CACHE_DISABLE|CUDA_CACHE_MAXSIZE|CUDA_DEVICE_MAX_CONNECTIONS"
    r"|NVIDIA_VISIBLE_DEVICES|NVIDIA_DRIVER_CAPABILITIES|NVIDIA_TF32_OVERRIDE"
    r"|TORCH_CUDA_ARCH_LIST|TORCH_LOGS|TORCH_SHOW_CPP_STACKTRACES"
    r"|PYTORCH_ALLOC_CONF|PYTORCH_CUDA_ALLOC_CONF|PYTORCH_NVML_BASED_CUDA_CHECK"
)
# https://github.blog/engineering/platform-security/behind-githubs-new-authentication-token-formats/
_TOKEN = re.compile(r"\b(?:hf_|gh[oprsu]_|github_pat_)[A-Za-z0-9_]{16,}")
_SHORTEST_SECRET = 8

# Of linux/prctl.h, and of proc_pid_stat(5).
_SET_DUMPABLE = 4
_ENV_START, _ENV_END = 49, 50


def child_environment(home: Path) -> dict[str, str]:
    """What a child may see of our environment, and a home that is empty at first."""
    allowed = {
        name: value for name, value in os.environ.items() if _ALLOWED.fullmatch(name) and not _is_secret(value)
    }
    if site.ENABLE_USER_SITE:
        allowed["PYTHONUSERBASE"] = site.getuserbase()  # otherwise it would be looked for in the new home
    return allowed | {
        "HOME": str(home),
        "TMPDIR": str(home / "tmp"),
        # An empty home for the Hub's client, too: no stored token, no shared cache of remote code.
        "HF_HOME": str(home),
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "TOKENIZERS_PARALLELISM": "false",
        # lm-eval draws its own bars over ours, and starts processes to estimate standard errors.
        "TQDM_DISABLE": "1",
        "DISABLE_MULTIPROC": "1",
        PARENT: str(os.getpid()),
    }


def _is_secret(value: str) -> bool:
    """Whether it looks like a token, or contains what another variable calls one."""
    if _TOKEN.search(value) or redacted(value) != value:
        return True
    return any(secret in value for secret in _secrets(os.environ))


def _secrets(environment: Mapping[str, str]) -> set[str]:
    named = {value.strip() for name, value in environment.items() if SECRET_NAME.fullmatch(name)}
    return {value for value in named if len(value) >= _SHORTEST_SECRET}


@cache
def close_environment() -> None:
    """Remove from /proc/PID/environ what this process was started with, and keep others from looking into it.

    A child gets no token itself, and must not find one there. os.environ stays as it is, for later requests. Only
    root can look into a process that is not dumpable:
    https://man7.org/linux/man-pages/man2/PR_SET_DUMPABLE.2const.html
    """
    if not sys.platform.startswith("linux"):
        return
    for name, value in os.environ.items():
        os.putenv(name, value)  # a copy elsewhere, which the C library uses from now on
    fields = Path("/proc/self/stat").read_text(encoding="ascii", errors="replace").rpartition(")")[2].split()
    # The first two fields, the number and the name, are not among them.
    start, end = int(fields[_ENV_START - 2]), int(fields[_ENV_END - 2])
    if 0 < start < end:
        ctypes.memset(start, 0, end - start)
    _set_not_dumpable()


def forbid_core_dumps() -> None:
    """In a process that holds a secret. Where dumps go to a program, the limit alone would not keep one from it.

    https://man7.org/linux/man-pages/man5/core.5.html
    """
    if known_secrets():
        _, most = resource.getrlimit(resource.RLIMIT_CORE)
        resource.setrlimit(resource.RLIMIT_CORE, (0, most))
        if sys.platform.startswith("linux"):
            _set_not_dumpable()


def _set_not_dumpable() -> None:
    ctypes.CDLL(None).prctl(_SET_DUMPABLE, 0, 0, 0, 0)
