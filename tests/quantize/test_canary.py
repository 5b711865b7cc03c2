"""Tiny models of the families that AutoAWQ knows, quantized for real and compared with the committed table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from bot.watch.refusals import support_table
from tests.support import tiny_models
from tests.support.canary import canary

QUICK = ("gemma2", "phi3", "starcoder2")  # qwen3 and llama are quantized in test_artifact.py


def agrees(model_type: str, settings: dict[str, Any], reason: str | None, folder: Path) -> None:
    assert canary(model_type, folder, **settings) == reason


@pytest.mark.parametrize("model_type", QUICK)
def test_a_family_still_does_what_the_table_says(model_type: str, tmp_path: Path) -> None:
    agrees(model_type, {}, support_table()["types"][model_type], tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("model_type", sorted(set(tiny_models.CONFIGS) - set(QUICK)))
def test_every_family_still_does_what_the_table_says(model_type: str, tmp_path: Path) -> None:
    agrees(model_type, {}, support_table()["types"][model_type], tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(("model_type", "settings"), tiny_models.VARIANTS)
def test_every_variant_still_does_what_the_table_says(
    model_type: str, settings: dict[str, Any], tmp_path: Path
) -> None:
    reasons = {
        (variant["model_type"], *sorted(variant["when"].items())): variant["reason"]
        for variant in support_table()["variants"]
    }
    agrees(model_type, settings, reasons.get((model_type, *sorted(settings.items()))), tmp_path)
