"""What a report says of its own figures."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.factories import task_figures


@pytest.mark.parametrize(
    ("figures", "recovery"),
    [
        ({"source": 0.8, "quantized": 0.76}, 95),
        ({"source": 0.5, "quantized": 0.55}, 110),
        ({"source": 8.0, "quantized": 10.0, "higher_is_better": False}, 80),
        ({"source": 0.0, "quantized": 0.1}, None),
        ({"source": 0.1, "quantized": 0.0, "higher_is_better": False}, None),
        ({"source": 0.1, "quantized": 0.0}, 0),
    ],
)
def test_recovery_is_what_is_left_in_percent(figures: dict[str, Any], recovery: float | None) -> None:
    found = task_figures(**figures).recovery
    assert found == (None if recovery is None else pytest.approx(recovery))
