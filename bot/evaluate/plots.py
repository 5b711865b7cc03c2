"""The picture on the model card: relative error of each kind of linear by layer, on calibration inputs.

Calibration has seen these inputs, so the picture makes no claim about how much better the method is than rounding.
Its background is opaque white: a transparent picture with dark text is unreadable on a dark page.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import ceil, isfinite
from pathlib import Path
from statistics import fmean
from typing import Any, Final

from bot.records import ModuleError, QuantizedModel
from bot.text import method_text

WIDTH_PIXELS: Final = 1200
_DPI: Final = 150
_COLUMNS: Final = 4
_MOST_PANELS: Final = 12  # more are no longer readable at this width
# The blue of Okabe and Ito's palette for colour-blind readers: https://jfly.uni-koeln.de/color/
_OURS: Final = "#0072B2"
_ROUNDING: Final = "#9AA3AD"
_INK: Final = "#24292F"
_FAINT: Final = "#57606A"
_GRID: Final = "#E6E9ED"
# Markers for few layers; thinner lines for many, where markers would overlap.
_FEW_LAYERS: Final = 16
_MANY_LAYERS: Final = 48
_STYLE: Final = {
    "font.family": "DejaVu Sans",
    "font.size": 7.5,
    "text.color": _INK,
    "axes.edgecolor": "#C9CFD6",
    "axes.labelcolor": _FAINT,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": _FAINT,
    "ytick.color": _FAINT,
    "xtick.labelsize": 6.5,
    "ytick.labelsize": 6.5,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
}


@dataclass(frozen=True, slots=True)
class Curve:
    """One kind of linear, such as `mlp.up_proj`, by layer. Errors are ratios; experts of a layer are averaged."""

    kind: str
    layers: tuple[int, ...]
    ours: tuple[float, ...]
    rounding: tuple[float, ...]


def draw_error_by_layer(quantized: QuantizedModel, path: Path) -> None:
    """Writes a PNG of WIDTH_PIXELS; the same figures give the same bytes. Raises ValueError without modules."""
    # Imported here, because measuring does not need it and it takes half a second.
    import matplotlib as mpl  # noqa: PLC0415
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # noqa: PLC0415
    from matplotlib.figure import Figure  # noqa: PLC0415

    curves = curves_of(quantized.modules)
    if not curves:
        raise ValueError("there is nothing to draw: no module was quantized")
    # Defaults first: a user's matplotlibrc must not change what is published.
    with mpl.rc_context({**mpl.rcParamsDefault, **_STYLE}):
        columns = min(_COLUMNS, len(curves))
        rows = ceil(len(curves) / columns)
        height = 1.2 + 1.5 * rows
        figure = Figure(figsize=(WIDTH_PIXELS / _DPI, height), dpi=_DPI)
        axes = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
        figure.subplots_adjust(
            left=0.055, right=0.985, top=1 - 0.98 / height, bottom=0.4 / height, wspace=0.09, hspace=0.3
        )
        _draw_panels(axes, curves)
        kinds = {_broad_kind_of(module.module) for module in quantized.modules}
        _draw_heading(figure, height, quantized, left_out=max(0, len(kinds) - _MOST_PANELS))
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        _save(canvas, path)


def curves_of(modules: Sequence[ModuleError]) -> tuple[Curve, ...]:
    """One curve per kind of linear, in the order in which the kinds first appear.

    Where there are many kinds, as in a mixture with shared experts, gate and up of an MLP are averaged; and of the
    kinds that are still too many, those of the most layers stay.
    """
    grouped = _grouped(modules, kind_of)
    if len(grouped) > _MOST_PANELS:
        grouped = _grouped(modules, _broad_kind_of)
    widest = sorted(grouped, key=lambda kind: -len(grouped[kind]))[:_MOST_PANELS]
    return tuple(_curve(kind, by_layer) for kind, by_layer in grouped.items() if kind in widest)


def _grouped(
    modules: Sequence[ModuleError], kind: Callable[[str], str]
) -> dict[str, dict[int, list[ModuleError]]]:
    grouped: dict[str, dict[int, list[ModuleError]]] = {}
    for module in modules:
        grouped.setdefault(kind(module.module), {}).setdefault(module.layer, []).append(module)
    return grouped


def _broad_kind_of(module: str) -> str:
    return re.sub(r"(?<=\.)(?:gate|up)_proj$", "{gate,up}_proj", kind_of(module))


def kind_of(module: str) -> str:
    """`mlp.experts.*.up_proj` of `model.layers.3.mlp.experts.17.up_proj`, with or without the layer's path."""
    inside = re.sub(r"^.*?\b(?:layers|h|blocks|block|decoder\.layers)\.\d+\.", "", module)
    return re.sub(r"(?<=\.)\d+(?=\.|$)", "*", inside)


