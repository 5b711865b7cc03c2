"""What is upstream and cannot be taken: the plan refuses it, with the reason.

Each ends with its exit code, one error line, a hint, and nothing half-published. Once the cause is fixed, the next
run goes on.
"""

from __future__ import annotations

import json

import pytest
from safetensors.numpy import save

from bot.hub.sources import read_sources
from bot.localhub.store import Content
from bot.records import to_json
from bot.watch import watchlist as watchlists
from tests.support import factories
from tests.support.repos import as_bot, requests
from tests.support.sandbox import Sandbox
from tests.support.small_sandbox import (
    CARD,
    CONFIG,
    SOURCE,
    TARGET,
    WEIGHTS,
    assert_planned,
    assert_refused,
    edit_watchlist,
    small_model,
    small_weights,
    write_watchlist,
)


def test_a_missing_repo_is_refused_until_it_exists(sandbox: Sandbox) -> None:
    assert_refused(sandbox, 3, "missing: no such repo", f"Look at {SOURCE} on the Hub")
    sandbox.hub.seed(SOURCE, small_model())
    assert_planned(sandbox)


def test_a_gated_repo_is_refused_until_access_is_granted(sandbox: Sandbox) -> None:
    sandbox.hub.seed(SOURCE, small_model(), gated="manual")
    assert_refused(sandbox, 3, "gated", "ask for it on the model's page")
    sandbox.hub.grant_access(SOURCE, "bot")
    assert_planned(sandbox)


def test_truncated_weights_are_refused_before_they_are_downloaded(sandbox: Sandbox) -> None:
    whole = save(small_weights())
    sandbox.hub.seed(SOURCE, small_model(model__safetensors=whole[:-100]))
    assert_refused(sandbox, 3, WEIGHTS, "ends at byte", f"Look at {SOURCE} on the Hub")
    assert not requests(sandbox.hub, "HEAD", WEIGHTS)
    sandbox.hub.seed(SOURCE, {WEIGHTS: whole})
    assert_planned(sandbox)


def test_a_missing_shard_is_refused_until_it_is_uploaded(sandbox: Sandbox) -> None:
    weights = small_weights()
    names = sorted(weights)
    shards = {"a.safetensors": names[:5], "b.safetensors": names[5:]}
    files = {shard: save({name: weights[name] for name in inside}) for shard, inside in shards.items()}
    weight_map = {name: shard for shard, inside in shards.items() for name in inside}
    index = json.dumps({"metadata": {}, "weight_map": weight_map})
    repo = {path: content for path, content in small_model().items() if path != WEIGHTS}
    repo["model.safetensors.index.json"], repo["a.safetensors"] = index, files["a.safetensors"]
    sandbox.hub.seed(SOURCE, repo)
    assert_refused(sandbox, 3, "upload incomplete: b.safetensors", "The next run checks it again.")
    sandbox.hub.seed(SOURCE, {"b.safetensors": files["b.safetensors"]})
    assert_planned(sandbox)


@pytest.mark.parametrize(
    ("config", "code", "word"),
    [
        (json.dumps({key: value for key, value in CONFIG.items() if key != "model_type"}), 4, "no model_type"),
        (json.dumps([CONFIG]), 3, "config.json: not a JSON object"),
        ("{", 3, "config.json: not valid JSON"),
        (json.dumps(CONFIG | {"quantization_config": {"quant_method": "gptq"}}), 4, "quantized already (gptq)"),
    ],
    ids=["without model_type", "a list", "not JSON", "quantized already"],
)
def test_an_unusable_config_is_refused(sandbox: Sandbox, config: str, code: int, word: str) -> None:
    sandbox.hub.seed(SOURCE, small_model(config__json=config))
    assert_refused(sandbox, code, word)
    sandbox.hub.seed(SOURCE, {"config.json": json.dumps(CONFIG)})
    assert_planned(sandbox)


