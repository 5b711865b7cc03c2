"""What is upstream and cannot be used: the plan refuses it with the reason, until it is corrected."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

from safetensors.numpy import save

from bot.hub.sources import read_sources
from bot.localhub import LocalHub
from bot.localhub.store import Content
from bot.records import to_json
from bot.watch import watchlist as watchlists
from tests.support import factories
from tests.support.repos import as_bot
from tests.support.sandbox import Sandbox, SandboxBefore
from tests.support.small_sandbox import (
    CARD,
    CONFIG,
    SOURCE,
    WEIGHTS,
    assert_nothing_published,
    assert_published,
    run_during_pull,
    small_model,
    small_weights,
    write_watchlist,
)
from tests.support.watch import BUILTIN_TEXT

TARGET = "quantized/taken-awq"
WHOLE = save(small_weights())
NARROW = CONFIG | {"hidden_size": 96}
PICKLES = {"pytorch_model.bin": b"cos\nsystem\n(S'true'\ntR."}
# A model's name -> its files, and the exit code, reason and hint of its refusal.
UNUSABLE: dict[str, tuple[dict[str, Content], int, str, str]] = {
    "truncated": (small_model(model__safetensors=WHOLE[:-100]), 3, "ends at byte", "Look at lab/truncated"),
    "list": (small_model(config__json="[]"), 3, "config.json: not a JSON object", "Look at lab/list"),
    "damaged": (small_model(config__json="{"), 3, "config.json: not valid JSON", "Look at lab/damaged"),
    "untyped": (small_model(config__json="{}"), 4, "no model_type", ""),
    "quantized": (
        small_model(config__json=json.dumps(CONFIG | {"quantization_config": {"quant_method": "gptq"}})),
        4,
        "quantized already (gptq)",
        "",
    ),
    "narrow": (
        small_model(config__json=json.dumps(NARROW), model__safetensors=save(small_weights(NARROW))),
        4,
        "96 input channels are not a multiple of the group size 128",
        "Use `group_size: 32`",
    ),
    "pickled": (
        {path: content for path, content in small_model().items() if path != WEIGHTS} | PICKLES,
        3,
        "pickle-only",
        "Convert them to safetensors upstream",
    ),
    "unlicensed": (small_model(README__md="# A model\n"), 3, "no licence", "`licenses: {allow: [unknown]}`"),
}


def test_models_that_cannot_be_used_are_refused_with_their_reasons_until_they_are_corrected(
    hub: LocalHub, tmp_path: Path
) -> None:
    for name, (files, *_) in UNUSABLE.items():
        hub.seed(f"lab/{name}", files)
    hub.seed("lab/gated", small_model(), gated="manual")
    hub.seed("lab/taken", small_model())
    theirs = hub.seed(TARGET, {"README.md": "mine", "weights.bin": b"mine"}, private=True)
    expected = {f"lab/{name}": said for name, (_, *said) in UNUSABLE.items()} | {
        "lab/gated": [3, "gated: access to the weights was refused; ask for it", "Look at lab/gated"],
        "lab/taken": [7, f"{TARGET} was not published by awq-bot", "Choose another `target`"],
        "lab/missing": [3, "missing: no such repo", "Look at lab/missing"],
    }
    sandbox = Sandbox(hub, tmp_path)
    models = "".join(f"  - {repo_id}\n" for repo_id in expected)
    write_watchlist(sandbox, f"publish_to: quantized\n{BUILTIN_TEXT}models:\n{models}")
    hub.clear_requests()

    result = sandbox.call("run")
    assert result.returncode in (3, 4, 7)
    assert "Traceback" not in result.stderr
    assert "nothing to do" in result.stdout
    assert_nothing_published(sandbox)
    assert not [item for item in hub.requests if item.method == "HEAD" or "pytorch_model.bin" in item.path]
    assert hub.refs(TARGET)["refs/heads/main"] == theirs
    skipped = {skip["entry"]["repo_id"]: skip for skip in sandbox.plan()["skipped"]}
    assert skipped.keys() == expected.keys()
    for repo_id, (code, reason, hint) in expected.items():
        skip = skipped[repo_id]
        assert (skip["exit_code"], reason in skip["reason"], hint in skip["hint"]) == (code, True, True), skip

    for name in (*UNUSABLE, "missing"):
        hub.seed(f"lab/{name}", small_model())
    hub.grant_access("lab/gated", "bot")
    hub.store.delete(hub.repo(TARGET))
    assert {job["entry"]["repo_id"] for job in sandbox.plan()["jobs"]} == expected.keys()


def test_the_planned_commit_is_published_although_upstream_changed(sandbox_before: SandboxBefore) -> None:
    sandbox = sandbox_before("pull")
    planned = sandbox.hub.refs(SOURCE)["refs/heads/main"]
    newer = save({name: 2 * tensor for name, tensor in small_weights().items()})
    result = run_during_pull(sandbox, lambda: sandbox.hub.seed(SOURCE, {WEIGHTS: newer}))
    assert assert_published(sandbox, result)["source"]["sha"] == planned
    [job] = sandbox.plan()["jobs"]
    assert job["reason"] == f"upstream changed: {WEIGHTS}"


def test_a_long_watchlist_is_answered_in_two_requests_per_entry(hub: LocalHub, tmp_path: Path) -> None:
    sandbox, count = Sandbox(hub, tmp_path), 300
    names = "".join(f"  - lab/model-{number}\n" for number in range(count))
    write_watchlist(sandbox, f"publish_to: quantized\nmodels:\n{names}")
    there = watchlists.load(tmp_path / "watchlist.yaml")[::20]
    for entry in there:
        hub.seed(entry.repo_id, {"README.md": CARD, "config.json": json.dumps(CONFIG), WEIGHTS: b"weights"})
    for entry, source in zip(there, read_sources(as_bot(hub), there), strict=True):
        made = factories.provenance(entry, source)
        sha = hub.seed(entry.target, {"provenance.json": to_json(made)})
        hub.repo(entry.target).create_ref(f"refs/tags/{made.tag}", sha)
    hub.clear_requests()
    plan = sandbox.plan()
    reasons = [skip["reason"].partition(":")[0] for skip in plan["skipped"]]
    assert plan["jobs"] == []
    assert Counter(reasons) == {"up to date": len(there), "missing": count - len(there)}
    asked = [request for request in hub.requests if "lab/" in request.path or "quantized/" in request.path]
    assert {request.method for request in asked} == {"GET"}
    # One more for the provenance of what is there.
    assert len(asked) == 2 * count + len(there)
