"""Why nothing is done, with the reason and the exit code."""

from __future__ import annotations

import pytest

from bot.errors import PublishError, UnsupportedModelError, UpstreamError
from bot.records import Calibration, Details, Job, Licenses, Published, Recipe, TargetState, Upstream, WatchEntry
from bot.watch.release import Candidate, decide, hold_skip, triage
from tests.support.factories import (
    CONFIG,
    absent,
    details,
    entry,
    hub_file,
    provenance,
    published,
    upstream,
    with_file,
    without_file,
)
from tests.support.watch import candidate, skip

SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")


def sharded() -> Upstream:
    files = [file for file in upstream().files if file.path != "model.safetensors"]
    index = hub_file("model.safetensors.index.json")
    return upstream(files=(*files, index, *(hub_file(shard) for shard in SHARDS)))


# --- refusals that need no look into the files ---------------------------------------------------------------


def test_an_entry_on_hold_says_why() -> None:
    found = hold_skip(entry(hold="waiting for v2"))
    assert (found.reason, found.blocked, found.exit_code) == ("on hold: waiting for v2", True, 0)


@pytest.mark.parametrize(
    ("source", "target", "reason", "error"),
    [
        (upstream(problem="missing: no such repo"), absent(), "missing: no such repo", UpstreamError),
        (upstream(problem="gated: our token has no access"), published(), "gated", UpstreamError),
        (
            upstream(),
            absent(state=TargetState.UNREADABLE, problem="the target answers 403"),
            "the target answers 403",
            PublishError,
        ),
        (upstream(), absent(state=TargetState.FOREIGN), "quantized/Tiny-awq was not published", PublishError),
        (
            upstream(),
            published(provenance(entry(), upstream(repo_id="lab/Other"))),
            "quantized/Tiny-awq was made from lab/Other, not from lab/Tiny",
            PublishError,
        ),
    ],
)
def test_a_repo_that_cannot_be_read_or_is_not_ours_is_refused(
    source: Upstream, target: Published, reason: str, error: type[PublishError]
) -> None:
    found = skip(triage(entry(), source, target))
    assert found.reason.startswith(reason)
    assert found.exit_code == error.exit_code
    assert found.blocked
    assert found.hint


@pytest.mark.parametrize(
    ("stated", "licenses", "refusal"),
    [
        ({"license": "apache-2.0"}, Licenses(), None),
        ({"license": "other", "license_name": "qwen"}, Licenses(), None),
        ({"license": None}, Licenses(), "no licence: the repo does not state one"),
        ({"license": "unknown"}, Licenses(), "no licence: the repo does not state one"),
        ({"license": None}, Licenses(allow=("mit",)), "no licence: the repo does not state one"),
        ({"license": None}, Licenses(allow=("unknown",)), None),
        ({"license": "unknown"}, Licenses(allow=("mit", "unknown")), None),
        ({"license": "mit"}, Licenses(allow=("unknown",)), "licence refused: mit is not allowed"),
        ({"license": "MIT"}, Licenses(allow=("mit",)), None),
        ({"license": "gemma"}, Licenses(allow=("mit", "apache-2.0")), "licence refused: gemma is not allowed"),
        ({"license": "other"}, Licenses(deny=("other",)), "licence refused: other is denied"),
        (
            {"license": "other", "license_name": "Qwen"},
            Licenses(deny=("other",)),
            "licence refused: other / qwen is denied",
        ),
        ({"license": "other", "license_name": "qwen"}, Licenses(allow=("qwen",)), None),
        ({"license": None, "license_name": "qwen"}, Licenses(allow=("qwen",)), None),
        (
            {"license": "other", "license_name": "qwen"},
            Licenses(deny=("qwen",)),
            "licence refused: other / qwen is denied",
        ),
        ({"license": "mit"}, Licenses(allow=("mit",), deny=("mit",)), "licence refused: mit is denied"),
        (
            {"license": "cc-by-nc-4.0", "license_name": "apache-2.0"},
            Licenses(allow=("apache-2.0",)),
            "licence refused: apache-2.0 / cc-by-nc-4.0 is not allowed",
        ),
        (
            {"license": "apache-2.0", "license_name": "cc-by-nc-4.0"},
            Licenses(deny=("cc-by-nc-4.0",)),
            "licence refused: apache-2.0 / cc-by-nc-4.0 is denied",
        ),
    ],
)
def test_a_licence_is_checked_before_anything_is_downloaded(
    stated: dict[str, str | None], licenses: Licenses, refusal: str | None
) -> None:
    found = triage(entry(licenses=licenses), upstream(**stated), absent())
    if refusal is None:
        assert isinstance(found, Candidate)
    else:
        assert (skip(found).reason, skip(found).exit_code) == (refusal, UpstreamError.exit_code)
        assert "licenses" in skip(found).hint


def test_a_licence_that_became_a_refused_one_is_not_refreshed() -> None:
    asked = entry(licenses=Licenses(deny=("other",)))
    assert skip(triage(asked, upstream(license="other"), published())).reason == "licence refused: other is denied"


