from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.workflows.reading import Reading


@pytest.fixture(scope="session")
def reading() -> Iterator[Reading]:
    with Reading() as started:
        yield started
