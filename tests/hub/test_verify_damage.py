"""Each way in which a published repo can differ from its provenance, as `verify` tells it to anybody."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from bot.errors import BotError, PublishError
from bot.hub.publish import Artifact, publish
from bot.hub.session import Hub
from bot.hub.verify import verify
from bot.localhub import LocalHub
from bot.records import Check, Job, Provenance, from_json, no_progress, to_json
from tests.support.repos import SOURCE, TARGET, as_bot, make_artifact, release_job


@dataclass(frozen=True)
class Release:
    """What is published at the head of TARGET, and as a tag."""

    hub: LocalHub
    job: Job
    sha: str

    @property
    def source(self) -> str:
        return f"source {SOURCE}@{self.job.upstream.sha[:8]}"

    def checks(self, revision: str | None = None) -> dict[str, Check]:
        """By name, as somebody without rights sees them."""
        stranger = Hub(self.hub.endpoint, self.hub.token("reader", role="read"))
        return {check.name: check for check in verify(stranger, TARGET, revision=revision, progress=no_progress)}

    def off(self, revision: str | None = None) -> dict[str, str]:
        """Name and status of all that is not well."""
        return {name: check.status for name, check in self.checks(revision).items() if check.status != "ok"}


@pytest.fixture
def release(hub: LocalHub, job: Job, artifact: Artifact) -> Release:
    made = publish(as_bot(hub), job, artifact, no_progress)
    return Release(hub, job, made.sha)


def test_release_that_nobody_touched_is_well_by_every_name_it_has(release: Release) -> None:
    files = set(release.hub.files(TARGET)) - {"provenance.json", ".gitattributes"}
    for revision in (None, "main", release.job.tag, release.sha):
        assert release.checks(revision).keys() == files | {"tag", release.source}
        assert release.off(revision) == {}


def _tag_removed(release: Release) -> None:
    release.hub.repo(TARGET).delete_ref(f"refs/tags/{release.job.tag}")


def _tag_moved(release: Release) -> None:
    _tag_removed(release)
    release.hub.repo(TARGET).create_ref(f"refs/tags/{release.job.tag}", release.hub.history(TARGET)[-1].sha)


def _file_lost_in_storage(release: Release) -> None:
    """The repo's list still names it."""
    repo = release.hub.repo(TARGET)
    repo.object_path(repo.commit_at("main").files["model.safetensors"].sha256).unlink()


def _source_gone(release: Release) -> None:
    release.hub.store.delete(release.hub.repo(SOURCE))


def _source_private(release: Release) -> None:
    release.hub.repo(SOURCE).update_settings(private=True)


@pytest.mark.parametrize(
    ("damage", "off", "found"),
    [
        (_tag_removed, {"tag": "failed"}, "is missing"),
        (_tag_moved, {"tag": "failed"}, "; this is "),
        (_file_lost_in_storage, {"model.safetensors": "failed"}, "missing"),
        (_source_gone, {"source": "unknown"}, "deleted"),
        (_source_private, {"source": "unknown"}, "deleted, or private"),
    ],
    ids=["tag removed", "tag moved", "file lost", "source gone", "source private"],
)
def test_damage_around_the_commit_is_named(
    release: Release, damage: Callable[[Release], None], off: dict[str, str], found: str
) -> None:
    damage(release)
    expected = {release.source if name == "source" else name: status for name, status in off.items()}
    checks = release.checks()
    assert release.off() == expected
    assert all(found in checks[name].found for name in expected)


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
def test_commit_by_hand_is_named_by_file_and_the_tagged_release_stays_well(
    release: Release, files: dict[str, bytes], delete: tuple[str, ...], name: str, found: str
) -> None:
    """It carries the release's provenance, whose tag names another commit."""
    head = release.hub.seed(TARGET, files, delete=delete)
    for revision in (None, head):
        assert release.off(revision) == {"tag": "failed", name: "failed"}
        assert found in release.checks(revision)[name].found
    assert release.off(release.job.tag) == {}


def test_source_whose_commit_has_other_hashes_than_were_recorded_is_a_failure(release: Release) -> None:
    made = from_json(Provenance, release.hub.files(TARGET)["provenance.json"])
    recorded = tuple(replace(file, content_hash="0" * 64) for file in made.source.source_files)
    forged = replace(made, source=replace(made.source, source_files=recorded))
    release.hub.seed(TARGET, {"provenance.json": to_json(forged)})
    assert release.off() == {"tag": "failed", release.source: "failed"}
    assert recorded[0].path in release.checks()[release.source].found


def test_each_release_is_held_against_its_own_provenance(release: Release, tmp_path: Path) -> None:
    old = release.hub.files(TARGET)["provenance.json"]
    release.hub.seed(SOURCE, {"config.json": '{"model_type": "qwen3"}'})
    job = release_job(release.hub)
    files = {"config.json": b'{"new": 1}', "model.safetensors": b"new" * 5000, "tokenizer.json": b"{}"}
    newer = make_artifact(tmp_path / "newer", job, files)
    made = publish(as_bot(release.hub), job, newer, no_progress)
    for revision, tag in ((release.job.tag, release.job.tag), (release.sha, release.job.tag), (None, job.tag)):
        assert release.off(revision) == {}
        assert tag in release.checks(revision)["tag"].found
    assert f"source {SOURCE}@{job.upstream.sha[:8]}" in release.checks(made.sha)
    # The older proof over the newer files.
    release.hub.seed(TARGET, {"provenance.json": old})
    assert {"tag", "config.json", "model.safetensors"} <= release.off().keys()


def test_revision_that_nobody_made_is_an_error_that_names_the_repo(release: Release) -> None:
    for revision in ("upstream-00000000-00000000", "0" * 40):
        with pytest.raises(BotError, match=TARGET):
            release.checks(revision)


@pytest.mark.parametrize("content", [None, "{", "[]"], ids=["none", "broken", "a list"])
def test_commit_without_a_proof_that_can_be_read_is_not_verified(release: Release, content: str | None) -> None:
    broken = {} if content is None else {"provenance.json": content}
    release.hub.seed(TARGET, broken, delete=("provenance.json",) if content is None else ())
    with pytest.raises(PublishError, match=TARGET):
        release.checks()
    assert release.off(release.job.tag) == {}
