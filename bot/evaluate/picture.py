"""What the pictures on a card have in common: size, style, and files that depend on nothing but the figures.

Their background is opaque white: a transparent picture with dark text is unreadable on a dark page.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

WIDTH_PIXELS: Final = 1200
# Of Okabe and Ito's palette for colour-blind readers, on white: https://jfly.uni-koeln.de/color/
COLORS: Final = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
INK: Final = "#24292F"
FAINT: Final = "#57606A"
PALE: Final = "#9AA3AD"
GRID: Final = "#E6E9ED"
LEFT: Final = 0.066  # of the width
_DPI: Final = 150
_STYLE: Final = {
    "font.family": "DejaVu Sans",
    "font.size": 7.5,
    "text.color": INK,
    "axes.edgecolor": "#C9CFD6",
    "axes.labelcolor": FAINT,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "xtick.labelsize": 6.5,
    "ytick.labelsize": 6.5,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
}


@contextmanager
def picture(path: Path, height: float) -> Iterator[Any]:
    """A figure of matplotlib that is written to a PNG of WIDTH_PIXELS at the end. height: in inches.

    The same figures give the same bytes.
    """
    # Imported here, because measuring does not need it and it takes half a second.
    import matplotlib as mpl  # noqa: PLC0415 - see above
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # noqa: PLC0415 - see above
    from matplotlib.figure import Figure  # noqa: PLC0415 - see above

    # Defaults first: a user's matplotlibrc must not change what is published.
    with mpl.rc_context({**mpl.rcParamsDefault, **_STYLE}):
        figure = Figure(figsize=(WIDTH_PIXELS / _DPI, height), dpi=_DPI)
        yield figure
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        _save(canvas, path)


def draw_heading(figure: Any, title: str, what: str, lines: Sequence[tuple[str, str]]) -> tuple[float, float]:
    """Title, then what is drawn, then the legend. lines: color and label of each.

    Returns the heights of the first two, for notes at the right.
    """
    height = figure.get_figheight()
    top, below, legend = (1 - inches / height for inches in (0.24, 0.43, 0.62))
    figure.text(LEFT, top, title, fontsize=10.5, fontweight="bold")
    figure.text(LEFT, below, what, color=FAINT)
    figure.legend(
        [figure.add_artist(_line(color)) for color, _ in lines],
        [label for _, label in lines],
        loc="center left",
        bbox_to_anchor=(LEFT - 0.009, legend),
        ncols=len(lines),
        frameon=False,
        handlelength=1.6,
        columnspacing=1.6,
        labelcolor=INK,
    )
    return top, below


def set_grid(panel: Any) -> None:
    panel.grid(axis="y", color=GRID, linewidth=0.6)
    panel.set_axisbelow(True)
    panel.tick_params(length=2, width=0.6)


def _line(color: str) -> Any:
    from matplotlib.lines import Line2D  # noqa: PLC0415 - as in picture()

    return Line2D([], [], color=color, linewidth=1.8)


def _save(canvas: Any, path: Path) -> None:
    """Save with a palette of 64 colours, a third of the bytes, and without metadata such as the date."""
    from PIL import Image  # noqa: PLC0415 - as in picture()

    drawn = Image.frombytes("RGBA", canvas.get_width_height(), bytes(canvas.buffer_rgba())).convert("RGB")
    palette = drawn.quantize(64, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
    palette.save(path, format="PNG", optimize=True)
