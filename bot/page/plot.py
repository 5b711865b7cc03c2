"""A figure by release as points of a small SVG, which the templates draw."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import floor, log10
from typing import Final

from bot.records import PublishedRelease

WIDTH: Final = 360
HEIGHT: Final = 132
_LEFT, _RIGHT, _TOP, _BOTTOM = 48, 10, 10, 24
# What an axis is divided by, so that its labels are short.
_STEPS: Final = (1.0, 2.0, 2.5, 5.0, 10.0)
_FALLS_BELOW: Final = (0.5, 1.0, 2.5, 5.0, 10.0, 25.0, 50.0)


@dataclass(frozen=True, slots=True)
class Point:
    """A release. x, y: in the units of the picture, from its top left corner."""

    x: float
    y: float
    label: str


@dataclass(frozen=True, slots=True)
class Tick:
    y: float
    label: str


@dataclass(frozen=True, slots=True)
class Plot:
    """name: for the ids of the page. points: the oldest first. said: the same in words."""

    name: str
    title: str
    said: str
    points: tuple[Point, ...]
    ticks: tuple[Tick, ...]
    first: str
    last: str

    @property
    def line(self) -> str:
        return " ".join(f"{point.x:.1f},{point.y:.1f}" for point in self.points)


def plots(releases: Sequence[PublishedRelease]) -> tuple[Plot, ...]:
    """KL and top-1 agreement by release; nothing to see in fewer than two. releases: the newest first."""
    shown = [release for release in reversed(releases) if release.date]
    if len(shown) < 2:
        return ()
    kl = [release.kl_mean for release in shown]
    step = _step_above(max(kl) / 2)
    top1 = [100 * release.top1_agreement for release in shown]
    fall = next(size for size in _FALLS_BELOW if 100 - 2 * size <= min(top1))
    return (
        _plot(
            shown,
            kl,
            axis=(0.0, step, 2 * step),
            form="{:.4f}",
            name="kl",
            title="KL divergence to the source, in nats",
        ),
        _plot(
            shown,
            top1,
            axis=(100 - 2 * fall, 100 - fall, 100.0),
            form="{:.1f} %",
            name="top1",
            title="Same most likely next token as the source, in percent",
        ),
    )


def _step_above(value: float) -> float:
    """The next round number."""
    if value <= 0:
        return 1.0
    power = 10.0 ** floor(log10(value))
    return next(size * power for size in _STEPS if size * power >= value)


def _plot(
    releases: Sequence[PublishedRelease],
    values: Sequence[float],
    *,
    axis: tuple[float, float, float],
    form: str,
    name: str,
    title: str,
) -> Plot:
    """form: of a value, for people."""
    shown = form.format
    low, _, high = axis

    def place(value: float) -> float:
        return _TOP + (HEIGHT - _TOP - _BOTTOM) * (high - value) / (high - low)

    room = (WIDTH - _LEFT - _RIGHT) / (len(values) - 1)
    days = [release.date[:10] for release in releases]
    points = tuple(
        Point(x=_LEFT + room * number, y=place(value), label=f"{day}: {shown(value)}")
        for number, (day, value) in enumerate(zip(days, values, strict=True))
    )
    said = (
        f"{len(values)} releases from {days[0]} to {days[-1]}: the first has {shown(values[0])}, the newest "
        f"{shown(values[-1])}, the lowest is {shown(min(values))} and the highest {shown(max(values))}."
    )
    ticks = tuple(Tick(y=place(value), label=f"{value:g}") for value in axis)
    return Plot(name=name, title=title, said=said, points=points, ticks=ticks, first=days[0], last=days[-1])
