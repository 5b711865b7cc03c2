"""`serve:` on the watchlist: what an entry gets, what is wrong with it, and what it changes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from bot.records import Engine, JobKind, WatchEntry, from_json, to_json
from bot.watch.digests import recipe_digest
from tests.support.factories import details, entry, job
from tests.support.watch import QWEN3_30B_A3B, TOP, decided, loaded, mistakes, moe_tensors, skip
from tests.support.watch import job as planned

GPTQMODEL = Engine(name="gptqmodel", version="7.6.0")
VLLM = Engine(name="vllm", version="0.32")


def test_the_engines_reach_the_entry_and_a_model_may_have_others_or_none(tmp_path: Path) -> None:
    text = 'defaults: {serve: {gptqmodel: "7.6.0"}}\n' + TOP
    text += '  - lab/A\n  - {repo_id: lab/B, serve: {vllm: "0.32"}}\n  - {repo_id: lab/C, serve: {}}\n'
    assert [found.serve for found in loaded(tmp_path, text)] == [(GPTQMODEL,), (VLLM,), ()]


def test_without_the_key_there_are_none(tmp_path: Path) -> None:
    (found,) = loaded(tmp_path, TOP + "  - lab/A\n")
    assert found.serve == ()


@pytest.mark.parametrize(
    ("typed", "message", "hint"),
    [
        ('{gptqmodl: "7.6.0"}', "unknown key 'gptqmodl'", "Did you mean 'gptqmodel'?"),
        ("{vllm: 0.32}", "vllm: YAML reads 0.32 as a number, not as text", "Put it in quotes: '0.32'."),
        ('{vllm: ">=0.30"}', "vllm: '>=0.30' is not valid", "Write one exact version in quotes"),
        ('{vllm: "1"}', "vllm: '1' is not valid", "Write one exact version in quotes"),
        ("vllm", "serve: expected a mapping, found vllm", ""),
        ("", "serve: has no value", "Give it one, or remove the line."),
    ],
)
def test_what_is_wrong_is_named_with_its_line(tmp_path: Path, typed: str, message: str, hint: str) -> None:
    (found,) = mistakes(tmp_path, TOP + f"  - repo_id: lab/A\n    serve: {typed}\n")
    assert (found.line, found.message) == (4, message)
    assert found.hint.startswith(hint)


def test_it_quantizes_nothing_again_but_attempts_start_again() -> None:
    asked = entry(serve=(GPTQMODEL,))
    assert recipe_digest(asked) == recipe_digest(entry())
    digests = {job(each).attempt_digest for each in (entry(), asked, entry(serve=(VLLM,)))}
    assert len(digests) == 3


def test_only_a_release_is_served() -> None:
    assert job(entry(serve=(VLLM,))).engines == (VLLM,)
    assert job(entry(serve=(VLLM,)), kind=JobKind.REFRESH).engines == ()


def test_a_record_without_the_key_has_none_and_writes_none() -> None:
    assert '"serve"' not in to_json(entry())
    asked = replace(entry(), serve=(GPTQMODEL,))
    assert from_json(WatchEntry, to_json(asked)) == asked


def test_experts_that_transformers_cannot_load_are_refused_before_anything_is_quantized() -> None:
    config = QWEN3_30B_A3B | {"num_hidden_layers": 1, "num_experts": 8}
    found = details(config=config, tensors=moe_tensors(config))
    refused = skip(decided(entry(serve=(GPTQMODEL,)), found=found))
    assert refused.reason == "serve: transformers with gptqmodel cannot load quantized experts"
    assert "`serve: {}`" in refused.hint
    assert planned(decided(entry(serve=(VLLM,)), found=found)).engines == (VLLM,)
