"""Every way in which a published repo can differ from its provenance, and why it cannot be verified at all."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from bot.errors import BotError, PublishError, UpstreamError
from bot.hub.republish import sign_release
from bot.hub.session import Hub
from bot.hub.verify import verify
from bot.localhub import Fault, LocalHub
from bot.records import Check, Provenance, from_json, no_progress, to_json
from tests.support.factories import workflow_run
from tests.support.release import Release
from tests.support.repos import SOURCE, TARGET, as_bot
from tests.support.signers import with_key


@pytest.fixture
def published(release: Release) -> Release:
    release.publish()
    return release


def checks(hub: LocalHub, revision: str | None = None, repo_id: str = TARGET) -> dict[str, Check]:
    """By name, for an account without rights."""
    outsider = Hub(hub.endpoint, hub.token("reader", role="read"))
    return {check.name: check for check in verify(outsider, repo_id, revision=revision, progress=no_progress)}


def wrong(hub: LocalHub, revision: str | None = None) -> dict[str, str]:
    """Name and status of every check that is not ok, but that none of these releases is signed."""
    found = checks(hub, revision)
    assert found.pop("signature").found == "not signed"
    return {name: check.status for name, check in found.items() if check.status != "ok"}


def refused(hub: LocalHub, kind: type[BotError], revision: str | None = None, repo_id: str = TARGET) -> BotError:
    with pytest.raises(kind, match=repo_id) as caught:
        checks(hub, revision, repo_id)
    return caught.value


def source_check(release: Release) -> str:
    return f"source {SOURCE}@{release.job.upstream.sha[:8]}"


# --- what differs -------------------------------------------------------------------------------------------


def test_unchanged_release_is_ok_at_its_head_its_tag_and_its_commit(hub: LocalHub, published: Release) -> None:
    files = set(hub.files(TARGET)) - {"provenance.json", ".gitattributes"}
    for revision in (None, "main", published.job.tag, hub.history(TARGET)[0].sha):
        assert checks(hub, revision).keys() == files | {"tag", "log", "signature", source_check(published)}
        assert wrong(hub, revision) == {}


def test_the_runs_that_a_release_names_are_said_to_be_claims(hub: LocalHub, release: Release) -> None:
    run = workflow_run()
    release.by(replace(as_bot(hub), run=run)).publish()
    found = checks(hub)
    assert "built by" not in found  # this artifact was made here
    assert (found["published by"].status, found["published by"].found) == ("unknown", f"it claims {run}")
    assert str(run).endswith(run.url)


def test_signing_later_does_not_claim_the_run_that_published(hub: LocalHub, release: Release) -> None:
    release.by(replace(as_bot(hub), run=workflow_run())).publish()
    sign_release(replace(as_bot(hub), signing=with_key().credential), TARGET, progress=no_progress)
    assert "published by" not in checks(hub)


def test_verifying_is_reported_by_bytes(hub: LocalHub, tmp_path: Path) -> None:
    release = Release.of(hub, tmp_path, {"config.json": b"{}", "model.safetensors": b"int4" * 2**20})
    release.publish()
    seen: list[tuple[str, int, int, str]] = []
    verify(release.caller, TARGET, revision=None, progress=lambda *report: seen.append(report))
    total = sum(file.size_bytes for file in release.artifact.files if file.path != "provenance.json")
    assert seen[-1] == (f"verify {TARGET}", total, total, "B")
    assert len(seen) > len(release.artifact.files)


def _tag_removed(release: Release) -> None:
    release.hub.repo(TARGET).delete_ref(f"refs/tags/{release.job.tag}")


def _tag_moved(release: Release) -> None:
    _tag_removed(release)
    release.hub.repo(TARGET).create_ref(f"refs/tags/{release.job.tag}", release.hub.history(TARGET)[-1].sha)


def _file_lost_in_storage(release: Release) -> None:
    """The repo's listing still names it."""
    repo = release.hub.repo(TARGET)
    repo.object_path(repo.commit_at("main").files["model.safetensors"].sha256).unlink()


def _source_deleted(release: Release) -> None:
    release.hub.store.delete(release.hub.repo(SOURCE))


def _source_private(release: Release) -> None:
    release.hub.repo(SOURCE).update_settings(private=True)


