"""Why nothing is done, with the reason and the exit code."""

from __future__ import annotations

from dataclasses import replace

import pytest

from bot.errors import BotError, PublishError, UnsupportedModelError, UpstreamError, WatchlistError
from bot.records import (
    Calibration,
    Details,
    Job,
    Licenses,
    Published,
    Recipe,
    Skip,
    TargetState,
    Upstream,
    WatchEntry,
)
from bot.watch.release import Candidate, hold_skip, triage
from tests.support.factories import (
    CONFIG,
    absent,
    details,
    entry,
    provenance,
    published,
    upstream,
    with_file,
    without_file,
)
from tests.support.watch import SHARDS, decided, sharded, skip


def assert_refused(found: object, reason: str, error: type[BotError]) -> Skip:
    """reason: how it begins."""
    assert isinstance(found, Skip)
    assert found.reason.startswith(reason)
    assert (found.exit_code, found.blocked) == (error.exit_code, True)
    assert found.hint
    return found


# --- refusals that need no look into the files ---------------------------------------------------------------


def test_an_entry_on_hold_says_why() -> None:
    found = hold_skip(entry(hold="waiting for v2"))
    assert (found.reason, found.blocked, found.exit_code) == ("on hold: waiting for v2", True, 0)


FOREIGN = absent(state=TargetState.FOREIGN)
FORBIDDEN = absent(state=TargetState.UNREADABLE, problem="the target answers 403")
OTHERS = published(provenance(entry(), upstream(repo_id="lab/Other")))


@pytest.mark.parametrize(
    ("source", "target", "reason", "error"),
    [
        (upstream(problem="missing: no such repo"), absent(), "missing: no such repo", UpstreamError),
        (upstream(problem="gated: our token has no access"), published(), "gated", UpstreamError),
        (upstream(), FORBIDDEN, "the target answers 403", PublishError),
        (upstream(), FOREIGN, "quantized/Tiny-awq was not published by awq-bot", PublishError),
        (upstream(), OTHERS, "quantized/Tiny-awq was made from lab/Other, not from lab/Tiny", PublishError),
    ],
)
def test_a_repo_that_cannot_be_read_or_is_not_ours_is_refused(
    source: Upstream, target: Published, reason: str, error: type[BotError]
) -> None:
    assert_refused(triage(entry(), source, target), reason, error)


QWEN = {"license": "other", "license_name": "qwen"}
NAMED_APACHE = {"license": "cc-by-nc-4.0", "license_name": "apache-2.0"}
NAMED_CC = {"license": "apache-2.0", "license_name": "cc-by-nc-4.0"}


@pytest.mark.parametrize(
    ("stated", "licenses", "refusal"),
    [
        ({"license": "apache-2.0"}, Licenses(), None),
        (QWEN, Licenses(), None),
        ({"license": None}, Licenses(), "no licence: the repo does not state one"),
        ({"license": "unknown"}, Licenses(), "no licence: the repo does not state one"),
        ({"license": None}, Licenses(allow=("mit",)), "no licence: the repo does not state one"),
        ({"license": None}, Licenses(allow=("unknown",)), None),
        ({"license": "unknown"}, Licenses(allow=("mit", "unknown")), None),
        ({"license": "mit"}, Licenses(allow=("unknown",)), "licence refused: mit is not allowed"),
        ({"license": "MIT"}, Licenses(allow=("mit",)), None),
        ({"license": "gemma"}, Licenses(allow=("mit", "apache-2.0")), "licence refused: gemma is not allowed"),
        ({"license": "other"}, Licenses(deny=("other",)), "licence refused: other is denied"),
        (QWEN | {"license_name": "Qwen"}, Licenses(deny=("other",)), "licence refused: other / qwen is denied"),
        (QWEN, Licenses(allow=("qwen",)), None),
        ({"license": None, "license_name": "qwen"}, Licenses(allow=("qwen",)), None),
        (QWEN, Licenses(deny=("qwen",)), "licence refused: other / qwen is denied"),
        ({"license": "mit"}, Licenses(allow=("mit",), deny=("mit",)), "licence refused: mit is denied"),
        (
            NAMED_APACHE,
            Licenses(allow=("apache-2.0",)),
            "licence refused: apache-2.0 / cc-by-nc-4.0 is not allowed",
        ),
        (NAMED_CC, Licenses(deny=("cc-by-nc-4.0",)), "licence refused: apache-2.0 / cc-by-nc-4.0 is denied"),
    ],
)
def test_a_licence_is_checked_before_anything_is_downloaded(
    stated: dict[str, str | None], licenses: Licenses, refusal: str | None
) -> None:
    found = triage(entry(licenses=licenses), upstream(**stated), absent())
    if refusal is None:
        assert isinstance(found, Candidate)
    else:
        refused = assert_refused(found, refusal, UpstreamError)
        assert refused.reason == refusal
        assert "licenses" in refused.hint


