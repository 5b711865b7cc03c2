"""Tiny models of the families that AutoAWQ knows, quantized for real and compared with the committed table."""

from pathlib import Path
from typing import Any

import pytest

from bot.watch.refusals import support_table
from tests.support import tiny_models
from tests.support.canary import canary

QUICK = ("gemma2", "phi3", "starcoder2")  # qwen3 and llama are quantized in test_artifact.py


@pytest.mark.parametrize(
    "model_type",
    [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in sorted(tiny_models.CONFIGS)],
)
def test_every_family_does_what_the_table_says(model_type: str, tmp_path: Path) -> None:
    assert canary(model_type, tmp_path) == support_table()["types"][model_type]


@pytest.mark.slow
@pytest.mark.parametrize(("model_type", "settings"), tiny_models.VARIANTS)
def test_every_variant_does_what_the_table_says(model_type: str, settings: dict[str, Any], tmp_path: Path) -> None:
    reasons = {
        (variant["model_type"], *sorted(variant["when"].items())): variant["reason"]
        for variant in support_table()["variants"]
    }
    assert canary(model_type, tmp_path, **settings) == reasons.get((model_type, *sorted(settings.items())))