@pytest.mark.parametrize(
    ("damage", "name", "status", "found"),
    [
        (_tag_removed, "tag", "failed", "is missing"),
        (_tag_moved, "tag", "failed", "; this is "),
        (_file_lost_in_storage, "model.safetensors", "failed", "missing"),
        (_source_deleted, "source", "unknown", "deleted"),
        (_source_private, "source", "unknown", "deleted, or private"),
    ],
)
def test_damage_around_the_commit_is_named(
    hub: LocalHub, published: Release, damage: Callable[[Release], None], name: str, status: str, found: str
) -> None:
    damage(published)
    name = source_check(published) if name == "source" else name
    assert wrong(hub) == {name: status}
    assert found in checks(hub)[name].found


@pytest.mark.parametrize(
    ("files", "delete", "name", "found"),
    [
        ({"model.safetensors": b"other weights"}, (), "model.safetensors", "published was"),
        ({"config.json": b"{ }"}, (), "config.json", "published was"),
        ({}, ("model.safetensors",), "model.safetensors", "missing"),
        ({"by-hand.bin": b"x"}, (), "by-hand.bin", "not in the provenance"),
    ],
    ids=["weights", "config", "removed", "added"],
)
def test_commit_by_hand_is_named_by_file_and_the_tag_stays_ok(
    hub: LocalHub, published: Release, files: dict[str, bytes], delete: tuple[str, ...], name: str, found: str
) -> None:
    """It carries the release's provenance, whose tag is on another commit."""
    head = hub.seed(TARGET, files, delete=delete)
    for revision in (None, head):
        assert wrong(hub, revision) == {"tag": "failed", name: "failed"}
        assert found in checks(hub, revision)[name].found
    assert wrong(hub, published.job.tag) == {}


def test_source_commit_with_other_hashes_is_a_failure(hub: LocalHub, published: Release) -> None:
    made = from_json(Provenance, hub.files(TARGET)["provenance.json"])
    recorded = tuple(replace(file, content_hash="0" * 64) for file in made.source.source_files)
    forged = replace(made, source=replace(made.source, source_files=recorded))
    hub.seed(TARGET, {"provenance.json": to_json(forged)})
    assert wrong(hub) == {"tag": "failed", source_check(published): "failed"}
    assert recorded[0].path in checks(hub)[source_check(published)].found


def test_each_release_has_its_own_provenance(hub: LocalHub, published: Release, tmp_path: Path) -> None:
    old, first = hub.files(TARGET)["provenance.json"], hub.history(TARGET)[0].sha
    newer = published.next(tmp_path, {"config.json": b'{"new": 1}', "model.safetensors": b"new" * 5000})
    newer.publish()
    tag = published.job.tag
    for revision, name in ((tag, tag), (first, tag), (None, newer.job.tag)):
        assert wrong(hub, revision) == {}
        assert name in checks(hub, revision)["tag"].found
    # The older provenance over the newer files.
    hub.seed(TARGET, {"provenance.json": old})
    assert {"tag", "config.json", "model.safetensors"} <= wrong(hub).keys()


# --- what cannot be verified --------------------------------------------------------------------------------


@pytest.mark.parametrize("revision", ["upstream-mistyped", "0" * 40])
def test_missing_revision_is_named_with_the_tags(hub: LocalHub, published: Release, revision: str) -> None:
    error = refused(hub, UpstreamError, revision)
    assert error.message == f"{TARGET}: no revision {revision}"
    assert published.job.tag in error.hint


def test_gated_repo_is_said_to_be_gated(hub: LocalHub, published: Release) -> None:
    hub.seed(TARGET, {}, gated="auto")
    error = refused(hub, UpstreamError)
    assert "answers 403" in error.message
    assert error.hint == "If it is gated, ask for access and set HF_TOKEN."
    hub.grant_access(TARGET, "reader")
    assert checks(hub)


def test_repo_that_cannot_be_read_is_named(hub: LocalHub, published: Release) -> None:
    assert "no such repo" in refused(hub, UpstreamError, repo_id="quantized/Nothing").message
    hub.faults.add(Fault(path="/refs", status=403, times=None))
    assert "answers 403" in refused(hub, UpstreamError).message


@pytest.mark.parametrize("content", [None, "{", "[]"], ids=["none", "broken", "a list"])
def test_commit_without_provenance_is_refused(hub: LocalHub, published: Release, content: str | None) -> None:
    broken = {} if content is None else {"provenance.json": content}
    hub.seed(TARGET, broken, delete=("provenance.json",) if content is None else ())
    assert "awq-bot did not" in refused(hub, PublishError).hint
    assert wrong(hub, published.job.tag) == {}
