"""The plan asks transformers about models, and the Hub for the data sets of what it would quantize."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bot.github.attempts import needs_person
from bot.hub import session
from bot.jobs import pipeline, worker
from bot.localhub import Fault, LocalHub
from bot.records import Calibration, Evaluation, EvaluationTask, Plan, TextSource, WatchEntry, to_json
from tests.support import factories
from tests.support.repos import as_bot, forget_requests, release_job, requests, source_files
from tests.support.workspace import WEIGHTS

ROWS = json.dumps({"text": "a row"}) + "\n"
SPLITS = {"data/train-00000-of-00001.jsonl": ROWS, "data/test-00000-of-00001.jsonl": ROWS}


def entry(name: str, *sources: TextSource) -> WatchEntry:
    calibration = Calibration(samples=16, seq_len=256, sources=sources)
    return factories.entry(repo_id=f"lab/{name}", target=f"quantized/{name}-awq", calibration=calibration)


def plan(hub: LocalHub, entries: Sequence[WatchEntry]) -> Plan:
    for item in entries:
        if not hub.store.exists(item.repo_id):
            hub.seed(item.repo_id, source_files(model__safetensors=WEIGHTS))
    forget_requests(hub)
    return pipeline.plan(as_bot(hub), entries)


@pytest.fixture
def texts(hub: LocalHub) -> TextSource:
    """The training split of a data set on the Hub."""
    sha = hub.seed("lab/texts", dict(SPLITS), repo_type="dataset")
    return TextSource(dataset="lab/texts", revision=sha, split="train", column="text")


def test_each_data_set_is_asked_for_once(hub: LocalHub, texts: TextSource) -> None:
    test_split = TextSource(dataset=texts.dataset, revision=texts.revision, split="test", column="text")
    asked = [entry("a", texts), entry("b", texts, test_split), entry("c", TextSource(builtin="stdlib"))]
    assert len(plan(hub, asked).jobs) == 3
    [request] = requests(hub, "GET", "datasets/")
    assert request.path == f"/api/datasets/lab/texts/revision/{texts.revision}"
    assert not requests(hub, "HEAD", "")


def test_what_is_up_to_date_asks_for_no_data_set(hub: LocalHub, texts: TextSource) -> None:
    published = entry("Tiny", texts)
    job = release_job(hub, repo_id="lab/Tiny", calibration=published.calibration)
    made = factories.provenance(published, job.upstream)
    sha = hub.seed("quantized/Tiny-awq", {"provenance.json": to_json(made)})
    hub.repo("quantized/Tiny-awq").create_ref(f"refs/tags/{made.tag}", sha)
    planned = plan(hub, [published])
    assert [skip.reason for skip in planned.skipped] == ["up to date"]
    assert not requests(hub, "GET", "datasets/")


@pytest.mark.parametrize(
    ("changed", "reason", "hint"),
    [
        ({"dataset": "lab/nowhere"}, "missing: no such data set", "`calibration: {sources: [{builtin: prose}, {"),
        ({"revision": factories.SHA}, f"missing: no commit {factories.SHA[:8]}", "`file:`"),
        ({"split": "validation"}, "no parquet or jsonl file of split 'validation'", "correct `split`"),
    ],
    ids=["no such data set", "no such commit", "no such split"],
)
def test_a_data_set_that_cannot_be_used_is_refused_with_the_fix(
    hub: LocalHub, texts: TextSource, changed: dict[str, Any], reason: str, hint: str
) -> None:
    fields = {"dataset": texts.dataset, "revision": texts.revision, "split": "train"} | changed
    planned = plan(hub, [entry("a", TextSource(**fields)), entry("b", texts)])
    assert [job.entry.repo_id for job in planned.jobs] == ["lab/b"]
    [skip] = planned.skipped
    assert skip.reason.startswith(f"calibration data set {fields['dataset']}@{fields['revision'][:8]}: ")
    assert reason in skip.reason
    assert hint in skip.hint
    assert (skip.exit_code, skip.blocked, needs_person(skip)) == (3, True, True)


def test_an_evaluation_data_set_is_looked_at_too(hub: LocalHub, texts: TextSource) -> None:
    missing = Evaluation(sources=(replace(texts, dataset="lab/nowhere"),))
    asked = [replace(entry("a", texts), evaluation=missing), entry("b", texts)]
    planned = plan(hub, asked)
    assert [job.entry.repo_id for job in planned.jobs] == ["lab/b"]
    [skip] = planned.skipped
    assert skip.reason.startswith("evaluation data set lab/nowhere@")
    assert "`evaluation: {sources: [{builtin: prose}, {" in skip.hint


def test_the_data_set_of_a_task_is_looked_at_too(hub: LocalHub, texts: TextSource) -> None:
    task = EvaluationTask(name="arc_easy", dataset="lab/nowhere", revision=factories.SHA)
    planned = plan(hub, [replace(entry("a", texts), tasks=(task,)), entry("b", texts)])
    assert [job.entry.repo_id for job in planned.jobs] == ["lab/b"]
    [skip] = planned.skipped
    assert skip.reason.startswith(f"task data set lab/nowhere@{factories.SHA[:8]}: missing")
    assert "from this entry's `tasks`" in skip.hint


def test_a_split_in_several_configurations_is_refused_with_their_names(hub: LocalHub) -> None:
    files = {f"{language}/train/0000.jsonl": ROWS for language in ("de", "en")}
    sha = hub.seed("lab/many", dict(files), repo_type="dataset")
    planned = plan(hub, [entry("a", TextSource(dataset="lab/many", revision=sha, split="train"))])
    [skip] = planned.skipped
    assert "split 'train' is in 2 folders: de/train, en/train" in skip.reason
    assert "`split: de/train`" in skip.hint
    assert skip.exit_code == 3


def test_a_gated_data_set_is_refused_until_access_is_granted(hub: LocalHub) -> None:
    sha = hub.seed("lab/gated", dict(SPLITS), repo_type="dataset", gated="manual")
    asked = [entry("a", TextSource(dataset="lab/gated", revision=sha, split="train"))]
    [skip] = plan(hub, asked).skipped
    assert "lab/gated" in skip.reason
    assert "gated: our token has no access" in skip.reason
    assert "Ask for access" in skip.hint
    assert len(requests(hub, "GET", "/api/datasets/")) == 1
    hub.grant_access("lab/gated", "bot", repo_type="dataset")
    assert len(plan(hub, asked).jobs) == 1


def test_a_hub_that_fails_is_no_refusal_that_waits_for_a_person(
    hub: LocalHub, texts: TextSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "ATTEMPTS", 1)
    hub.faults.add(Fault(path="datasets/lab/texts", status=503, times=None))
    planned = plan(hub, [entry("a", texts), entry("b", TextSource(builtin="stdlib"))])
    assert [job.entry.repo_id for job in planned.jobs] == ["lab/b"]
    [skip] = planned.skipped
    assert "the Hub answers 503" in skip.reason
    assert (skip.exit_code, skip.blocked, needs_person(skip)) == (3, False, False)


def test_the_plan_says_what_the_model_holds(hub: LocalHub) -> None:
    [job] = plan(hub, [entry("a", TextSource(builtin="stdlib"))]).jobs
    assert job.estimate is not None
    assert (job.estimate.quantized_share, job.estimate.experts) == (1.0, 0)
    assert job.warnings == ()


def test_weights_that_do_not_belong_to_the_config_are_refused(hub: LocalHub) -> None:
    files = source_files(model__safetensors=WEIGHTS)
    config = json.loads(files["config.json"])
    files["config.json"] = json.dumps(config | {"num_hidden_layers": config["num_hidden_layers"] + 1}).encode()
    hub.seed("lab/a", files)
    [skip] = plan(hub, [entry("a", TextSource(builtin="stdlib"))]).skipped
    assert "missing keys" in skip.reason
    assert skip.exit_code == 3


def test_sizes_that_no_model_has_are_refused_without_a_process(
    hub: LocalHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline, "layers_of_model", None)
    files = source_files(model__safetensors=WEIGHTS)
    config = json.loads(files["config.json"]) | {"num_hidden_layers": 10**9}
    hub.seed("lab/a", {**files, "config.json": json.dumps(config)})
    [skip] = plan(hub, [entry("a", TextSource(builtin="stdlib"))]).skipped
    assert skip.reason.startswith(
        "unsupported: config.json: num_hidden_layers is 1000000000, and the weights hold"
    )


def test_headers_decide_with_a_warning_where_the_child_process_fails(
    hub: LocalHub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(worker, "SMALL_S", 0.01)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    [job] = plan(hub, [entry("a", TextSource(builtin="stdlib"))]).jobs
    assert job.warnings == ("judged by its headers alone: layers took more than 0 s",)
    assert job.estimate is not None
    assert job.estimate.quantized_share == 1.0


def test_headers_decide_where_torch_is_not_installed(hub: LocalHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "find_spec", lambda name: None)
    monkeypatch.setattr(pipeline, "layers_of_model", None)
    [job] = plan(hub, [entry("a", TextSource(builtin="stdlib"))]).jobs
    assert job.warnings == ()
