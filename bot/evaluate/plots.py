"""A picture of the model card: relative error of each kind of linear by layer, on calibration inputs.

Calibration has seen these inputs, so the picture makes no claim about how much better the method is than rounding.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import ceil, isfinite
from pathlib import Path
from statistics import fmean
from typing import Any, Final

from bot.evaluate.picture import COLORS, FAINT, INK, LEFT, PALE, draw_heading, picture, set_grid
from bot.records import ModuleError, QuantizedModel
from bot.text import method_text

_COLUMNS: Final = 4
_MOST_PANELS: Final = 12  # more are no longer readable at this width
_OURS: Final = COLORS[0]
# Markers for few layers; thinner lines for many, where markers would overlap.
_FEW_LAYERS: Final = 16
_MANY_LAYERS: Final = 48


@dataclass(frozen=True, slots=True)
class Curve:
    """One kind of linear, such as `mlp.up_proj`, by layer. Errors are ratios; experts of a layer are averaged."""

    kind: str
    layers: tuple[int, ...]
    ours: tuple[float, ...]
    rounding: tuple[float, ...]


def draw_error_by_layer(quantized: QuantizedModel, path: Path) -> None:
    """Raises ValueError without modules."""
    curves = curves_of(quantized.modules)
    if not curves:
        raise ValueError("there is nothing to draw: no module was quantized")
    columns = min(_COLUMNS, len(curves))
    rows = ceil(len(curves) / columns)
    height = 1.2 + 1.5 * rows
    with picture(path, height) as figure:
        axes = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
        figure.subplots_adjust(
            left=LEFT, right=0.985, top=1 - 0.98 / height, bottom=0.4 / height, wspace=0.09, hspace=0.3
        )
        _draw_panels(axes, curves)
        kinds = {_broad_kind_of(module.module) for module in quantized.modules}
        _draw_text(figure, quantized, left_out=max(0, len(kinds) - _MOST_PANELS))


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
        panel.set_title(curve.kind, loc="left", fontsize=size, color=INK, pad=3)
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
    panel.plot(curve.layers, rounding, color=PALE, linewidth=0.8 if many else 1.2, **marks)
    panel.plot(curve.layers, ours, color=_OURS, linewidth=0.9 if many else 1.5, **marks)


def _set_axes(panel: Any, layers: Sequence[int], low: float, high: float) -> None:
    panel.set_yscale("log", subs=[])
    panel.set_ylim(low, high)
    panel.yaxis.get_major_locator().set_params(subs=(1.0, 3.0))
    panel.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.3g} %")
    panel.set_xlim(layers[0] - 0.5, layers[-1] + 0.5)
    panel.xaxis.get_major_locator().set_params(integer=True, nbins=6, min_n_ticks=1)
    set_grid(panel)


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


def _draw_text(figure: Any, quantized: QuantizedModel, *, left_out: int) -> None:
    """left_out: kinds without a panel."""
    recipe = quantized.recipe
    title, what = draw_heading(
        figure,
        "Relative error by layer, on calibration inputs",
        r"of each linear's output, by rounding: $\Vert WX-W_qX\Vert^2\,/\,\Vert WX\Vert^2$",
        [(_OURS, method_text(recipe.method)), (PALE, "plain rounding")],
    )
    figure.text(0.985, title, f"INT{recipe.bits}, groups of {recipe.group_size}", color=FAINT, ha="right")
    if left_out:
        figure.text(0.985, what, f"without {left_out} kinds in few layers", color=FAINT, ha="right")
    figure.text(0.52, 0.1 / figure.get_figheight(), "layer", color=FAINT, ha="center")