@pytest.mark.parametrize(
    ("stated", "licenses", "refusal", "hint"),
    [
        (("mit", "apache-2.0"), Licenses(), None, ""),
        (("MIT", "Apache-2.0"), Licenses(allow=("mit", "apache-2.0", "gemma")), None, ""),
        (("mit", "gemma"), Licenses(allow=("mit",)), "licence refused: gemma is not allowed", "[mit, gemma]"),
        (("gemma", "mit"), Licenses(deny=("mit",)), "licence refused: mit is denied", "deny"),
        (
            ("gemma", "mit"),
            Licenses(allow=("gemma",), deny=("gemma",)),
            "licence refused: gemma is denied",
            "deny",
        ),
        (("mit", "unknown"), Licenses(), "no licence: the repo does not state one", "[mit, unknown]"),
        (
            ("mit", "My: licence"),
            Licenses(allow=("mit",)),
            "licence refused: my: licence is not allowed",
            '"my: l',
        ),
    ],
)
def test_every_licence_of_several_has_to_be_allowed(
    stated: tuple[str, ...], licenses: Licenses, refusal: str | None, hint: str
) -> None:
    found = triage(entry(licenses=licenses), upstream(licenses=stated), absent())
    if refusal is None:
        assert isinstance(found, Candidate)
    else:
        refused = assert_refused(found, refusal, UpstreamError)
        assert refused.reason == refusal
        assert hint in refused.hint


@pytest.mark.parametrize("source", [upstream(license_link="javascript:x\x1b"), upstream(license_link="MISSING")])
def test_a_licence_link_that_leads_nowhere_is_told_in_the_plan(source: Upstream) -> None:
    for found in (decided(source=source), triage(entry(), source, published())):
        assert isinstance(found, Job)
        assert [warning for warning in found.warnings if warning.startswith("license_link ")]
        assert all(warning.isprintable() for warning in found.warnings)
    fine = upstream(license_link="LICENSE", license_file="LICENSE", license_url="http://hub.test/LICENSE")
    kept = decided(source=fine)
    assert isinstance(kept, Job)
    assert kept.warnings == ()


def test_code_that_is_not_carried_is_told_in_the_plan() -> None:
    source = with_file(upstream(), "modeling_x\x1b.py", "x")
    found, trusting = decided(source=source), decided(entry(trust_remote_code=True), source)
    assert isinstance(found, Job)
    assert found.warnings == (
        "its Python files are not carried, and no `auto_map` will refer to them (modeling_x.py)",
    )
    assert not isinstance(trusting, Job) or trusting.warnings == ()


def test_a_licence_that_became_a_refused_one_is_not_refreshed() -> None:
    asked = entry(licenses=Licenses(deny=("other",)))
    assert skip(triage(asked, upstream(license="other"), published())).reason == "licence refused: other is denied"


@pytest.mark.parametrize(
    ("asked", "source"),
    [(entry(private=True), upstream()), (entry(), upstream(private=True))],
    ids=["entry", "source"],
)
def test_a_public_target_that_should_be_private_is_no_success(asked: WatchEntry, source: Upstream) -> None:
    found = triage(asked, source, published(private=False))
    refused = assert_refused(found, "quantized/Tiny-awq is public, and should be private", PublishError)
    assert "`awq-bot create-target quantized/Tiny-awq`" in refused.hint
    assert skip(triage(asked, source, published(private=True))).reason == "up to date"
    assert skip(triage(entry(), upstream(), published(private=False))).reason == "up to date"


def test_a_release_closes_a_target_itself() -> None:
    newer = with_file(upstream(), "model.safetensors", "newer")
    assert isinstance(triage(entry(private=True), newer, published(private=False)), Candidate)


# --- refusals after a look into the files --------------------------------------------------------------------


WEIGHTLESS = without_file(upstream(), "model.safetensors")
MISSING_SHARD = without_file(sharded(), SHARDS[1])
REFUSED_READ = details(problem="gated: access to the weights was refused")
NO_WEIGHTS, BOTH_SHARDS = details(weight_files=()), details(weight_files=SHARDS)
PICKLE = with_file(WEIGHTLESS, "pytorch_model.bin", "pickle")
CONSOLIDATED = with_file(WEIGHTLESS, "consolidated.safetensors", "x")
NO_INDEX = "no model.safetensors and no index of shards, only consolidated.safetensors"


@pytest.mark.parametrize(
    ("source", "found", "reason"),
    [
        (without_file(upstream(), "config.json"), details(), "no config.json upstream"),
        (upstream(), REFUSED_READ, "gated: access to the weights"),
        (MISSING_SHARD, BOTH_SHARDS, f"upload incomplete: {SHARDS[1]} is listed in the index but missing"),
        (WEIGHTLESS, NO_WEIGHTS, "no weights upstream"),
        (without_file(upstream(), "tokenizer.json"), details(), "upload incomplete: no tokenizer"),
        (PICKLE, NO_WEIGHTS, "pickle-only weights, no safetensors"),
        (CONSOLIDATED, NO_WEIGHTS, NO_INDEX),
    ],
)
def test_an_upload_that_cannot_be_used_is_refused_with_its_reason(
    source: Upstream, found: Details, reason: str
) -> None:
    assert_refused(decided(source=source, found=found), reason, UpstreamError)


