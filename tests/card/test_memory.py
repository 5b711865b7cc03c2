"""The table of GPUs on the card."""

from __future__ import annotations

import pytest

from bot.card.memory import serving_memory
from bot.card.model_card import render_card
from bot.records import CachedLayers, KVCache
from tests.support.factories import job, provenance, report

# 36 layers of 8 heads with 128 values: 147,456 bytes for each token.
FULL = KVCache(layers=(CachedLayers(layers=36, heads=8, width=128),), contexts=(8192, 32_768))


@pytest.mark.parametrize(
    ("weights_gb", "cache", "gpus"),
    [
        (2.67, FULL, ["8 GB", "12 GB"]),  # 2.67 + 1.21 + 2 of 7.2; 2.67 + 4.83 + 2 of 10.8
        (3.99, FULL, ["8 GB", "16 GB"]),
        (4.0, FULL, ["12 GB", "16 GB"]),  # 4.0 + 1.208 + 2 is more than 7.2
        (167.0, FULL, ["192 GB", "none: use several"]),
        (
            2.67,
            KVCache(layers=(CachedLayers(layers=36, heads=8, width=128, window=1),), contexts=(8192,)),
            ["8 GB"],
        ),
    ],
)
def test_the_smallest_gpu_has_room_for_weights_cache_and_runtime(
    weights_gb: float, cache: KVCache, gpus: list[str]
) -> None:
    found = serving_memory(cache, weights_bytes=int(weights_gb * 1e9))
    assert found is not None
    assert [row.gpu for row in found.rows] == gpus


def formulas(text: str) -> list[str]:
    """With an x for each multiplication sign."""
    lines = text.replace("\N{MULTIPLICATION SIGN}", "x").splitlines()
    return [line.removeprefix("- KV cache: ") for line in lines if line.startswith("- KV cache: ")]


def test_the_card_shows_the_figures_with_their_formula() -> None:
    made = provenance(kv_cache=FULL, report=report(size_quantized_bytes=2_670_000_000))
    text = render_card(job(), made, chat=True)
    assert "| 8,192 | 1.2 GB | 3.9 GB | 8 GB |\n| 32,768 | 4.8 GB | 7.5 GB | 12 GB |\n" in text
    assert formulas(text) == [
        "36 layers x 2 (keys and values) x 8 heads x 128 values x 2 bytes = 147,456 bytes for each token"
    ]


def test_windows_and_latent_vectors_have_formulas_of_their_own() -> None:
    parts = (
        CachedLayers(layers=29, heads=4, width=256, window=1024),
        CachedLayers(layers=61, heads=1, width=576, latent=True),
    )
    text = render_card(job(), provenance(kv_cache=KVCache(layers=parts, contexts=(8192,))), chat=True)
    assert formulas(text) == [
        "29 layers x 2 (keys and values) x 4 heads x 256 values x 2 bytes = 118,784 bytes for each token of the "
        "last 1,024",
        "61 layers x 576 values of a latent vector x 2 bytes = 70,272 bytes for each token",
    ]


def test_a_cache_that_is_not_known_has_its_reason_and_no_table() -> None:
    text = render_card(job(), provenance(kv_cache=KVCache(problem="config.json sets [x](y)")), chat=True)
    assert "Which GPU serves it was not computed: config.json sets \\[x\\](y).\n" in text
    assert "smallest GPU |" not in text


def test_releases_that_do_not_say_what_they_cache_have_neither() -> None:
    text = render_card(job(), provenance(), chat=True)
    assert "GPU serves" not in text
    assert "smallest GPU" not in text
