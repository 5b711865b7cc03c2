from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.workflows.deployment import quantize_once
from tests.workflows.reading import Reading


@pytest.fixture(scope="session")
def reading() -> Iterator[Reading]:
    with Reading() as started:
        yield started


@pytest.fixture(scope="session")
def quantized(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Quantized and measured once, for every test that is not about quantizing."""
    return quantize_once(tmp_path_factory.mktemp("quantized"))
