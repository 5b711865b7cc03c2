"""What counts as new: records in, a decision out."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from bot.checkpoint.constants import QUANTIZER_VERSIONS
from bot.records import (
    Calibration,
    JobKind,
    Licenses,
    Published,
    Recipe,
    Tag,
    TargetState,
    TensorInfo,
    TextSource,
    Thresholds,
    Upstream,
    WatchEntry,
)
from bot.watch.digests import recipe_digest
from bot.watch.release import triage
from bot.watch.sizing import gpu_class
from tests.support.factories import (
    HEAD,
    OTHER_SHA,
    SHA,
    absent,
    details,
    digests,
    entry,
    layer_tensors,
    provenance,
    published,
    upstream,
    with_file,
    without_file,
)
from tests.support.watch import SHARDS, candidate, decided, job, sharded, skip


def released(source: Upstream, weight_files: tuple[str, ...] = SHARDS) -> Published:
    """The target after what `decide` asks for was done."""
    first = job(decided(source=source, found=details(weight_files=weight_files)))
    origin = replace(
        provenance(entry(), source).source,
        source_files=first.source_files,
        source_digest=first.digests.source,
        refresh_digest=first.digests.refresh,
    )
    made = provenance(entry(), source, tag=first.tag, recipe_digest=first.digests.recipe, source=origin)
    return published(made)


def reason(asked: WatchEntry, source: Upstream, target: Published) -> str:
    """Why a new release is due."""
    return candidate(triage(asked, source, target)).reason


def assert_up_to_date(asked: WatchEntry, source: Upstream, target: Published) -> None:
    found = skip(triage(asked, source, target))
    assert (found.reason, found.blocked, found.exit_code) == ("up to date", False, 0)


# --- the first release --------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", [TargetState.ABSENT, TargetState.EMPTY])
def test_a_model_that_was_never_published_is_a_release(state: TargetState) -> None:
    asked = entry(recipe=Recipe(group_size=64), revision="v1", target="Some_Org.x/Model-1.5B_v2-awq")
    target = absent(state=state, repo_id=asked.target)
    first = job(decided(asked, upstream(), target, details(warnings=("two templates",))))
    assert (first.kind, first.reason, first.replaces) == (JobKind.RELEASE, "first release", None)
    assert (first.entry, first.upstream.sha) == (asked, SHA)
    assert first.weight_files == ("model.safetensors",)
    assert [file.path for file in first.source_files] == ["config.json", "model.safetensors", "tokenizer.json"]
    companions = ["LICENSE", "chat_template.jinja", "generation_config.json", "tokenizer_config.json"]
    assert [file.path for file in first.refresh_files] == companions
    assert first.estimate is not None
    assert gpu_class(first.estimate) == 16
    assert first.tensor_parallel
    assert first.warnings == ("two templates",)
    content = first.digests.content[:8]
    assert first.tag == f"upstream-01234567-{content}"
    # A folder's name on any system.
    assert first.job_id == f"Some_Org.x--Model-1.5B_v2-awq-01234567-{content}"


def test_a_job_says_what_it_replaces() -> None:
    before = provenance()
    newer = with_file(upstream(), "model.safetensors", "newer")
    smaller = with_file(upstream(), "generation_config.json", "newer")
    assert job(decided(source=newer, target=published())).replaces == before.tag
    assert job(triage(entry(), smaller, published())).replaces == before.tag
    assert job(triage(entry(), upstream(), published(tags=()))).replaces == before.tag


# --- nothing new --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path",
    [
        "README.md",
        "figures/loss.png",
        "onnx/model.onnx",
        "consolidated.00.pth",
        "consolidated.safetensors",
        "original/model.safetensors",
        "model.fp32.safetensors",
    ],
)
def test_a_commit_to_files_that_are_not_loaded_is_not_a_release(path: str) -> None:
    after = with_file(upstream(), path, "edited")
    assert after.sha == OTHER_SHA
    assert_up_to_date(entry(), after, published())


def test_a_stale_shard_that_the_index_does_not_name_may_come_and_go() -> None:
    before = with_file(sharded(), "model-00003-of-00003.safetensors", "left over")
    for after in (before, sharded()):
        assert_up_to_date(entry(), after, released(before))


def test_an_index_beside_the_single_file_means_nothing() -> None:
    before = with_file(upstream(), "model.safetensors.index.json", "old")
    after = with_file(before, "model.safetensors.index.json", "new")
    assert_up_to_date(entry(), after, released(before, ("model.safetensors",)))


def test_the_order_in_which_the_hub_lists_files_does_not_matter() -> None:
    backwards = upstream(files=tuple(reversed(upstream().files)))
    assert digests(source=backwards) == digests()
    assert_up_to_date(entry(), backwards, published())


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"revision": "v1.0"},
        {"priority": 5},
        {"private": True},
        {"gate": Thresholds(max_kl=0.5)},
        {"licenses": Licenses(allow=("apache-2.0",))},
        {"line": 99},
        {"repo_id": "LAB/tiny"},
    ],
)
def test_what_does_not_change_the_weights_requantizes_nothing(changes: dict[str, Any]) -> None:
    assert_up_to_date(entry(**changes), upstream(), published())


# --- new releases -------------------------------------------------------------------------------------------


def changed(source: Upstream, *paths: str) -> Upstream:
    for path in paths:
        source = with_file(source, path, "v2")
    return source


@pytest.mark.parametrize(
    ("after", "names"),
    [
        (changed(upstream(), "model.safetensors"), "model.safetensors"),
        (changed(upstream(), "config.json"), "config.json"),
        (changed(upstream(), "tokenizer.json"), "tokenizer.json"),
        (changed(upstream(), "merges.txt"), "merges.txt"),
        (changed(upstream(), "vocab.json"), "vocab.json"),
        (
            changed(without_file(upstream(), "tokenizer.json"), "tokenizer.model"),
            "tokenizer.json, tokenizer.model",
        ),
        (changed(upstream(), "config.json", "model.safetensors"), "config.json, model.safetensors"),
        (changed(upstream(), "LICENSE", "model.safetensors"), "model.safetensors"),
    ],
)
def test_changed_weights_config_or_vocabulary_are_a_release(after: Upstream, names: str) -> None:
    second = job(decided(source=after, target=published()))
    assert (second.kind, second.reason) == (JobKind.RELEASE, f"upstream changed: {names}")
    assert second.tag.startswith("upstream-fedcba98-")
    assert second.tag != published().tags[0].name


def test_a_reason_names_three_files_and_counts_the_rest() -> None:
    after = changed(sharded(), *SHARDS, "config.json", "tokenizer.json", "model.safetensors.index.json")
    shown = f"upstream changed: config.json, {SHARDS[0]}, {SHARDS[1]} and 2 more"
    assert reason(entry(), after, released(sharded())) == shown


def test_a_changed_shard_is_a_release() -> None:
    after = changed(sharded(), SHARDS[1])
    assert reason(entry(), after, released(sharded())) == f"upstream changed: {SHARDS[1]}"


def test_shards_that_become_one_file_and_back_are_releases() -> None:
    single = job(decided(source=upstream(sha=OTHER_SHA), target=released(sharded())))
    assert "model.safetensors" in single.reason
    assert single.weight_files == ("model.safetensors",)
    assert not any(file.path in SHARDS for file in single.source_files)
    shards = job(decided(source=sharded(), target=published(), found=details(weight_files=SHARDS)))
    assert {*SHARDS, "model.safetensors.index.json"} <= {file.path for file in shards.source_files}


def test_code_counts_where_it_is_run_and_only_there() -> None:
    asked = entry(trust_remote_code=True, revision=SHA)
    with_code = with_file(upstream(), "modeling_tiny.py", "v1")
    after = with_file(with_code, "modeling_tiny.py", "v2")
    assert reason(asked, after, published(provenance(asked, with_code))) == "upstream changed: modeling_tiny.py"
    assert_up_to_date(entry(), after, published(provenance(entry(), with_code)))


OTHER_TEXT = Calibration(samples=16, seq_len=256, sources=(TextSource(file="a.txt", sha256="00" * 32),))


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"recipe": Recipe(group_size=64)}, "recipe: group_size"),
        ({"recipe": Recipe(modules_to_not_convert=("model.layers.0.x",))}, "recipe: modules_to_not_convert"),
        ({"calibration": Calibration(samples=32, seq_len=256)}, "calibration"),
        ({"calibration": OTHER_TEXT}, "calibration"),
    ],
)
def test_another_recipe_or_calibration_is_a_release(changes: dict[str, Any], what: str) -> None:
    assert reason(entry(**changes), upstream(), published()) == f"the watchlist asks for another {what}"


def test_an_edited_calibration_file_is_another_recipe() -> None:
    edited = replace(OTHER_TEXT, sources=(TextSource(file="a.txt", sha256="11" * 32),))
    assert recipe_digest(entry(calibration=OTHER_TEXT)) != recipe_digest(entry(calibration=edited))


def test_a_recipe_that_changes_and_changes_back_gets_a_tag_that_is_free() -> None:
    """Tags never move, so the second time needs another one."""
    first = published()
    second = provenance(entry(recipe=Recipe(group_size=64)))
    target = published(second, tags=(Tag(name=first.tags[0].name, sha=SHA), Tag(name=second.tag, sha=HEAD)))
    again = job(decided(target=target))
    assert again.tag == f"{first.tags[0].name}-2"
    assert_up_to_date(entry(), upstream(), published(provenance(tag=again.tag)))


def test_tensors_alone_change_no_digest() -> None:
    more = (*layer_tensors(), TensorInfo(name="extra", dtype="F32", shape=(2, 2)))
    assert job(decided(found=details(tensors=more))).digests == job(decided()).digests


# --- requantize ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("afterwards", ["outdated", "changed"])
def test_an_older_quantizer_is_redone_once_and_only_where_the_entry_asks_for_it(afterwards: str) -> None:
    asked = entry(requantize="outdated")
    newest = QUANTIZER_VERSIONS[asked.recipe.method]
    older = newest - 1
    old = published(provenance(quantizer=older))
    assert_up_to_date(entry(), upstream(), old)
    again = job(decided(asked, target=old))
    assert again.reason == f"made by quantizer {older}, now {newest} (requantize: outdated)"
    assert again.tag != old.tags[0].name
    made = provenance(tag=again.tag, recipe_digest=again.digests.recipe, quantizer=newest)
    assert_up_to_date(entry(requantize=afterwards), upstream(), published(made))
    # AutoAWQ's own search gives the same weights as ever.
    own_search = entry(requantize="outdated", recipe=Recipe(method="awq"))
    recipe = recipe_digest(own_search)
    assert_up_to_date(own_search, upstream(), published(provenance(recipe_digest=recipe, quantizer=1)))


def test_a_release_job_says_what_the_model_keeps_of_each_token() -> None:
    planned = job(decided())
    assert planned.kv_cache is not None
    assert planned.kv_cache.size_bytes(1) == 2 * 2 * 2 * 64 * 2  # layers, keys and values, heads, head_dim, bytes
