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
    SCHEMA_FILE,
    CalibrationSpec,
    GateSpec,
    LicensesSpec,
    RecipeSpec,
    json_schema,
)
from bot.watch.values import FILE_SUFFIXES
from bot.watch.watchlist import load
from tests.support.watch import SHA

ROOT = Path(__file__).parents[2]


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


def calibrated_on(*sources: dict[str, Any], **settings: Any) -> dict[str, Any]:
    return {"models": [], "defaults": {"calibration": {"sources": list(sources)} | settings}}


STDLIB = {"builtin": "stdlib"}
RULES: tuple[tuple[dict[str, Any], bool], ...] = (
    ({}, True),
    ({"match": "Qwen4-*", "exclude": ["*-Base", "*[0-9]?"], "architectures": ["qwen3"], "tags": ["chat"]}, True),
    ({"since": "2026-01-31", "max_parameters": "70B", "min_downloads": 0, "limit": 100}, True),
    (
        {"max_parameters": 8_000_000_000, "mode": "publish", "publish_to": "you", "private": True},
        True,
    ),
    ({"match": "a/b"}, False),
    ({"match": [1]}, False),
    ({"max_parameters": "70G"}, False),
    ({"max_parameters": 0}, False),
    ({"limit": 101}, False),
    ({"mode": "merge"}, False),
    ({"tags": "chat"}, False),
    ({"target": "me/x"}, False),
)


@pytest.mark.parametrize(
    ("document", "valid"),
    [
        ({"publish_to": "me", "models": ["a/b", {"repo_id": "a/c", "target": "me/d"}]}, True),
        ({"publish_to": "me", "models": [{"repo_id": "a/b", "revision": SHA, "trust_remote_code": True}]}, True),
        ({"publish_to": "me", "models": [], "defaults": {"recipe": {"group_size": 32}, "priority": -3}}, True),
        ({"models": [], "defaults": {"gate": {"max_kl": 1, "min_top1": 0}}}, True),
        ({"models": [], "defaults": {"licenses": {"allow": ["mit"], "deny": []}}}, True),
        (calibrated_on(STDLIB | {"weight": 0.5}), True),
        (calibrated_on({"dataset": "a/b", "revision": SHA}), True),
        ({"models": [], "defaults": {"recipe": {"max_unquantized_share": 1}}}, True),
        ({"models": [], "defaults": {"recipe": {"max_unquantized_share": 1.5}}}, False),
        ({"models": [], "defaults": {"gate": {"max_unseen_experts": 0.25}}}, True),
        ({"models": [], "defaults": {"gate": {"max_unseen_experts": -0.1}}}, False),
        *(
            ({"publish_to": "me", "models": [], "discover": [{"author": "a"} | keys]}, valid)
            for keys, valid in RULES
        ),
        ({"publish_to": "me", "models": [], "discover": [{"match": "*"}]}, False),
        ({"publish_to": "me"}, False),
        ({"publish_to": "me/you", "models": []}, False),
        *(({"publish_to": "me", "models": [name]}, False) for name in ("b", "a/b--c", "a/" + "b" * 100)),
        ({"publish_to": "me", "models": [{"repo": "a/b"}]}, False),
        ({"publish_to": "me", "models": [{"repo_id": "a/b", "recipe": {"bits": 8}}]}, False),
        ({"publish_to": "me", "models": [{"repo_id": "a/b", "recipe": {"group_size": 100}}]}, False),
        ({"publish_to": "me", "models": [], "default": {}}, False),
        (calibrated_on(STDLIB, samples=15), False),
        (calibrated_on(), False),
        (calibrated_on({"file": "a.csv"}), False),
        (calibrated_on(STDLIB | {"file": "a.txt"}), False),
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
    keys = {key: value for kind in kinds.values() for key, value in kind["properties"].items()}
    for key in ("max_unquantized_share", "max_unseen_experts"):
        assert "from 0 to 1" in keys[key]["description"]
    for key in ("group_size", "samples", "hold", "requantize", "trust_remote_code", "dataset"):
        assert "description" in keys[key]


def test_the_files_that_may_be_named_are_those_that_calibration_reads() -> None:
    assert {f".{suffix}" for suffix in FILE_SUFFIXES} == {*TEXT_SUFFIXES, *ROW_SUFFIXES}


def test_the_watchlist_and_the_records_have_the_same_defaults() -> None:
    assert Recipe(**RecipeSpec().model_dump()) == Recipe()
    assert Thresholds(**GateSpec().model_dump()) == Thresholds()
    assert Licenses(**LicensesSpec().model_dump()) == Licenses()
    sizes = CalibrationSpec().model_dump(include={"samples", "seq_len", "seed"})
    assert Calibration(**sizes, sources=Calibration().sources) == Calibration()
