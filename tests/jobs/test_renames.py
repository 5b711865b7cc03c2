"""Repos that were renamed: the plan knows them by the id that the Hub answers with."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from bot.jobs import pipeline
from bot.jobs.folder import JobDir
from bot.jobs.stages import JobContext
from bot.localhub import LocalHub
from bot.records import Job, JobKind, Plan, Provenance, Skip, Status, WatchEntry, from_json, no_progress, to_json
from tests.support import factories, small_sandbox
from tests.support.release import Release
from tests.support.repos import SOURCE, TARGET, all_requests, as_bot, forget_requests, release_job, source_files
from tests.support.sandbox import SandboxBefore

ENTRY = factories.entry()


def plan(hub: LocalHub, *entries: WatchEntry) -> Plan:
    forget_requests(hub)
    return pipeline.plan(as_bot(hub), entries)


def refused(hub: LocalHub, entry: WatchEntry) -> Skip:
    [skip] = plan(hub, entry).skipped
    assert (skip.exit_code > 0, bool(skip.hint)) == (True, True)
    return skip


@pytest.fixture
def published(hub: LocalHub) -> Job:
    """A complete release of SOURCE under TARGET."""
    hub.seed(SOURCE, source_files())
    job = release_job(hub)
    made = factories.provenance(ENTRY, job.upstream)
    sha = hub.seed(TARGET, {"provenance.json": to_json(made)})
    hub.repo(TARGET).create_ref(f"refs/tags/{made.tag}", sha)
    assert [skip.reason for skip in plan(hub, ENTRY).skipped] == ["up to date"]
    return job


def test_a_renamed_source_goes_on_with_the_same_target_and_its_card_names_the_new_id(
    sandbox_before: SandboxBefore,
) -> None:
    sandbox, target = sandbox_before(), small_sandbox.TARGET
    hub, job = sandbox.hub, JobDir(sandbox.jobs[0]).job
    context = JobContext(hub=as_bot(hub), work=sandbox.root / "work", files=sandbox.root, progress=no_progress)
    assert pipeline.run_job(context, job).status is Status.PUBLISHED
    before = hub.files(target)

    hub.rename(job.entry.repo_id, "lab/Renamed")
    [refresh] = plan(hub, job.entry).jobs
    assert (refresh.kind, refresh.entry.target) == (JobKind.REFRESH, target)
    assert refresh.reason == "lab/small is now lab/Renamed"
    assert "`repo_id: lab/Renamed` with `target: quantized/small-awq`" in refresh.warnings[0]
    assert pipeline.run_job(context, refresh).status is Status.PUBLISHED
    after = hub.files(target)
    assert {path for path in before | after if before.get(path) != after.get(path)} == {
        "README.md",
        "provenance.json",
    }
    assert yaml.safe_load(after["README.md"].split(b"---")[1])["base_model"] == "lab/Renamed"
    assert b"lab/small" not in after["README.md"]
    assert from_json(Provenance, after["provenance.json"]).source.repo_id == "lab/Renamed"

    for name in ("lab/small", "lab/SMALL", "lab/Renamed", "LAB/renamed"):
        assert [skip.reason for skip in plan(hub, replace(job.entry, repo_id=name)).skipped] == ["up to date"]

    # Another repo takes the old name.
    hub.seed("lab/small", source_files())
    assert refused(hub, job.entry).reason == f"{target} was made from lab/Renamed, not from lab/small"
    assert plan(hub, replace(job.entry, repo_id="lab/Renamed")).skipped[0].reason == "up to date"


@pytest.mark.parametrize("name", ["lab/Tiny", "lab/New", "lab/NEW"])
def test_either_name_is_the_source_that_the_target_was_made_from(hub: LocalHub, published: Job, name: str) -> None:
    hub.rename(SOURCE, "lab/New")
    [job] = plan(hub, replace(ENTRY, repo_id=name)).jobs
    assert (job.kind, job.upstream.repo_id, job.tag) == (JobKind.REFRESH, "lab/New", f"{published.tag}-2")
    asked = [item.path for item in all_requests(hub) if item.path == f"/api/models/{SOURCE}"]
    assert len(asked) == (name != SOURCE)


def test_another_spelling_is_no_other_name(hub: LocalHub, published: Job) -> None:
    [skip] = plan(hub, replace(ENTRY, repo_id="LAB/tiny")).skipped
    assert (skip.reason, skip.hint) == ("up to date", "")


def test_both_names_in_one_watchlist_are_a_conflict(hub: LocalHub, published: Job) -> None:
    hub.rename(SOURCE, "lab/New")
    new = replace(ENTRY, repo_id="lab/New", target="quantized/New-awq", line=7)
    first, second = plan(hub, ENTRY, new).skipped
    assert first.reason == "the same repo as lab/New on line 7: both are lab/New now"
    assert second.reason == "the same repo as lab/Tiny on line 3: both are lab/New now"
    assert (first.exit_code, second.exit_code) == (2, 2)
    twice = plan(hub, replace(ENTRY, repo_id="lab/New"), new)
    assert {job.entry.target for job in twice.jobs} | {skip.entry.target for skip in twice.skipped} == {
        TARGET,
        new.target,
    }
    assert not [skip for skip in twice.skipped if "same repo" in skip.reason]


def test_a_source_that_is_gone_is_another_repo(hub: LocalHub, published: Job) -> None:
    hub.store.delete(hub.repo(SOURCE))
    hub.seed("lab/New", source_files())
    refusal = refused(hub, replace(ENTRY, repo_id="lab/New"))
    assert refusal.reason == f"{TARGET} was made from {SOURCE}, not from lab/New"


def test_a_renamed_target_is_refused_by_its_old_name_and_goes_on_by_its_new_one(
    hub: LocalHub, published: Job, tmp_path: Path
) -> None:
    hub.rename(TARGET, "quantized/Moved")
    refusal = refused(hub, ENTRY)
    assert (refusal.reason, refusal.exit_code) == (f"{TARGET} was renamed to quantized/Moved", 7)
    assert "`target: quantized/Moved`" in refusal.hint
    for target in ("quantized/Moved", "quantized/moved"):
        assert plan(hub, replace(ENTRY, target=target)).skipped[0].reason == "up to date"
    # It may be renamed while a job runs.
    Release.of(hub, tmp_path).fails(f"{TARGET}: it was renamed to quantized/Moved")
    [prepared] = pipeline.create_targets(as_bot(hub), [ENTRY])
    assert (prepared.exit_code, "renamed to quantized/Moved" in prepared.problem) == (7, True)


def test_an_empty_target_that_was_renamed_is_refused_too(hub: LocalHub) -> None:
    release_job(hub)
    hub.store.create(TARGET, author="bot")
    hub.rename(TARGET, "quantized/Moved")
    assert refused(hub, ENTRY).reason == f"{TARGET} was renamed to quantized/Moved"


def test_create_target_knows_a_renamed_source(hub: LocalHub, published: Job) -> None:
    hub.rename(SOURCE, "lab/New")
    [prepared] = pipeline.create_targets(as_bot(hub), [replace(ENTRY, repo_id="lab/New")])
    assert prepared.problem == ""
