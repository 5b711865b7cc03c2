"""Publishing never leaves a mixture in public, loses no release, and names what failed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import stamina

from bot.hub import publish
from tests.trust.faults import CALLS_OF, FAULTS, KINDS, Cell, cells, try_cell

# In `make test`, of each kind of publication: each call and each fault at least once.
_SLICE = {
    Cell(kind=kind, call=calls[number % len(calls)], fault=fault)
    for position, (kind, calls) in enumerate(CALLS_OF.items())
    for number, fault in enumerate(FAULTS, start=position)
    if number % len(KINDS) == position
}


def _cases() -> list[object]:
    return [pytest.param(cell, id=str(cell), marks=() if cell in _SLICE else pytest.mark.slow) for cell in cells()]


@pytest.mark.parametrize("cell", _cases())
def test_a_fault_leaves_a_release_and_the_next_run_completes_it(
    cell: Cell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, record_property: Callable[[str, object], None]
) -> None:
    monkeypatch.setattr(publish, "pause", lambda _: None)
    with stamina.set_testing(True, attempts=3):
        ended = try_cell(cell, tmp_path)
    record_property("fault", str(cell))
    for wrong in ("mixed", "lost", "unnamed"):
        if getattr(ended, wrong):
            record_property("fault_left", wrong)
    assert (ended.mixed, ended.lost, ended.unnamed) == ("", "", "")
