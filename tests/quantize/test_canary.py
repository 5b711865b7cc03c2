"""Tiny models of every type, quantized for real and compared with the committed table."""

from pathlib import Path
from typing import Any

import pytest

from bot.watch.layers import model_types
from tests.support import tiny_models
from tests.support.canary import canary

# Experts that are stored together, a vision-language model, and linear attention.
QUICK = ("gemma3", "gpt_oss", "qwen3_next")


@pytest.mark.parametrize(
    "model_type",
    [
        pytest.param(name, marks=() if name in QUICK else pytest.mark.slow)
        for name, known in model_types().items()
        if not (known.reason or "").startswith("not tried")
    ],
)
def test_every_type_does_what_the_table_says(model_type: str, tmp_path: Path) -> None:
    found = canary(model_type, tmp_path).type
    known = model_types()[model_type]
    assert found.reason == known.reason
    assert (found.layers, found.stored, found.others) == (known.layers, known.stored, known.others)
    assert (found.renamed, found.fused, found.transposed) == (known.renamed, known.fused, known.transposed)
    assert (found.mixtures, found.by_sample) == (known.mixtures, known.by_sample)


@pytest.mark.slow
@pytest.mark.parametrize(("model_type", "settings"), tiny_models.VARIANTS)
def test_every_variant_does_what_the_table_says(model_type: str, settings: dict[str, Any], tmp_path: Path) -> None:
    reasons = [item.reason for item in model_types()[model_type].variants if item.when == settings]
    assert canary(model_type, tmp_path, **settings).type.reason == next(iter(reasons), None)
