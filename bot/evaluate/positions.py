"""A picture of the model card: KL divergence to the source by position in a block, a line for each text."""

from __future__ import annotations

from math import isfinite
from pathlib import Path
from typing import Any, Final

from bot.evaluate.picture import COLORS, FAINT, LEFT, draw_heading, picture, set_grid
from bot.records import Report, SourceFigures
from bot.text import one_line

_HEIGHT: Final = 2.6  # inches
_LABEL_CHARACTERS: Final = 110  # of all labels together, at this width


def draw_kl_by_position(report: Report, path: Path) -> None:
    """Raises ValueError where no text was measured by itself."""
    sources = report.sources[: len(COLORS)]
    if not sources:
        raise ValueError("there is nothing to draw: no text was measured by itself")
    labels = [_label(source, _LABEL_CHARACTERS // len(sources)) for source in sources]
    with picture(path, _HEIGHT) as figure:
        panel = figure.add_axes((LEFT, 0.4 / _HEIGHT, 0.985 - LEFT, 1 - 1.2 / _HEIGHT))
        for source, color in zip(sources, COLORS, strict=False):
            positions = _positions(len(source.kl_by_position), report.seq_len)
            panel.plot(positions, source.kl_by_position, color=color, linewidth=1.5, marker="o", markersize=2.6)
        highest = max((kl for source in sources for kl in source.kl_by_position if isfinite(kl)), default=0.0)
        _set_axes(panel, report.seq_len, highest)
        _, below = draw_heading(
            figure,
            "KL divergence to the source by position, on text that calibration did not use",
            "mean over predicted tokens, in nats; further right, the model has read more of the text",
            list(zip(COLORS, labels, strict=False)),
        )
        if left_out := len(report.sources) - len(sources):
            figure.text(0.985, below, f"without {left_out} more texts", color=FAINT, ha="right")
        figure.text(0.52, 0.1 / _HEIGHT, "position in a block of tokens", color=FAINT, ha="center")


def _label(source: SourceFigures, most: int) -> str:
    """On one line, in characters that the font has and that matplotlib does not take for mathematics."""
    return one_line(source.label.encode("ascii", "replace").decode(), most).replace("$", r"\$")


def _positions(parts: int, seq_len: int) -> list[float]:
    """The middle of each of so many equal parts of a block, whose first token is not predicted."""
    return [1 + (part + 0.5) * (seq_len - 1) / parts for part in range(parts)]


def _set_axes(panel: Any, seq_len: int, highest: float) -> None:
    panel.set_xlim(0, seq_len)
    panel.set_ylim(0, 1.1 * highest or 1)
    panel.xaxis.get_major_locator().set_params(integer=True, nbins=8)
    panel.yaxis.get_major_locator().set_params(nbins=5)
    set_grid(panel)
