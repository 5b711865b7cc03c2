"""The watch as GitHub runs it: two models published, then nothing new."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.workflows.deployment import Deployment, deployment
from tests.workflows.reading import Reading
from tests.workflows.runs import Run

ONE, TWO = "quantized/one-awq", "quantized/two-awq"


@dataclass(frozen=True)
class Watched:
    here: Deployment
    run: Run


@pytest.fixture(scope="module")
def first(reading: Reading, quantized: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    with deployment(reading, tmp_path_factory.mktemp("watch") / "d", "one", "two", quantized=quantized) as here:
        yield Watched(here, here.watch())


def test_both_models_are_published_each_by_its_own_jobs(first: Watched) -> None:
    assert first.run.results == {
        "plan": "success",
        f"{ONE} / quantize {ONE}": "success",
        f"{ONE} / publish {ONE}": "success",
        f"{TWO} / quantize {TWO}": "success",
        f"{TWO} / publish {TWO}": "success",
        "report": "success",
    }
    assert first.here.is_published("one")
    assert first.here.is_published("two")
