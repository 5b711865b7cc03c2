"""Limits of time and memory around code that upstream wrote."""

from __future__ import annotations

import random
import resource
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Final

from bot.errors import QuantizationError

_STATM: Final = Path("/proc/self/statm")  # https://man7.org/linux/man-pages/man5/proc_pid_statm.5.html
_AGAIN_S: Final = 0.2


class LimitError(QuantizationError):
    """Code took more than it may. message: what, such as `takes more than 5 s`."""


@contextmanager
def limited(*, cpu_s: float, memory_bytes: int) -> Iterator[None]:
    """Raises LimitError when the block takes more processor time or memory.

    Processor time, because a busy machine must not decide what is an error. Memory is limited on Linux alone.
    Signals reach only the main thread, so in another one there is no limit.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    with _limited_memory(memory_bytes), _limited_time(cpu_s):
        yield


@contextmanager
def reproducible() -> Iterator[None]:
    """The same random numbers each time, in the block alone."""
    state = random.getstate()
    random.seed(0)
    try:
        yield
    finally:
        random.setstate(state)


@contextmanager
def _limited_time(cpu_s: float) -> Iterator[None]:
    def stop(number: int, frame: FrameType | None) -> None:
        raise LimitError(f"takes more than {cpu_s:g} s")

    before = signal.signal(signal.SIGPROF, stop)
    # Again and again, as an exception is lost where Python can only print it, such as in a destructor.
    signal.setitimer(signal.ITIMER_PROF, cpu_s, _AGAIN_S)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


@contextmanager
def _limited_memory(memory_bytes: int) -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_AS)
    if _STATM.exists():
        used_bytes = int(_STATM.read_text().split()[0]) * resource.getpagesize()
        own = [limit for limit in before if limit != resource.RLIM_INFINITY]
        resource.setrlimit(resource.RLIMIT_AS, (min([used_bytes + memory_bytes, *own]), before[1]))
    try:
        yield
    except MemoryError:
        raise LimitError(f"needs more than {memory_bytes >> 20} MiB of memory") from None
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
