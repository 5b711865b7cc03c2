from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from filelock import FileLock

from tests.workflows.deployment import Deploy, Deployment, deployment, quantize_once
from tests.workflows.reading import Reading


@pytest.fixture(scope="session")
def reading() -> Iterator[Reading]:
    with Reading() as started:
        yield started


@pytest.fixture(scope="session")
def quantized(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Quantized and measured once, for every test that is not about quantizing; pytest's workers share it."""
    base = tmp_path_factory.getbasetemp()
    shared = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "quantized"
    with FileLock(f"{shared}.lock"):
        return quantize_once(shared)


@pytest.fixture
def deploy(reading: Reading, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Deploy]:
    """prepared: what quantizing takes its minutes for lies on the runner's disk already."""
    with ExitStack() as stack:

        def make(*names: str, prepared: bool = True) -> Deployment:
            quantized = request.getfixturevalue("quantized") if prepared else None
            return stack.enter_context(deployment(reading, tmp_path / "d", *names, quantized=quantized))

        yield make
