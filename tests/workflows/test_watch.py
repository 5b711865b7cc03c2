"""The watch as GitHub runs it: the first run, and the days after it. Each test goes on where the last ended."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import pytest

from bot.records import Provenance, from_json
from tests.support.sandbox import Quantized
from tests.workflows.deployment import ASSET, Deployment, open_deployment, publish_job, quantize_job, target
from tests.workflows.interpreter.parser import WorkflowParser
from tests.workflows.interpreter.repository import NAME, SHA
from tests.workflows.interpreter.runs import Run, steps_with_value

ONE, TWO = target("one"), target("two")
QUANTIZE_ONE, PUBLISH_ONE = quantize_job("one"), publish_job("one")
QUANTIZE_TWO, PUBLISH_TWO = quantize_job("two"), publish_job("two")


@dataclass(frozen=True)
class Watched:
    deployment: Deployment
    run: Run


@pytest.fixture(scope="module")
def first(
    parser: WorkflowParser, quantized: Quantized, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Watched]:
    root, made = tmp_path_factory.mktemp("watch") / "d", quantized(ASSET)
    with open_deployment(parser, root, "one", "two", quantized=made) as deployment:
        yield Watched(deployment, deployment.watch())


def test_both_models_are_published_and_reported_each_as_soon_as_it_is_quantized(first: Watched) -> None:
    assert list(first.run.results) == ["plan", QUANTIZE_ONE, PUBLISH_ONE, QUANTIZE_TWO, PUBLISH_TWO, "report"]
    assert set(first.run.results.values()) == {"success"}
    assert first.deployment.is_published("one")
    assert first.deployment.is_published("two")
    page = first.run.job("report").summary
    assert "2 published" in page
    assert page.count("✅") == 2
    assert not first.deployment.api.troubles()


def test_a_release_names_the_run_that_built_and_published_it(first: Watched) -> None:
    made = from_json(Provenance, first.deployment.hub.files(ONE)["provenance.json"])
    assert made.built_by == made.published_by
    assert made.built_by is not None
    assert made.built_by.workflow_ref == f"{NAME}/.github/workflows/watch.yml@refs/heads/main"
    assert (made.built_by.sha, made.built_by.attempt) == (SHA, 1)
    card = first.deployment.hub.files(ONE)["README.md"].decode()
    assert f"[run {made.built_by.run_id}, attempt 1]({made.built_by.url})" in card


def test_only_quantizing_uses_the_self_hosted_runner(first: Watched) -> None:
    labels = {job.name: job.labels for job in first.run.jobs if job.labels != ("ubuntu-latest",) and job.labels}
    assert labels == dict.fromkeys((QUANTIZE_ONE, QUANTIZE_TWO), ("self-hosted", "gpu", "gpu-16gb"))


def test_each_credential_is_seen_only_by_the_steps_that_use_it(first: Watched) -> None:
    deployment, see = first.deployment, partial(steps_with_value, first.run.steps)
    publish = {(job, "Publish / Publish") for job in (PUBLISH_ONE, PUBLISH_TWO)}
    check = {(job, "Check this machine") for job in (QUANTIZE_ONE, QUANTIZE_TWO)}
    quantize = {(job, "Quantize / Run the job") for job in (QUANTIZE_ONE, QUANTIZE_TWO)}
    assert len(first.run.steps) >= 8
    assert see(deployment.write_token) == publish
    assert see(deployment.api.identities.request_token) == publish
    assert see(deployment.read_token) == {("plan", "Plan")} | check | quantize | publish
    assert set().union(*map(see, deployment.api.granted)) == {("plan", "Plan"), ("report", "Report")}


def test_no_token_is_left_in_logs_pages_artifacts_or_on_a_machine(first: Watched) -> None:
    tokens = {first.deployment.write_token, first.deployment.read_token, *first.deployment.api.granted}
    texts = [step.log for step in first.run.steps] + [job.summary for job in first.run.jobs]
    files = [path for path in first.deployment.repository.root.rglob("*") if path.is_file()]
    files += [path for path in first.deployment.volume.rglob("*") if path.is_file()]
    assert len(files) > 50
    for token in tokens:
        assert not [text for text in texts if token in text]
        assert not [path for path in files if token.encode() in path.read_bytes()]


def test_every_job_had_the_permissions_that_it_needed(first: Watched) -> None:
    assert first.deployment.api.requests
    assert {asked.status for asked in first.deployment.api.requests} <= {200, 201, 204}


def test_artifacts_are_the_plan_the_models_and_the_results(first: Watched) -> None:
    kinds = sorted(name.partition("quantized--")[0] for name in first.run.artifacts.names())
    assert kinds == ["plan", *["quantized-"] * 2, *["result-publish-"] * 2, *["result-quantize-"] * 2]
    [handed, _] = [name for name in first.run.artifacts.names() if name.startswith("quantized-quantized")]
    there = {path.name for path in first.run.artifacts.named(handed).folder.iterdir()}
    assert {"quantized", "card", "card.json"} <= there
    assert not there & {"source", "layers", "hf-home"}


def test_when_nothing_is_new_only_the_plan_runs_with_few_requests(first: Watched) -> None:
    first.deployment.hub.clear_requests()
    again = first.deployment.watch()
    assert again.results == {"plan": "success"}
    assert again.artifacts.names() == []
    asked = [request for request in first.deployment.hub.requests if "agent-harnesses" not in request.path]
    read = [request for request in asked if "/resolve/" in request.path]
    assert len(read) <= 1 * 2
    assert len(asked) - len(read) <= 2 * 2


def test_a_repository_dispatch_plans_one_model(first: Watched) -> None:
    first.deployment.hub.clear_requests()
    run = first.deployment.watch(
        "repository_dispatch", action="upstream-changed", client_payload={"only": "lab/two"}
    )
    assert run.results == {"plan": "success"}
    assert not [request for request in first.deployment.hub.requests if "lab/one" in request.path]
    assert [request for request in first.deployment.hub.requests if "lab/two" in request.path]


@pytest.mark.slow
def test_changed_small_files_are_republished_without_a_gpu(first: Watched) -> None:
    before = first.deployment.hub.files(ONE)
    first.deployment.hub.seed("lab/one", {"generation_config.json": b'{"do_sample": true, "temperature": 0.25}'})
    run = first.deployment.watch()
    assert run.results == {"plan": "success", f"refresh {ONE}": "success", "report": "success"}
    assert run.job(f"refresh {ONE}").labels == ("ubuntu-latest",)
    assert steps_with_value(run.steps, first.deployment.write_token) == {
        (f"refresh {ONE}", "Refresh / Run the job")
    }
    after = first.deployment.hub.files(ONE)
    changed = {path for path in before if before[path] != after[path]}
    assert changed == {"generation_config.json", "README.md", "provenance.json"}
    assert first.deployment.watch().results == {"plan": "success"}


def test_a_dry_run_plans_and_starts_no_job(first: Watched) -> None:
    first.deployment.hub.seed("lab/two", {"generation_config.json": b'{"do_sample": false}'})
    run = first.deployment.watch("workflow_dispatch", inputs={"dry_run": True})
    assert run.results == {"plan": "success"}
    assert "**1 to refresh**, 1 up to date. A dry run" in run.job("plan").summary


def test_a_good_plan_requests_the_heartbeat_url(first: Watched) -> None:
    first.deployment.repository.variables["AWQ_BOT_HEARTBEAT_URL"] = f"{first.deployment.hub.endpoint}/heartbeat"
    first.deployment.hub.clear_requests()
    assert first.deployment.watch("workflow_dispatch", inputs={"only": "lab/one"}).results == {"plan": "success"}
    assert [request.path for request in first.deployment.hub.requests].count("/heartbeat") == 1


def test_a_paused_watch_runs_no_job(first: Watched) -> None:
    first.deployment.hub.clear_requests()
    first.deployment.repository.variables["AWQ_BOT_PAUSED"] = "true"
    assert first.deployment.watch().results == {}
    assert not first.deployment.hub.requests
    del first.deployment.repository.variables["AWQ_BOT_PAUSED"]
