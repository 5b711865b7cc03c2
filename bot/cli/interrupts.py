"""Ctrl-C while modules are still being loaded."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def ended_by_ctrl_c() -> Iterator[None]:
    """Around imports: Ctrl-C ends the process at once and without output, while there is nothing to clean up.

    Otherwise Python prints a traceback into the imported modules, and compiled modules print it and go on.
    """
    before = signal.getsignal(signal.SIGINT)
    if before is signal.SIG_IGN:  # as nohup asks for
        yield
        return
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
