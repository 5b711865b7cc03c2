"""Where the points of a plot are, and what its axes say."""

from __future__ import annotations

from itertools import pairwise

import pytest

from bot.page.plot import HEIGHT, WIDTH, plots
from tests.support.status import release


@pytest.mark.parametrize(
    ("highest", "labels"),
    [
        (0.0123, ["0", "0.01", "0.02"]),
        (0.04, ["0", "0.02", "0.04"]),
        (0.041, ["0", "0.025", "0.05"]),
        (1.0, ["0", "0.5", "1"]),
        (180.0, ["0", "100", "200"]),
        (0.0, ["0", "1", "2"]),
    ],
)
def test_the_axis_of_kl_begins_at_zero_and_has_round_labels(highest: float, labels: list[str]) -> None:
    kl, _ = plots([release(1, kl_mean=highest), release(0, kl_mean=0.0)])
    assert [tick.label for tick in kl.ticks] == labels


@pytest.mark.parametrize(
    ("lowest", "labels"),
    [(0.995, ["99", "99.5", "100"]), (0.93, ["90", "95", "100"]), (0.2, ["0", "50", "100"])],
)
def test_the_axis_of_top1_ends_at_a_hundred_percent(lowest: float, labels: list[str]) -> None:
    _, top1 = plots([release(1, top1_agreement=lowest), release(0, top1_agreement=1.0)])
    assert [tick.label for tick in top1.ticks] == labels


@pytest.mark.parametrize("value", [0.0, 1e-9, 0.5, 1e6])
def test_all_points_are_inside_from_left_to_right(value: float) -> None:
    releases = [release(number, kl_mean=value, top1_agreement=0.0) for number in reversed(range(20))]
    for plot in plots(releases):
        assert all(0 <= point.x <= WIDTH and 0 <= point.y <= HEIGHT for point in plot.points)
        assert all(one.x < other.x for one, other in pairwise(plot.points))


def test_a_lower_kl_is_drawn_lower_and_the_newest_is_last() -> None:
    kl, _ = plots([release(1, kl_mean=0.01), release(0, kl_mean=0.03)])
    first, last = kl.points
    assert first.y < last.y  # from the top
    assert (kl.first, kl.last) == ("2026-01-05", "2026-01-22")
    assert last.label == "2026-01-22: 0.0100"


def test_releases_without_a_date_are_not_drawn() -> None:
    assert plots([release(1), release(0, date="")]) == ()
