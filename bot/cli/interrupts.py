"""Ctrl-C while modules are still being loaded."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def ended_by_ctrl_c() -> Iterator[None]:
    """Around imports: the process ends at once and in silence, as long as there is nothing to put away.

    Otherwise Python tells where in other people's modules it was, and compiled ones print that and go on.
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
