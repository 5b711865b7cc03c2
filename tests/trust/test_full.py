"""The disk is full at each write of each stage: named, nothing half-made is taken for whole, and it goes on."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from tests.support.forks import Forks, forks
from tests.support.sandbox import Sandbox, SandboxBefore
from tests.support.small_sandbox import Tree
from tests.trust.full import BEFORE, Full, try_full

pytestmark = pytest.mark.timeout(900)

# The writes of each stage. Of those in a row to one file of weights, the first and the last.
_WEIGHTS = {*range(13, 27), *range(36, 50), *range(75, 104)}
_WRITES = {"pull": range(84), "quantize": range(117), "evaluate": range(18), "card": range(13), "run": range(18)}
# In `make test`: a download, a tensor of a layer, a record, a card.
_SLICE = {("pull", 20), ("quantize", 12), ("quantize", 112), ("card", 1), ("run", 2)}


def _cases() -> Iterator[object]:
    for stage, numbers in _WRITES.items():
        for number in numbers:
            if stage == "quantize" and number in _WEIGHTS:
                continue
            marks = () if (stage, number) in _SLICE else (pytest.mark.slow,)
            yield pytest.param(Full(stage=stage, number=number), id=f"{stage}-{number}", marks=marks)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Forks]:
    with forks(tmp_path_factory.mktemp("imported")) as running:
        yield running


@pytest.mark.parametrize("cell", [*_cases()])
def test_a_full_disk_is_named_and_the_stage_goes_on(
    cell: Full,
    sandbox_before: SandboxBefore,
    small_sandbox: Sandbox,
    server: Forks,
    expected: Tree,
    record_property: Callable[[str, object], None],
) -> None:
    ended = try_full(cell, sandbox_before(*BEFORE[cell.stage]), small_sandbox.jobs[0], server, expected)
    if ended.write:
        record_property("full", ended.write)
    for wrong in ("mixed", "lost", "unnamed"):
        if getattr(ended, wrong):
            record_property("full_left", wrong)
    assert (ended.mixed, ended.lost, ended.unnamed) == ("", "", "")
