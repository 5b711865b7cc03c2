"""The pictures on the card: what they show, and that the same figures give the same bytes."""

import random
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest
from PIL import Image

from bot.evaluate.picture import WIDTH_PIXELS
from bot.evaluate.plots import Curve, curves_of, draw_error_by_layer, kind_of
from bot.evaluate.positions import draw_kl_by_position
from bot.records import ModuleError, QuantizedModel, Report
from tests.support.factories import quantized, report, source_figures

ATTENTION = tuple(f"self_attn.{part}_proj" for part in "qkvo")
DENSE = (*ATTENTION, "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")


def error(layer: int, module: str, awq: float, rounding: float) -> ModuleError:
    return ModuleError(layer=layer, module=module, relative_error=awq, relative_error_rounding=rounding)


def dense(layers: int) -> QuantizedModel:
    numbers = random.Random(0)
    drawn = [(layer, kind, numbers.uniform(0.01, 0.03)) for layer in range(layers) for kind in DENSE]
    return quantized(
        modules=[error(layer, f"model.layers.{layer}.{kind}", plain / 3, plain) for layer, kind, plain in drawn]
    )


@pytest.mark.parametrize(
    ("module", "kind"),
    [
        ("model.layers.12.self_attn.q_proj", "self_attn.q_proj"),
        ("self_attn.q_proj", "self_attn.q_proj"),
        ("model.language_model.layers.3.mlp.down_proj", "mlp.down_proj"),
        ("transformer.h.7.attn.c_attn", "attn.c_attn"),
        ("model.layers.3.mlp.experts.17.up_proj", "mlp.experts.*.up_proj"),
        ("mlp.experts.17.up_proj", "mlp.experts.*.up_proj"),
        ("model.layers.0.mlp.fc1", "mlp.fc1"),
    ],
)
def test_linears_of_all_layers_and_experts_are_one_kind(module: str, kind: str) -> None:
    assert kind_of(module) == kind


def test_a_curve_holds_its_layers_in_order_and_the_mean_over_experts() -> None:
    modules = [
        error(1, "mlp.experts.0.up_proj", 0.5, 0.6),
        error(0, "mlp.experts.0.up_proj", 0.1, 0.2),
        error(0, "mlp.experts.1.up_proj", 0.3, 0.6),
    ]
    assert curves_of(modules) == (
        Curve("mlp.experts.*.up_proj", layers=(0, 1), ours=(0.2, 0.5), rounding=(0.4, 0.6)),
    )


def mixture(layers: int, *kinds: str, dense: int = 0) -> tuple[ModuleError, ...]:
    """`dense`: how many layers come first that have an MLP instead of experts."""
    experts = [
        f"mlp.{path}.{part}_proj" for path in ("experts.*", "shared_expert") for part in ("gate", "up", "down")
    ]
    return tuple(
        error(layer, kind, 0.01, 0.02)
        for layer in range(layers)
        for kind in (*kinds, *(DENSE[4:] if layer < dense else experts))
    )


def test_a_mixture_has_a_curve_for_each_kind_while_they_are_few() -> None:
    kinds = [curve.kind for curve in curves_of(mixture(4, *ATTENTION))]
    assert len(kinds) == 10
    assert kinds[4:6] == ["mlp.experts.*.gate_proj", "mlp.experts.*.up_proj"]


def test_gate_and_up_share_a_curve_where_there_are_many_kinds() -> None:
    modules = (
        *mixture(4, *ATTENTION, "linear_attn.in_proj_qkv", dense=1),
        error(2, "mlp.experts.*.up_proj", 0.04, 0.08),
    )
    curves = {curve.kind: curve for curve in curves_of(modules)}
    assert len(curves) == 11
    assert list(curves)[5:7] == ["mlp.{gate,up}_proj", "mlp.down_proj"]
    experts = curves["mlp.experts.*.{gate,up}_proj"]
    assert experts.layers == (1, 2, 3)
    assert experts.ours == pytest.approx((0.01, 0.02, 0.01))


def test_the_kinds_of_the_most_layers_stay_where_there_are_too_many() -> None:
    rare = tuple(error(0, f"rare.{number}_proj", 0.01, 0.02) for number in range(20))
    kinds = [curve.kind for curve in curves_of((*rare, *mixture(4, *ATTENTION)))]
    assert len(kinds) == 12
    assert kinds[4:8] == list(ATTENTION)
    assert kinds[8:] == [
        f"mlp.{path}.{part}_proj" for path in ("experts.*", "shared_expert") for part in ("{gate,up}", "down")
    ]


