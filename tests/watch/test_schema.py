"""The JSON Schema that editors read says what the watchlist's own check says."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator

from bot.calibration.sources import ROW_SUFFIXES, TEXT_SUFFIXES
from bot.errors import WatchlistError
from bot.records import Calibration, Licenses, Recipe, Thresholds
from bot.watch.schema import (
    FILE_SUFFIXES,
    SCHEMA_FILE,
    CalibrationSpec,
    GateSpec,
    LicensesSpec,
    RecipeSpec,
    json_schema,
)
from bot.watch.watchlist import load

ROOT = Path(__file__).parent.parent.parent
SHA = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(scope="module")
def validator() -> Draft202012Validator:
    schema = json.loads(SCHEMA_FILE.read_text())
    Draft202012Validator.check_schema(schema)
    return Draft202012Validator(schema)


def test_the_committed_schema_is_current() -> None:
    assert SCHEMA_FILE.read_text() == json_schema(), "run `make schema`"


def test_the_watchlist_of_the_template_starts_nothing_and_fits_the_schema(validator: Draft202012Validator) -> None:
    example = ROOT / "watchlist.yaml"
    assert load(example) == ()
    assert list(validator.iter_errors(yaml.safe_load(example.read_text()))) == []
    # The comment by which editors find the schema.
    assert f"$schema={SCHEMA_FILE.relative_to(ROOT).as_posix()}" in example.read_text()


@pytest.mark.parametrize(
    ("document", "valid"),
    [
        ({"publish_to": "me", "models": ["a/b", {"repo_id": "a/c", "target": "me/d"}]}, True),
        ({"publish_to": "me", "models": [{"repo_id": "a/b", "revision": SHA, "trust_remote_code": True}]}, True),
        ({"publish_to": "me", "models": [], "defaults": {"recipe": {"group_size": 32}, "priority": -3}}, True),
        ({"publish_to": "me", "models": [], "defaults": {"gate": {"max_kl": 1, "min_top1": 0}}}, True),
        ({"publish_to": "me", "models": [], "defaults": {"licenses": {"allow": ["mit"], "deny": []}}}, True),
        ({"models": [], "defaults": {"calibration": {"sources": [{"builtin": "stdlib", "weight": 0.5}]}}}, True),
        ({"models": [], "defaults": {"calibration": {"sources": [{"dataset": "a/b", "revision": SHA}]}}}, True),
        ({"publish_to": "me"}, False),
        ({"publish_to": "me/you", "models": []}, False),
        ({"publish_to": "me", "models": ["b"]}, False),
        ({"publish_to": "me", "models": ["a/b--c"]}, False),
        ({"publish_to": "me", "models": ["a/" + "b" * 100]}, False),
        ({"publish_to": "me", "models": [{"repo": "a/b"}]}, False),
        ({"publish_to": "me", "models": [{"repo_id": "a/b", "recipe": {"bits": 8}}]}, False),
        ({"publish_to": "me", "models": [{"repo_id": "a/b", "recipe": {"group_size": 100}}]}, False),
        ({"publish_to": "me", "models": [], "default": {}}, False),
        ({"models": [], "defaults": {"calibration": {"samples": 15}}}, False),
        ({"models": [], "defaults": {"calibration": {"sources": []}}}, False),
        ({"models": [], "defaults": {"calibration": {"sources": [{"file": "a.csv"}]}}}, False),
        (
            {"models": [], "defaults": {"calibration": {"sources": [{"builtin": "stdlib", "file": "a.txt"}]}}},
            False,
        ),
        ({"models": [], "defaults": {"licenses": {"deny": "other"}}}, False),
    ],
)
def test_schema_and_check_agree(
    validator: Draft202012Validator, tmp_path: Path, document: dict[str, Any], valid: bool
) -> None:
    (tmp_path / "watchlist.yaml").write_text(yaml.safe_dump(document))
    with contextlib.nullcontext() if valid else pytest.raises(WatchlistError):
        load(tmp_path / "watchlist.yaml")
    assert validator.is_valid(document) == valid


def test_every_key_is_explained_or_its_kind_is() -> None:
    schema = json.loads(SCHEMA_FILE.read_text())
    kinds = schema["$defs"]
    assert all("description" in kind for kind in kinds.values())
    explained = [
        key for kind in kinds.values() for key, value in kind["properties"].items() if "description" in value
    ]
    assert {"group_size", "samples", "hold", "requantize", "trust_remote_code", "dataset"} <= set(explained)


def test_the_files_that_may_be_named_are_those_that_calibration_reads() -> None:
    assert {f".{suffix}" for suffix in FILE_SUFFIXES} == {*TEXT_SUFFIXES, *ROW_SUFFIXES}


def test_the_watchlist_and_the_records_have_the_same_defaults() -> None:
    assert Recipe(**RecipeSpec().model_dump()) == Recipe()
    assert Thresholds(**GateSpec().model_dump()) == Thresholds()
    assert Licenses(**LicensesSpec().model_dump()) == Licenses()
    sizes = CalibrationSpec().model_dump(include={"samples", "seq_len", "seed"})
    assert Calibration(**sizes, sources=Calibration().sources) == Calibration()
