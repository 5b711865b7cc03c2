"""What is said of all experts of a model, from the counts of each layer."""

from __future__ import annotations

import pytest

from bot.records import ExpertTokens, experts_of_model
from tests.support.factories import expert_tokens


def test_a_model_without_experts_has_no_figures_of_them() -> None:
    assert experts_of_model(()) is None


@pytest.mark.parametrize(
    ("layers", "label"),
    [
        (
            [expert_tokens(layer, lowest=12 + layer) for layer in range(48)],
            "128 in 48 layers; calibration tokens per expert: lowest 12, median 4,096; each saw some",
        ),
        (
            [expert_tokens(layer, lowest=0, unseen=layer == 5) for layer in range(48)],
            "128 in 48 layers; calibration tokens per expert: lowest 0, median 4,096; less than 0.1 % saw none",
        ),
        (
            [expert_tokens(0, experts=64, unseen=16, median=3.0), expert_tokens(1, median=9.0)],
            "64 to 128 in 2 layers; calibration tokens per expert: lowest 12, median 6; 8.3 % saw none",
        ),
        (
            [expert_tokens(0, experts=8, lowest=1000)],
            "8 in 1 layer; calibration tokens per expert: lowest 1,000, median 4,096; each saw some",
        ),
    ],
)
def test_the_figures_of_all_layers_are_one_line(layers: list[ExpertTokens], label: str) -> None:
    found = experts_of_model(layers)
    assert found is not None
    assert found.label == label


def test_layers_without_any_expert_are_not_divided_by() -> None:
    found = experts_of_model((expert_tokens(experts=0),))
    assert found is not None
    assert found.unseen_share == 0
