"""Jobs that are done, overtaken or cannot be published end before anything is downloaded."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from bot.hub.publish import publish
from bot.hub.session import Hub
from bot.jobs import pipeline, stages
from bot.jobs.folder import JobDir, evaluate_inputs, pull_inputs, quantize_inputs
from bot.jobs.stages import JobContext
from bot.localhub import LocalHub
from bot.records import no_progress
from tests.support import factories
from tests.support.repos import (
    SOURCE,
    TARGET,
    all_requests,
    as_bot,
    forget_requests,
    make_artifact,
    release_job,
    requests,
    source_files,
)


def context(hub: LocalHub, folder: Path) -> JobContext:
    return JobContext(hub=as_bot(hub), work=folder / "work", files=folder, progress=no_progress)


def test_a_public_target_of_a_private_entry_is_refused_until_it_is_made_private(
    hub: LocalHub, tmp_path: Path
) -> None:
    hub.seed(SOURCE, source_files())
    job = release_job(hub)
    publish(as_bot(hub), job, make_artifact(tmp_path / "job", job), no_progress)
    forget_requests(hub)
    assert [skip.reason for skip in pipeline.plan(as_bot(hub), [job.entry]).skipped] == ["up to date"]
    before = len(all_requests(hub))
    closed = replace(job.entry, private=True)
    [skip] = pipeline.plan(as_bot(hub), [closed]).skipped
    assert (skip.reason, skip.exit_code) == (f"{TARGET} is public, and should be private", 7)
    assert len(all_requests(hub)) == 2 * before + 1
    assert "made private" in pipeline.create_targets(as_bot(hub), [closed])[0].done
    assert [skip.reason for skip in pipeline.plan(as_bot(hub), [closed]).skipped] == ["up to date"]


def test_a_job_that_was_overtaken_ends_before_anything_is_pulled(hub: LocalHub, tmp_path: Path) -> None:
    hub.seed(SOURCE, source_files())
    older = release_job(hub)
    hub.seed(SOURCE, {"config.json": '{"model_type": "llama"}'})
    newer = release_job(hub)
    publish(as_bot(hub), newer, make_artifact(tmp_path / "newer", newer), no_progress)
    forget_requests(hub)
    result = pipeline.run_job(context(hub, tmp_path), older)
    assert result.error is not None
    assert result.error.exit_code == 7
    assert "another run has published to it since the plan was made" in result.error.message
    assert requests(hub, "HEAD", SOURCE) == []


def test_a_job_that_may_not_be_published_ends_before_anything_is_pulled(hub: LocalHub, tmp_path: Path) -> None:
    hub.seed(SOURCE, source_files())
    job = release_job(hub)
    forget_requests(hub)
    problems = {
        Hub(hub.endpoint): "no token to publish with",
        Hub(hub.endpoint, None, hub.token("bot", role="read")): "the token can only read",
        Hub(hub.endpoint, None, hub.add_token("newcomer")): "newcomer does not belong to quantized",
    }
    for caller, problem in problems.items():
        result = pipeline.run_job(replace(context(hub, tmp_path), hub=caller), job)
        assert result.error is not None
        assert result.error.exit_code == 7
        assert problem in result.error.message
    assert requests(hub, "HEAD", SOURCE) == []


def test_publishing_again_needs_nothing_from_the_jobs_folder(hub: LocalHub, tmp_path: Path) -> None:
    hub.seed(SOURCE, source_files())
    job = release_job(hub)
    made = publish(as_bot(hub), job, make_artifact(tmp_path / "job", job), no_progress)
    jobdir = JobDir(tmp_path / "work" / job.job_id)
    jobdir.store(job)
    again = stages.publish(context(hub, tmp_path), jobdir)
    assert (again.sha, again.tag, again.new) == (made.sha, made.tag, False)
    jobdir.store(again)
    assert stages.to_be_published(jobdir) == ()


def test_preparing_a_job_again_pulls_nothing(hub: LocalHub, tmp_path: Path) -> None:
    hub.seed(SOURCE, source_files())
    job = release_job(hub)
    jobdir = JobDir(tmp_path / "work" / job.job_id)
    weights, quantized, report = factories.weights(), factories.quantized(), factories.report(pictures=())
    jobdir.store(job)
    jobdir.store(weights, inputs=pull_inputs(job))
    jobdir.store(quantized, inputs=quantize_inputs(job, weights))
    jobdir.store(report, inputs=evaluate_inputs(job, quantized))
    forget_requests(hub)
    assert pipeline.prepare_job(context(hub, tmp_path), job).error is None
    assert requests(hub, "HEAD", SOURCE) == []
    assert not jobdir.source.exists()
    # What was made of other files has to be made again.
    hub.seed(SOURCE, {"config.json": "{}"})
    newer = release_job(hub)
    jobdir.path.rename(tmp_path / "work" / newer.job_id)
    hub.disable(SOURCE)
    error = pipeline.prepare_job(context(hub, tmp_path), newer).error
    assert error is not None
    assert error.exit_code == 3
