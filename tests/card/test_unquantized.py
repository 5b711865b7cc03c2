"""How modules that are not quantized are named on the card."""

from __future__ import annotations

import pytest

from bot.card.unquantized import parts_beside_text, unquantized_text

LAYERS = range(3)
GATES = tuple(f"model.layers.{layer}.mlp.gate" for layer in LAYERS)


@pytest.mark.parametrize(
    ("names", "text"),
    [
        ((), ""),
        (("lm_head",), ""),
        (GATES, "routers `model.layers.*.mlp.gate` (3 layers)"),
        (GATES[:1], "routers `model.layers.0.mlp.gate`"),
        (
            (*GATES, *(f"model.layers.{layer}.mlp.shared_expert_gate" for layer in LAYERS)),
            "routers `model.layers.*.mlp.gate` (3 layers), `model.layers.*.mlp.shared_expert_gate` (3 layers)",
        ),
        (("model.layers.3.mlp.experts",), "`model.layers.3.mlp.experts`"),
        # By the checkpoint's name first, then by that of the model's class.
        (
            tuple(
                f"{path}.{layer}.mlp.gate" for layer in LAYERS for path in ("model.layers", "model.text.layers")
            ),
            "routers `model.layers.*.mlp.gate` (3 layers)",
        ),
        (("visual", "model.visual"), "vision tower `visual`"),
        (
            ("model.layers.7.mlp.down_proj", "audio_tower", "vision_tower", "vision_projector", "mtp", *GATES[:1]),
            "audio tower `audio_tower`; vision tower `vision_tower`; projector `vision_projector`; "
            "routers `model.layers.0.mlp.gate`; other parts `mtp`; `model.layers.7.mlp.down_proj`",
        ),
        (
            tuple(f"model.layers.0.mlp.linear_{number}" for number in range(30)),
            ", ".join(f"`model.layers.0.mlp.linear_{number}`" for number in range(8)) + " and 22 more",
        ),
    ],
)
def test_names_are_grouped_and_named_in_words(names: tuple[str, ...], text: str) -> None:
    assert unquantized_text(names, mixture=True) == text


def test_only_a_mixture_has_routers() -> None:
    assert unquantized_text(GATES, mixture=False) == "`model.layers.*.mlp.gate` (3 layers)"


@pytest.mark.parametrize(
    ("names", "parts"),
    [
        (GATES, ()),
        (("lm_head",), ()),
        (("model.visual", *GATES), ("vision tower",)),
        (
            ("model.embed_audio", "model.audio_tower", "model.vision_tower", "model.embed_vision"),
            ("vision tower", "audio tower", "projector"),
        ),
        (("model.vqmodel",), ("other parts",)),
    ],
)
def test_what_stands_beside_the_text_decoder_is_named(names: tuple[str, ...], parts: tuple[str, ...]) -> None:
    assert parts_beside_text(names) == parts