def test_a_model_that_is_quantized_already_is_refused_before_its_weights_are_looked_at() -> None:
    quantized = details(config=CONFIG | {"quantization_config": {"quant_method": "gptq"}}, weight_files=())
    refused = assert_refused(decided(found=quantized), "unsupported: it is quantized", UnsupportedModelError)
    assert refused.reason == "unsupported: it is quantized already (gptq)"


@pytest.mark.parametrize(
    ("file", "kind", "hint"),
    [
        ("adapter_config.json", "it is a LoRA adapter (PEFT)", "Merge it into its base model"),
        ("model_index.json", "it is a pipeline of diffusers", "hold"),
        ("Q4/tiny-Q4_K_M.gguf", "it has only GGUF files", "Watch the repo that they were made from"),
        ("onnx/model.onnx", "it has only ONNX files", "Watch the repo"),
        ("tf_model.h5", "it has only weights of TensorFlow", "Convert them"),
        ("config_sentence_transformers.json", "it is a model of sentence-transformers", "hold"),
    ],
)
def test_what_is_no_model_is_called_what_it_is(file: str, kind: str, hint: str) -> None:
    for source in (
        with_file(WEIGHTLESS, file, "x"),
        without_file(with_file(WEIGHTLESS, file, "x"), "config.json"),
    ):
        found = decided(source=source, found=NO_WEIGHTS)
        assert hint in assert_refused(found, f"unsupported: {kind}", UnsupportedModelError).hint
    assert isinstance(decided(source=with_file(upstream(), file, "x")), Job)


def test_a_config_that_no_model_can_have_is_refused_by_its_key() -> None:
    found = decided(found=details(config=CONFIG | {"num_hidden_layers": 10**9}))
    reason = "unsupported: config.json: num_hidden_layers is 1000000000, and the weights hold 24 tensors"
    assert assert_refused(found, reason, UnsupportedModelError).hint.startswith("config.json is wrong")


@pytest.mark.parametrize("name", ["LICENSE\\..\\evil.txt", "LICENSE:stream", "vocab.\x1b[31m", "LICENSE\n.txt"])
def test_a_file_name_that_could_leave_its_folder_is_refused(name: str) -> None:
    source = with_file(upstream(), name, "x")
    refusal = skip(decided(source=source))
    assert refusal.reason == f"unsafe file name upstream: {name!r}"
    assert "\x1b" not in refusal.reason
    if name.startswith("LICENSE"):
        assert skip(triage(entry(), source, published())).reason == refusal.reason


def test_unsafe_names_of_files_that_are_not_fetched_do_no_harm() -> None:
    assert isinstance(decided(source=with_file(upstream(), "figures/a:b.png", "x")), Job)


def test_an_unsupported_model_is_refused_before_any_download() -> None:
    found = decided(found=details(config=CONFIG | {"model_type": "no-such-type"}))
    assert "no-such-type" in assert_refused(found, "unsupported: ", UnsupportedModelError).reason


def test_a_model_that_no_runner_can_hold_is_refused_with_what_it_needs() -> None:
    asked = entry(calibration=Calibration(samples=4096, seq_len=32_768), recipe=Recipe(method="awq"))
    refused = assert_refused(decided(asked), "too large for any runner: needs about ", UnsupportedModelError)
    assert "samples" in refused.hint


def test_a_target_that_cannot_be_created_is_refused_before_a_gpu_is_needed() -> None:
    refused = skip(triage(entry(), upstream(), absent(), must_exist=True))
    assert refused.exit_code == PublishError.exit_code
    assert "HF_TOKEN cannot read it" in refused.reason
    assert refused.hint == "Run `awq-bot create-target quantized/Tiny-awq` first."
    assert isinstance(triage(entry(), upstream(), absent()), Candidate)
    empty = absent(state=TargetState.EMPTY)
    assert isinstance(triage(entry(), upstream(), empty, must_exist=True), Candidate)
    # Other refusals come first.
    unlicensed = triage(entry(), upstream(license=None), absent(), must_exist=True)
    assert "no licence" in skip(unlicensed).reason


def test_small_files_that_readers_cannot_read_are_refused() -> None:
    found = decided(found=replace(details(), small_files={"generation_config.json": b"{"}))
    assert_refused(found, "generation_config.json: not valid JSON", UpstreamError)


def test_blocks_of_calibration_have_to_fit_into_the_model() -> None:
    asked = entry().calibration.seq_len
    short = details(config=CONFIG | {"max_position_embeddings": asked - 1})
    reason = f"calibration.seq_len is {asked}, and the model reads {asked - 1} tokens at once"
    assert f"seq_len: {asked - 1}" in assert_refused(decided(found=short), reason, WatchlistError).hint
    assert isinstance(decided(found=details(config=CONFIG | {"max_position_embeddings": asked})), Job)
