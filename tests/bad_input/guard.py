"""Limits of time and memory that nothing can swallow, and a folder beside the work that must stay as it is."""

from __future__ import annotations

import hashlib
import os
import resource
import signal
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import pytest

LIMIT_S = 10.0  # of processor time, as a busy machine must not decide
_WAITING = 6  # so many times as long for what waits
_MEMORY_BYTES = 3 << 30


class _Expired(KeyboardInterrupt):
    """No code that catches Exception takes it for one of its own, and threads are not waited for."""


@contextmanager
def limit(seconds: float = LIMIT_S) -> Iterator[None]:
    """Fail the test when what is inside takes longer. It gets no more memory than a case needs.

    A limit around it goes on counting.
    """
    try:
        with (
            _timer(signal.ITIMER_VIRTUAL, signal.SIGVTALRM, seconds),
            # pytest-timeout counts with the same timer.
            _timer(signal.ITIMER_REAL, signal.SIGALRM, _WAITING * seconds),
            _no_more_memory_than(_MEMORY_BYTES),
        ):
            yield
    except _Expired as error:
        where = traceback.extract_tb(error.__traceback__)[-2]  # the last is `expire`
        pytest.fail(f"took longer than {seconds:g} s, at {where.filename}:{where.lineno}")


@contextmanager
def _timer(timer: int, number: int, seconds: float) -> Iterator[None]:
    def expire(number: int, frame: FrameType | None) -> None:
        raise _Expired

    before = signal.signal(number, expire)
    left, _ = signal.setitimer(timer, seconds)
    try:
        yield
    finally:
        signal.signal(number, before)
        signal.setitimer(timer, left)


@contextmanager
def _no_more_memory_than(size_bytes: int) -> Iterator[None]:
    """Beside what the process has; more is a MemoryError, and not the end of all tests."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    allowed = pages * resource.getpagesize() + size_bytes
    resource.setrlimit(resource.RLIMIT_AS, (allowed if soft < 0 else min(soft, allowed), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


@contextmanager
def untouched(folder: Path) -> Iterator[None]:
    """The folder is the current one inside, holds a file, and must not change."""
    folder.mkdir()
    (folder / "kept.txt").write_text("kept")
    before, here = _listing(folder), Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(here)
    assert _listing(folder) == before, "something was written outside of the job's folder"


def _listing(folder: Path) -> dict[str, str]:
    """Path -> hash of everything below."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        if path.is_file()
        else ""
        for path in sorted(folder.rglob("*"))
    }
