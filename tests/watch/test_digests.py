"""Digests are on the Hub for good: one that comes out differently quantizes every watched model again."""

from __future__ import annotations

import hashlib
import json
from typing import Any, cast

import pytest

from bot.records import Calibration, Digests, Recipe, TextSource, Thresholds, Upstream, from_json, to_json
from bot.records.config import Method
from bot.watch.digests import files_digest, job_id, recipe_digest, refresh_digest, tag_name
from tests.support.factories import entry, hub_file, upstream


def sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def quoted(*pairs: tuple[str, str]) -> str:
    return "[" + ",".join(f'["{path}","{content}"]' for path, content in pairs) + "]"


def test_the_source_digest_is_sha256_over_sorted_paths_and_hashes() -> None:
    files = (hub_file("model.safetensors", "w"), hub_file("config.json", "c"))
    expected = sha256(quoted(("config.json", sha256("c")), ("model.safetensors", sha256("w"))))
    assert files_digest(files) == expected
    assert files_digest(files[::-1]) == expected
    assert files_digest((files[0],)) != expected


def test_the_refresh_digest_covers_companions_licence_and_gating() -> None:
    source = upstream(
        files=(hub_file("NOTICE", "n"), hub_file("LICENSE", "l"), hub_file("README.md", "r")),
        license="other",
        license_name="lab-licence",
        license_link="LICENSE",
        gated="auto",
    )
    metadata = '{"gated":"auto","license":"other","license_link":"LICENSE","license_name":"lab-licence"}'
    files = quoted(("LICENSE", sha256("l")), ("NOTICE", sha256("n")))
    assert refresh_digest(source) == sha256(f"[{files},{metadata}]")


def test_refresh_digests_of_repos_with_one_licence_are_those_of_version_0_1() -> None:
    """Computed before licences of other names were carried, and before a repo could have several."""
    one, none = refresh_digest(upstream()), refresh_digest(upstream(license=None))
    assert one == "5a0e3ac2b32c132b331527f27eb3457d532d0e1cdc8d4f677e48bb84d7adda0c"
    assert none == "46e579cc499b2cc9ddfc86d728a9ea53b8946ca1e0059d95876c03aaa9d4e3c6"
    assert refresh_digest(upstream(licenses=("apache-2.0", "mit"))) not in (one, none)


@pytest.mark.parametrize(
    ("stated", "licenses"), [("null", ()), ('"mit"', ("mit",)), ('["mit", "isc"]', ("mit", "isc"))]
)
def test_an_upstream_of_version_0_1_is_read(stated: str, licenses: tuple[str, ...]) -> None:
    read = from_json(Upstream, f'{{"repo_id": "lab/Tiny", "license": {stated}}}')
    assert read == Upstream(repo_id="lab/Tiny", licenses=licenses)
    assert from_json(Upstream, to_json(read)) == read


def test_the_recipe_digest_is_over_the_canonical_json_of_what_was_asked_for() -> None:
    asked = entry(
        recipe=Recipe(group_size=64, modules_to_not_convert=("model.layers.0.mlp.gate",)),
        calibration=Calibration(samples=64, seq_len=512, seed=1, sources=(TextSource(builtin="stdlib"),)),
    )
    source = (
        '{"builtin":"stdlib","column":null,"dataset":null,"file":null,"revision":null,"sha256":null,"split":null,'
        '"weight":1.0}'
    )
    calibration = f'{{"samples":64,"seed":1,"seq_len":512,"sources":[{source}]}}'
    recipe = (
        '{"bits":4,"group_size":64,"modules_to_not_convert":["model.layers.0.mlp.gate"],"search":"gram",'
        '"version":"gemm","zero_point":true}'
    )
    for quantizer, shown in ((None, "null"), (2, "2")):
        text = f'{{"calibration":{calibration},"quantizer":{shown},"recipe":{recipe}}}'
        assert recipe_digest(asked, quantizer=quantizer) == sha256(text)


@pytest.mark.parametrize(
    ("recipe", "quantizer", "digest"),
    [
        (Recipe(), None, "3e36bf4370748acf0ceefb22ca1ab43e18d0cea85eb74948f1672a381b6fe62d"),
        (Recipe(method="awq"), None, "5c77ee4e8309c981e0adf2abd75e72e81d6194e761e271b8abfb7875f057d53b"),
        (Recipe(method="awq"), 3, "316c88d84102ad10c4f5d48cf131f4d34801ec0fc729cb5f6499b14906332a6f"),
    ],
)
def test_recipe_digests_are_those_of_version_0_1(recipe: Recipe, quantizer: int | None, digest: str) -> None:
    """Computed before `search: gram` became `method: awq+gptq`: a new word quantizes nothing again."""
    assert recipe_digest(entry(recipe=recipe, calibration=Calibration()), quantizer=quantizer) == digest


def test_a_share_that_is_the_default_changes_no_digest_and_another_does() -> None:
    without, default, other = Recipe(), Recipe(max_unquantized_share=0.2), Recipe(max_unquantized_share=0.3)
    digests = [recipe_digest(entry(recipe=recipe)) for recipe in (without, default, other)]
    assert digests[0] == digests[1] != digests[2]


def test_the_gate_is_in_no_digest() -> None:
    loose = entry(gate=Thresholds(max_unseen_experts=1.0))
    assert recipe_digest(loose) == recipe_digest(entry())


@pytest.mark.parametrize(("search", "method"), [("gram", "awq+gptq"), ("awq", "awq")])
def test_recipe_of_version_0_1_is_read(search: str, method: str) -> None:
    recipe = from_json(Recipe, json.dumps({"group_size": 64, "search": search}))
    assert recipe == Recipe(group_size=64, method=cast(Method, method))
    assert json.loads(to_json(recipe))["method"] == method
    assert "search" not in json.loads(to_json(recipe))


def test_names_are_made_of_the_commit_and_of_all_three_digests() -> None:
    three: dict[str, Any] = {"source": "a" * 64, "refresh": "b" * 64, "recipe": "c" * 64}
    content = sha256(f'["{"a" * 64}","{"b" * 64}","{"c" * 64}"]')[:8]
    digests = Digests(**three)
    assert tag_name(upstream(), digests) == f"upstream-01234567-{content}"
    assert job_id(entry(), upstream(), digests) == f"quantized--Tiny-awq-01234567-{content}"
    for name in three:
        assert Digests(**three | {name: "d" * 64}).content[:8] != content


def test_a_tag_that_is_taken_is_not_given_again() -> None:
    digests = Digests(source="a", refresh="b", recipe="c")
    name = tag_name(upstream(), digests)
    for taken, suffix in ((("v1",), ""), ((name,), "-2"), ((f"{name}-2", name, f"{name}-3"), "-4")):
        assert tag_name(upstream(), digests, existing_tags=taken) == name + suffix
