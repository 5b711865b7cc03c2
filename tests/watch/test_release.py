"""What counts as new: records in, a decision out."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

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
from bot.watch.release import QUANTIZER_VERSION, decide, recipe_digest, source_files, triage
from bot.watch.sizing import gpu_class
from tests.support.factories import (
    HEAD,
    OTHER_SHA,
    SHA,
    absent,
    details,
    digests,
    entry,
    hub_file,
    layer_tensors,
    provenance,
    published,
    upstream,
    with_file,
    without_file,
)
from tests.support.watch import candidate, job, skip

SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")


def sharded() -> Upstream:
    files = [file for file in upstream().files if file.path != "model.safetensors"]
    index = hub_file("model.safetensors.index.json")
    return upstream(files=(*files, index, *(hub_file(shard) for shard in SHARDS)))


def released(asked: WatchEntry, source: Upstream, weight_files: tuple[str, ...]) -> Published:
    """The target after what `decide` asks for was done."""
    first = job(decide(candidate(triage(asked, source, absent())), details(weight_files=weight_files)))
    origin = replace(
        provenance(asked, source).source,
        source_files=first.source_files,
        source_digest=first.digests.source,
        refresh_digest=first.digests.refresh,
    )
    made = provenance(asked, source, tag=first.tag, recipe_digest=first.digests.recipe, source=origin)
    return published(made)


# --- the first release --------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", [TargetState.ABSENT, TargetState.EMPTY])
def test_a_model_that_was_never_published_is_a_release(state: TargetState) -> None:
    found = candidate(triage(entry(), upstream(), absent(state=state)))
    first = job(decide(found, details(warnings=("two templates",))))
    assert (first.kind, first.reason) == (JobKind.RELEASE, "first release")
    assert first.weight_files == ("model.safetensors",)
    assert [file.path for file in first.source_files] == ["config.json", "model.safetensors", "tokenizer.json"]
    assert [file.path for file in first.refresh_files] == [
        "LICENSE",
        "chat_template.jinja",
        "generation_config.json",
        "tokenizer_config.json",
    ]
    assert first.estimate is not None
    assert gpu_class(first.estimate) == 16
    assert first.tensor_parallel
    assert first.warnings == ("two templates",)


def test_the_job_carries_the_pinned_commit_and_what_was_asked_for() -> None:
    asked = entry(recipe=Recipe(group_size=64), revision="v1")
    first = job(decide(candidate(triage(asked, upstream(), absent())), details()))
    assert (first.entry, first.upstream.sha) == (asked, SHA)
    assert first.tag == f"upstream-01234567-{first.digests.content[:8]}"
    assert first.job_id == f"quantized--Tiny-awq-01234567-{first.digests.content[:8]}"


def test_a_job_says_what_it_replaces() -> None:
    first = job(decide(candidate(triage(entry(), upstream(), absent())), details()))
    assert first.replaces is None
    before = provenance()
    newer = with_file(upstream(), "model.safetensors", "newer")
    assert job(decide(candidate(triage(entry(), newer, published())), details())).replaces == before.tag
    smaller = with_file(upstream(), "generation_config.json", "newer")
    assert job(triage(entry(), smaller, published())).replaces == before.tag
    assert job(triage(entry(), upstream(), published(tags=()))).replaces == before.tag


# --- nothing new --------------------------------------------------------------------------------------------


def test_what_is_published_completely_is_up_to_date() -> None:
    found = skip(triage(entry(), upstream(), published()))
    assert (found.reason, found.blocked, found.exit_code) == ("up to date", False, 0)


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
    assert skip(triage(entry(), after, published())).reason == "up to date"


def test_a_stale_shard_that_the_index_does_not_name_may_come_and_go() -> None:
    before = with_file(sharded(), "model-00003-of-00003.safetensors", "left over")
    target = released(entry(), before, SHARDS)
    assert skip(triage(entry(), before, target)).reason == "up to date"
    assert skip(triage(entry(), sharded(), target)).reason == "up to date"


def test_an_index_beside_the_single_file_means_nothing() -> None:
    before = with_file(upstream(), "model.safetensors.index.json", "old")
    target = released(entry(), before, ("model.safetensors",))
    after = with_file(before, "model.safetensors.index.json", "new")
    assert skip(triage(entry(), after, target)).reason == "up to date"


def test_the_order_in_which_the_hub_lists_files_does_not_matter() -> None:
    backwards = upstream(files=tuple(reversed(upstream().files)))
    assert digests(source=backwards) == digests()
    assert skip(triage(entry(), backwards, published())).reason == "up to date"


@pytest.mark.parametrize(
    "changes",
    [
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
    assert skip(triage(entry(**changes), upstream(), published())).reason == "up to date"


# --- new releases -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("after", "reason"),
    [
        (with_file(upstream(), "model.safetensors", "v2"), "upstream changed: model.safetensors"),
        (with_file(upstream(), "config.json", "v2"), "upstream changed: config.json"),
        (with_file(upstream(), "tokenizer.json", "v2"), "upstream changed: tokenizer.json"),
        (with_file(upstream(), "merges.txt", "new"), "upstream changed: merges.txt"),
        (with_file(upstream(), "vocab.json", "new"), "upstream changed: vocab.json"),
        (
            with_file(without_file(upstream(), "tokenizer.json"), "tokenizer.model", "new"),
            "upstream changed: tokenizer.json, tokenizer.model",
        ),
        (
            with_file(with_file(upstream(), "config.json", "v2"), "model.safetensors", "v2"),
            "upstream changed: config.json, model.safetensors",
        ),
    ],
)
def test_changed_weights_config_or_vocabulary_are_a_release(after: Upstream, reason: str) -> None:
    found = candidate(triage(entry(), after, published()))
    assert found.reason == reason
    second = job(decide(found, details()))
    assert second.tag.startswith("upstream-fedcba98-")
    assert second.tag != published().tags[0].name


def test_a_reason_names_three_files_and_counts_the_rest() -> None:
    after = sharded()
    target = released(entry(), after, SHARDS)
    for path in (*SHARDS, "config.json", "tokenizer.json", "model.safetensors.index.json"):
        after = with_file(after, path, "v2")
    reason = candidate(triage(entry(), after, target)).reason
    assert reason == f"upstream changed: config.json, {SHARDS[0]}, {SHARDS[1]} and 2 more"


def test_a_changed_shard_is_a_release() -> None:
    target = released(entry(), sharded(), SHARDS)
    found = candidate(triage(entry(), with_file(sharded(), SHARDS[1], "v2"), target))
    assert found.reason == f"upstream changed: {SHARDS[1]}"


def test_shards_that_become_one_file_are_a_release() -> None:
    target = released(entry(), sharded(), SHARDS)
    found = candidate(triage(entry(), upstream(sha=OTHER_SHA), target))
    assert "model.safetensors" in found.reason
    again = job(decide(found, details()))
    assert again.weight_files == ("model.safetensors",)
    assert not any(file.path in SHARDS for file in again.source_files)


def test_one_file_that_becomes_shards_is_a_release() -> None:
    found = candidate(triage(entry(), sharded(), published()))
    shards = job(decide(found, details(weight_files=SHARDS)))
    assert {*SHARDS, "model.safetensors.index.json"} <= {file.path for file in shards.source_files}


def test_code_counts_where_it_is_run_and_only_there() -> None:
    asked = entry(trust_remote_code=True, revision=SHA)
    with_code = with_file(upstream(), "modeling_tiny.py", "v1")
    after = with_file(with_code, "modeling_tiny.py", "v2")
    target = published(provenance(asked, with_code))
    assert candidate(triage(asked, after, target)).reason == "upstream changed: modeling_tiny.py"
    assert skip(triage(entry(), after, published(provenance(entry(), with_code)))).reason == "up to date"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"recipe": Recipe(group_size=64)}, "another recipe: group_size"),
        (
            {"recipe": Recipe(modules_to_not_convert=("model.layers.0.mlp.gate",))},
            "another recipe: modules_to_not_convert",
        ),
        ({"calibration": Calibration(samples=32, seq_len=256)}, "another calibration"),
        (
            {
                "calibration": Calibration(
                    samples=16, seq_len=256, sources=(TextSource(file="a.txt", sha256="00" * 32),)
                )
            },
            "another calibration",
        ),
    ],
)
def test_another_recipe_or_calibration_is_a_release(changes: dict[str, Any], reason: str) -> None:
    found = candidate(triage(entry(**changes), upstream(), published()))
    assert found.reason == f"the watchlist asks for {reason}"


def test_an_edited_calibration_file_is_another_recipe() -> None:
    before, after = (
        entry(calibration=Calibration(sources=(TextSource(file="a.txt", sha256=digest),)))
        for digest in ("00" * 32, "11" * 32)
    )
    assert recipe_digest(before) != recipe_digest(after)


def test_a_recipe_that_changes_and_changes_back_gets_a_tag_that_is_free() -> None:
    """Tags never move, so the second time needs another one."""
    first = published()
    coarse = entry(recipe=Recipe(group_size=64))
    second = provenance(coarse)
    target = published(second, tags=(Tag(name=first.tags[0].name, sha=SHA), Tag(name=second.tag, sha=HEAD)))
    again = job(decide(candidate(triage(entry(), upstream(), target)), details()))
    assert again.tag == f"{first.tags[0].name}-2"
    assert skip(triage(entry(), upstream(), published(provenance(tag=again.tag)))).reason == "up to date"


# --- requantize ---------------------------------------------------------------------------------------------


def test_an_older_quantizer_is_redone_only_where_the_entry_asks_for_it() -> None:
    old = published(provenance(quantizer=QUANTIZER_VERSION - 1))
    assert skip(triage(entry(), upstream(), old)).reason == "up to date"
    found = candidate(triage(entry(requantize="outdated"), upstream(), old))
    assert (
        found.reason
        == f"made by quantizer {QUANTIZER_VERSION - 1}, now {QUANTIZER_VERSION} (requantize: outdated)"
    )


@pytest.mark.parametrize("afterwards", ["outdated", "changed"])
def test_a_requantized_model_is_up_to_date_and_has_a_tag_of_its_own(afterwards: str) -> None:
    old = published(provenance(quantizer=QUANTIZER_VERSION - 1))
    again = job(decide(candidate(triage(entry(requantize="outdated"), upstream(), old)), details()))
    assert again.tag != old.tags[0].name
    new = published(provenance(tag=again.tag, recipe_digest=again.digests.recipe, quantizer=QUANTIZER_VERSION))
    assert skip(triage(entry(requantize=afterwards), upstream(), new)).reason == "up to date"


# --- names and digests --------------------------------------------------------------------------------------


def test_job_ids_are_folder_names_on_any_system() -> None:
    asked = entry(target="Some_Org.x/Model-1.5B_v2-awq")
    first = job(decide(candidate(triage(asked, upstream(), absent())), details()))
    assert first.job_id.replace("--", "/", 1).startswith("Some_Org.x/Model-1.5B_v2-awq-01234567-")
    assert set(first.job_id) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.")
    assert not first.job_id.startswith((".", "-"))


def test_the_tag_of_a_refresh_differs_though_the_commit_is_the_same() -> None:
    assert digests(source=upstream(license="mit")).content != digests().content


def test_weight_files_are_what_is_named_and_tensors_alone_change_nothing() -> None:
    named = source_files(entry(), sharded(), (SHARDS[0],))
    assert SHARDS[0] in [file.path for file in named]
    assert SHARDS[1] not in [file.path for file in named]
    more = (*layer_tensors(), TensorInfo(name="extra", dtype="F32", shape=(2, 2)))
    first, second = (
        job(decide(candidate(triage(entry(), upstream(), absent())), details(tensors=tensors)))
        for tensors in (layer_tensors(), more)
    )
    assert first.digests == second.digests