def _curve(kind: str, by_layer: dict[int, list[ModuleError]]) -> Curve:
    layers = tuple(sorted(by_layer))
    return Curve(
        kind=kind,
        layers=layers,
        ours=tuple(fmean(module.relative_error for module in by_layer[layer]) for layer in layers),
        rounding=tuple(fmean(module.relative_error_rounding for module in by_layer[layer]) for layer in layers),
    )


def _draw_panels(axes: Any, curves: Sequence[Curve]) -> None:
    panels = list(axes.flat)
    low, high = _limits(curves)
    layers = sorted({layer for curve in curves for layer in curve.layers})
    for panel, curve in zip(panels, curves, strict=False):
        _draw_lines(panel, curve, low)
        # A long name, such as `mlp.shared_expert.gate_proj`, has to fit above its panel.
        size = 7.5 * min(1.0, 30 / len(curve.kind))
        panel.set_title(curve.kind, loc="left", fontsize=size, color=_INK, pad=3)
        _set_axes(panel, layers, low, high)
    for panel in panels[len(curves) :]:
        panel.set_visible(False)
    # Where the last row has gaps, the panels above them are the lowest ones and show the ticks.
    for index in range(len(curves), axes.size):
        axes.flat[index - axes.shape[1]].tick_params(labelbottom=True)


def _draw_lines(panel: Any, curve: Curve, low: float) -> None:
    few, many = len(curve.layers) <= _FEW_LAYERS, len(curve.layers) > _MANY_LAYERS
    marks = {"marker": "o", "markersize": 2.6} if few else {}
    rounding = [max(value, low) for value in curve.rounding]
    ours = [max(value, low) for value in curve.ours]
    panel.plot(curve.layers, rounding, color=_ROUNDING, linewidth=0.8 if many else 1.2, **marks)
    panel.plot(curve.layers, ours, color=_OURS, linewidth=0.9 if many else 1.5, **marks)


def _set_axes(panel: Any, layers: Sequence[int], low: float, high: float) -> None:
    panel.set_yscale("log", subs=[])
    panel.set_ylim(low, high)
    panel.yaxis.get_major_locator().set_params(subs=(1.0, 3.0))
    panel.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.3g} %")
    panel.set_xlim(layers[0] - 0.5, layers[-1] + 0.5)
    panel.xaxis.get_major_locator().set_params(integer=True, nbins=6, min_n_ticks=1)
    panel.grid(axis="y", color=_GRID, linewidth=0.6)
    panel.set_axisbelow(True)
    panel.tick_params(length=2, width=0.6)


def _limits(curves: Sequence[Curve]) -> tuple[float, float]:
    """Shared by all panels, for comparison; at least a decade, so that there are ticks.

    Zero is not on a logarithmic axis; it is drawn at the lower end.
    """
    values = [
        value for curve in curves for value in (*curve.ours, *curve.rounding) if value > 0 and isfinite(value)
    ]
    low, high = min(values, default=1e-3) / 1.5, max(values, default=1e-2) * 1.5
    widen = max(1.0, (10 * low / high) ** 0.5)
    return low / widen, high * widen


def _draw_heading(figure: Any, height: float, quantized: QuantizedModel, *, left_out: int) -> None:
    """Title, then what is drawn, then the legend. left_out: kinds without a panel."""
    recipe = quantized.recipe
    title, what, legend = (1 - inches / height for inches in (0.24, 0.43, 0.62))
    figure.text(0.055, title, "Relative error by layer, on calibration inputs", fontsize=10.5, fontweight="bold")
    figure.text(0.985, title, f"INT{recipe.bits}, groups of {recipe.group_size}", color=_FAINT, ha="right")
    formula = r"of each quantized linear's output: $\Vert WX-W_qX\Vert^2\,/\,\Vert WX\Vert^2$"
    figure.text(0.055, what, formula, color=_FAINT)
    if left_out:
        figure.text(0.985, what, f"without {left_out} kinds in few layers", color=_FAINT, ha="right")
    lines = [figure.add_artist(_line(color)) for color in (_OURS, _ROUNDING)]
    figure.legend(
        lines,
        [method_text(recipe.method), "plain rounding"],
        loc="center left",
        bbox_to_anchor=(0.046, legend),
        ncols=2,
        frameon=False,
        handlelength=1.6,
        columnspacing=1.6,
        labelcolor=_INK,
    )
    figure.text(0.52, 0.1 / height, "layer", color=_FAINT, ha="center")


def _line(color: str) -> Any:
    from matplotlib.lines import Line2D  # noqa: PLC0415

    return Line2D([], [], color=color, linewidth=1.8)


def _save(canvas: Any, path: Path) -> None:
    """Save with a palette of 64 colours, a third of the bytes, and without metadata such as the date."""
    from PIL import Image  # noqa: PLC0415

    picture = Image.frombytes("RGBA", canvas.get_width_height(), bytes(canvas.buffer_rgba())).convert("RGB")
    palette = picture.quantize(64, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
    palette.save(path, format="PNG", optimize=True)