@pytest.mark.parametrize(
    ("asked", "source"),
    [(entry(private=True), upstream()), (entry(), upstream(private=True))],
    ids=["entry", "source"],
)
def test_a_public_target_that_should_be_private_is_no_success(asked: WatchEntry, source: Upstream) -> None:
    found = skip(triage(asked, source, published(private=False)))
    assert found.reason == "quantized/Tiny-awq is public, and should be private"
    assert (found.exit_code, found.blocked) == (PublishError.exit_code, True)
    assert "`awq-bot create-target quantized/Tiny-awq`" in found.hint
    assert skip(triage(asked, source, published(private=True))).reason == "up to date"
    assert skip(triage(entry(), upstream(), published(private=False))).reason == "up to date"


def test_a_release_closes_a_target_itself() -> None:
    newer = with_file(upstream(), "model.safetensors", "newer")
    assert isinstance(triage(entry(private=True), newer, published(private=False)), Candidate)


# --- refusals after a look into the files --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "found", "reason"),
    [
        (without_file(upstream(), "config.json"), details(), "no config.json upstream"),
        (upstream(), details(problem="gated: access to the weights was refused"), "gated: access to the weights"),
        (
            without_file(sharded(), SHARDS[1]),
            details(weight_files=SHARDS),
            f"upload incomplete: {SHARDS[1]} is listed in the index but missing",
        ),
        (without_file(upstream(), "model.safetensors"), details(weight_files=()), "no weights upstream"),
        (without_file(upstream(), "tokenizer.json"), details(), "upload incomplete: no tokenizer"),
        (
            with_file(without_file(upstream(), "model.safetensors"), "pytorch_model.bin", "pickle"),
            details(weight_files=()),
            "pickle-only weights, no safetensors",
        ),
        (
            with_file(without_file(upstream(), "model.safetensors"), "consolidated.safetensors", "x"),
            details(weight_files=()),
            "no model.safetensors and no index of shards, only consolidated.safetensors",
        ),
    ],
)
def test_an_upload_that_cannot_be_used_is_refused_with_its_reason(
    source: Upstream, found: Details, reason: str
) -> None:
    refusal = skip(decide(candidate(triage(entry(), source, absent())), found))
    assert refusal.reason.startswith(reason)
    assert (refusal.exit_code, refusal.blocked) == (UpstreamError.exit_code, True)
    assert refusal.hint


@pytest.mark.parametrize("name", ["LICENSE..\\..\\evil", "LICENSE:stream", "vocab.\x1b[31m", "LICENSE\n.txt"])
def test_a_file_name_that_could_leave_its_folder_is_refused(name: str) -> None:
    source = with_file(upstream(), name, "x")
    refusal = skip(decide(candidate(triage(entry(), source, absent())), details()))
    assert refusal.reason == f"unsafe file name upstream: {name!r}"
    assert "\x1b" not in refusal.reason
    if name.startswith("LICENSE"):
        assert skip(triage(entry(), source, published())).reason == refusal.reason


def test_strange_names_of_files_that_are_not_fetched_do_no_harm() -> None:
    source = with_file(upstream(), "figures/a:b.png", "x")
    assert isinstance(decide(candidate(triage(entry(), source, absent())), details()), Job)


def test_an_unsupported_model_is_refused_before_any_download() -> None:
    found = details(config=CONFIG | {"model_type": "no-such-type"})
    refusal = skip(decide(candidate(triage(entry(), upstream(), absent())), found))
    assert refusal.reason.startswith("unsupported: ")
    assert "no-such-type" in refusal.reason
    assert refusal.exit_code == UnsupportedModelError.exit_code


def test_a_model_that_no_runner_can_hold_is_refused_with_what_it_needs() -> None:
    asked = entry(calibration=Calibration(samples=4096, seq_len=32_768), recipe=Recipe(method="awq"))
    refusal = skip(decide(candidate(triage(asked, upstream(), absent())), details()))
    assert refusal.reason.startswith("too large for any runner: needs about ")
    assert refusal.exit_code == UnsupportedModelError.exit_code
    assert "samples" in refusal.hint


def test_a_target_that_cannot_be_created_is_refused_before_a_gpu_is_needed() -> None:
    refusal = skip(triage(entry(), upstream(), absent(), must_exist=True))
    assert refusal.exit_code == PublishError.exit_code
    assert "HF_TOKEN cannot read it" in refusal.reason
    assert refusal.hint == "Run `awq-bot create-target quantized/Tiny-awq` first."
    assert isinstance(triage(entry(), upstream(), absent()), Candidate)
    empty = absent(state=TargetState.EMPTY)
    assert isinstance(triage(entry(), upstream(), empty, must_exist=True), Candidate)


def test_other_refusals_come_before_a_missing_target() -> None:
    unlicensed = upstream(license=None)
    assert "no licence: the repo" in skip(triage(entry(), unlicensed, absent(), must_exist=True)).reason