def test_shapes_that_the_group_size_does_not_divide_are_refused(sandbox: Sandbox) -> None:
    config = CONFIG | {"hidden_size": 96}
    weights = save(small_weights(config))
    sandbox.hub.seed(SOURCE, small_model(config__json=json.dumps(config), model__safetensors=weights))
    assert_refused(sandbox, 4, "96 input channels are not a multiple of the group size 128", "Put it on `hold:`")
    edit_watchlist(sandbox, "defaults: {", "defaults: {recipe: {group_size: 32}, ")
    assert_planned(sandbox)


def test_pickles_are_refused_unread(sandbox: Sandbox) -> None:
    pickles = {path: content for path, content in small_model().items() if path != WEIGHTS}
    sandbox.hub.seed(SOURCE, pickles | {"pytorch_model.bin": b"cos\nsystem\n(S'true'\ntR."})
    assert_refused(sandbox, 3, "pickle-only", "Convert them to safetensors upstream")
    assert not requests(sandbox.hub, "GET", "pytorch_model.bin")
    sandbox.hub.seed(SOURCE, {WEIGHTS: save(small_weights())})
    assert_planned(sandbox)


def test_a_repo_without_a_licence_is_refused(sandbox: Sandbox) -> None:
    sandbox.hub.seed(SOURCE, small_model(README__md="# A small model\n"))
    assert_refused(sandbox, 3, "no licence: the repo", "`licenses: {allow: [unknown]}` to this entry")
    sandbox.hub.seed(SOURCE, {"README.md": CARD})
    assert_planned(sandbox)


def test_a_denied_licence_is_not_published(sandbox: Sandbox) -> None:
    sandbox.hub.seed(SOURCE, small_model())
    was = edit_watchlist(sandbox, "defaults: {", "defaults: {licenses: {deny: [mit]}, ")
    assert_refused(sandbox, 3, "licence refused: mit is denied", "Remove it from `licenses: deny`")
    write_watchlist(sandbox, was)
    assert_planned(sandbox)


def test_a_target_with_other_content_is_refused(sandbox: Sandbox) -> None:
    sandbox.hub.seed(SOURCE, small_model())
    theirs = sandbox.hub.seed(TARGET, {"README.md": "mine", "weights.bin": b"mine"}, private=True)
    assert_refused(sandbox, 7, f"{TARGET} was not published by awq-bot", "Choose another `target`")
    assert sandbox.hub.refs(TARGET)["refs/heads/main"] == theirs
    edit_watchlist(sandbox, "- lab/small", "- {repo_id: lab/small, target: quantized/other-awq}")
    assert_planned(sandbox)


def test_a_thousand_entries_are_answered_in_two_requests_each(sandbox: Sandbox) -> None:
    names = [f"lab/model-{number}" for number in range(1000)]
    write_watchlist(sandbox, "publish_to: quantized\nmodels:\n" + "".join(f"  - {name}\n" for name in names))
    there = watchlists.load(sandbox.root / "watchlist.yaml")[::50]
    few: dict[str, Content] = {"README.md": CARD, "config.json": json.dumps(CONFIG), WEIGHTS: b"weights"}
    for entry in there:
        sandbox.hub.seed(entry.repo_id, few)
    for entry, source in zip(there, read_sources(as_bot(sandbox.hub), there), strict=True):
        made = factories.provenance(entry, source)
        sha = sandbox.hub.seed(entry.target, {"provenance.json": to_json(made)})
        sandbox.hub.repo(entry.target).create_ref(f"refs/tags/{made.tag}", sha)
    sandbox.hub.clear_requests()
    plan = sandbox.plan()
    reasons = [skip["reason"] for skip in plan["skipped"]]
    assert (plan["jobs"], len(reasons)) == ([], 1000)
    assert reasons.count("up to date") == len(there)
    assert sum(reason.startswith("missing") for reason in reasons) == 1000 - len(there)
    asked = [request for request in sandbox.hub.requests if "lab/" in request.path or "quantized/" in request.path]
    assert {request.method for request in asked} == {"GET"}
    # One more for the provenance of what is there.
    assert len(asked) == 2 * 1000 + len(there)
