"""Killed at every request and at random moments, and run again: the same published tree."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterable
from random import Random

import pytest

from bot.localhub import Fault
from tests.support.sandbox import Sandbox, SandboxBefore, wait_for
from tests.support.small_sandbox import Tree, finish

pytestmark = pytest.mark.timeout(900)

PUBLISHING = range(57)  # the requests of a run that has only to publish
PULLING = range(20, 48)  # those of a whole run that are not of planning, up to the last of pulling
MOMENTS = range(20)  # of a whole run, drawn at random
_LATEST_S = 12.0  # a whole run takes longer
Record = Callable[[str, object], None]


def _cases(numbers: Iterable[int], *, quick: Iterable[int]) -> list[object]:
    """Each with both signals. quick: the numbers of those that `make test` tries."""
    return [
        pytest.param(
            number, name, id=f"{name.name}-{number}", marks=() if number in quick else (pytest.mark.slow,)
        )
        for number in numbers
        for name in (signal.SIGKILL, signal.SIGTERM)
    ]


@pytest.mark.parametrize(("number", "name"), _cases(PUBLISHING, quick=(6, 14, 22, 30, 50)))
def test_killed_at_a_request_of_publishing(
    number: int, name: signal.Signals, sandbox_before: SandboxBefore, expected: Tree, record_property: Record
) -> None:
    sandbox = sandbox_before()
    kill_at(sandbox, number, name, record_property)
    finish(sandbox, expected)


@pytest.mark.parametrize(("number", "name"), _cases(PULLING, quick=()))
def test_killed_at_a_request_of_pulling(
    number: int, name: signal.Signals, sandbox_before: SandboxBefore, expected: Tree, record_property: Record
) -> None:
    sandbox = sandbox_before("pull", "quantize", "evaluate", "card")
    kill_at(sandbox, number, name, record_property)
    finish(sandbox, expected)


@pytest.mark.parametrize(("number", "name"), _cases(MOMENTS, quick=()))
def test_killed_at_a_random_moment(
    number: int, name: signal.Signals, sandbox_before: SandboxBefore, expected: Tree, record_property: Record
) -> None:
    sandbox = sandbox_before("quantize", "evaluate", "card")
    with sandbox.start("run") as process:
        time.sleep(Random(number).uniform(0.5, _LATEST_S))
        kill(process, name, record_property)
    finish(sandbox, expected)


def kill_at(sandbox: Sandbox, number: int, name: signal.Signals, record_property: Record) -> None:
    """While this request waits for its answer; a run that sends fewer has ended well."""
    sandbox.hub.faults.add(Fault(skip=number, delay_s=120))
    with sandbox.start("run") as process:
        wait_for(lambda: not sandbox.hub.faults.pending or process.poll() is not None)
        kill(process, name, record_property)


def kill(process: subprocess.Popen[str], name: signal.Signals, record_property: Record) -> None:
    if process.poll() is None:
        record_property("kill", name.name)
        os.killpg(process.pid, name)
    process.communicate(timeout=120)