@pytest.mark.parametrize("layers", [1, 4, 130])
def test_a_picture_is_a_small_opaque_png_of_the_cards_width_with_both_curves(tmp_path: Path, layers: int) -> None:
    path = tmp_path / "error.png"
    draw_error_by_layer(dense(layers), path)
    assert_a_small_opaque_png(path, "#0072B2", "#9AA3AD")


def assert_a_small_opaque_png(path: Path, *colors: str) -> None:
    with Image.open(path) as picture:
        assert (picture.format, picture.width) == ("PNG", WIDTH_PIXELS)
        assert "transparency" not in picture.info
        pixels = np.asarray(picture.convert("RGB")).astype(int)
    assert path.stat().st_size < 150_000
    assert pixels[0, 0].tolist() == [255, 255, 255]
    shown = np.unique(pixels.reshape(-1, 3), axis=0)
    for color in colors:
        assert np.abs(shown - tuple(bytes.fromhex(color[1:]))).sum(axis=1).min() < 16


def test_the_same_figures_give_the_same_bytes_whatever_the_users_settings(tmp_path: Path) -> None:
    first, second = tmp_path / "first.png", tmp_path / "second.png"
    draw_error_by_layer(dense(6), first)
    with mpl.rc_context({"font.size": 20, "lines.linewidth": 9, "figure.facecolor": "black", "savefig.dpi": 30}):
        draw_error_by_layer(dense(6), second)
    assert first.read_bytes() == second.read_bytes()
    assert b"tEXt" not in first.read_bytes()
    assert b"tIME" not in first.read_bytes()


def test_a_mixture_of_experts_and_an_error_of_zero_can_be_drawn(tmp_path: Path) -> None:
    experts = [error(layer, f"mlp.experts.{n}.w1", 0.0, 0.02) for layer in range(3) for n in range(64)]
    others = [error(layer, kind, 0.004, 0.02) for layer in range(3) for kind in ATTENTION]
    draw_error_by_layer(quantized(modules=others + experts), tmp_path / "error.png")
    assert (tmp_path / "error.png").stat().st_size < 150_000


def test_without_quantized_modules_there_is_nothing_to_draw(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nothing to draw"):
        draw_error_by_layer(quantized(modules=()), tmp_path / "error.png")


# --- by position --------------------------------------------------------------------------------------------


def by_position(*labels: str) -> Report:
    """Texts that lose the most at the beginning of a block."""
    numbers = random.Random(0)
    curves = [tuple(0.1 / (1 + part) + numbers.uniform(0.02, 0.05) for part in range(16)) for _ in labels]
    sources = [source_figures(label, kl_by_position=curve) for label, curve in zip(labels, curves, strict=True)]
    return report(sources=tuple(sources), seq_len=512)


TEXTS = ("Salesforce/wikitext@b08601e0 (wikitext-2-raw-v1/test)", "code.txt", "chats.jsonl")


@pytest.mark.parametrize("count", [1, 3])
def test_each_text_has_a_line_by_position(tmp_path: Path, count: int) -> None:
    draw_kl_by_position(by_position(*TEXTS[:count]), tmp_path / "kl.png")
    assert_a_small_opaque_png(tmp_path / "kl.png", *("#0072B2", "#D55E00", "#009E73")[:count])
    draw_kl_by_position(by_position(*TEXTS[:count]), tmp_path / "again.png")
    assert (tmp_path / "kl.png").read_bytes() == (tmp_path / "again.png").read_bytes()


@pytest.mark.parametrize("label", ["$x^{", "a$b$c", "\u6587\u672c.txt", "a\nb\\frac", "x" * 500, "_legend", ""])
def test_any_name_of_a_text_can_be_drawn(tmp_path: Path, label: str) -> None:
    draw_kl_by_position(by_position(label, "b.txt"), tmp_path / "kl.png")
    assert_a_small_opaque_png(tmp_path / "kl.png", "#0072B2")


def test_many_texts_and_a_loss_of_nothing_or_of_no_number_can_be_drawn(tmp_path: Path) -> None:
    draw_kl_by_position(by_position(*(f"{number}.txt" for number in range(9))), tmp_path / "kl.png")
    curves = [(0.0,) * 16, (float("nan"), 0.1), (float("inf"), 0.1), ()]
    odd = [source_figures("odd", kl_by_position=curve) for curve in curves]
    draw_kl_by_position(report(sources=tuple(odd), seq_len=17), tmp_path / "odd.png")
    with pytest.raises(ValueError, match="nothing to draw"):
        draw_kl_by_position(report(), tmp_path / "none.png")
