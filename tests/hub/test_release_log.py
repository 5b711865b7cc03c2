"""Each release names the one before it, so whatever is changed afterwards in a repo's history shows."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest

from bot.hub.session import Hub
from bot.hub.verify import verify
from bot.localhub import LocalHub
from bot.localhub.repo import _load_commit
from bot.records import Check, Link, LogEntry, Provenance, from_json, no_progress, to_json
from tests.support.release import Release
from tests.support.repos import SOURCE, TARGET

Releases = tuple[Release, Release, Release]


@pytest.fixture
def three(release: Release, tmp_path: Path) -> Releases:
    """Published one after another."""
    release.publish()
    second = release.next(tmp_path, {"config.json": b'{"n": 2}', "model.safetensors": b"2" * 9000})
    second.publish()
    third = second.next(tmp_path, {"config.json": b'{"n": 3}', "model.safetensors": b"3" * 9000}, '{"n": 3}')
    third.publish()
    return release, second, third


def log(hub: LocalHub, revision: str | None = None) -> Check:
    outsider = Hub(hub.endpoint, hub.token("reader", role="read"))
    checks = verify(outsider, TARGET, revision=revision, progress=no_progress)
    return next(check for check in checks if check.name == "log")


def made(hub: LocalHub, revision: str) -> Provenance:
    return from_json(Provenance, hub.files(TARGET, revision)["provenance.json"])


def move_tag(hub: LocalHub, tag: str, sha: str) -> None:
    hub.repo(TARGET).delete_ref(f"refs/tags/{tag}")
    hub.repo(TARGET).create_ref(f"refs/tags/{tag}", sha)


def reset_main(hub: LocalHub, sha: str) -> None:
    repo = hub.repo(TARGET)
    repo._write_ref("refs/heads/main", sha)  # what a forced push does


def test_each_release_names_the_one_before_it_by_hash(hub: LocalHub, three: Releases) -> None:
    tags = [release.job.tag for release in three]
    assert made(hub, tags[0]).log == LogEntry(previous=None)
    for before, after in pairwise(tags):
        sha256 = hashlib.sha256(hub.files(TARGET, before)["provenance.json"]).hexdigest()
        commit = hub.refs(TARGET)[f"refs/tags/{before}"]
        assert made(hub, after).log == LogEntry(previous=Link(tag=before, commit=commit, sha256=sha256))
    for revision in (None, *tags):
        assert (log(hub, revision).status, log(hub, revision).found) == ("ok", "3 releases, from the first on")


def test_publishing_again_gives_the_same_bytes(hub: LocalHub, release: Release, tmp_path: Path) -> None:
    release.publish()
    second = release.next(tmp_path)
    second.publish()
    published = hub.files(TARGET)["provenance.json"]
    head = hub.history(TARGET)[0]
    hub.repo(TARGET).delete_ref(f"refs/tags/{second.job.tag}")
    reset_main(hub, str(head.parent))
    second.publish()
    assert hub.files(TARGET)["provenance.json"] == published


def _tag_moved_forwards(hub: LocalHub, three: Releases) -> None:
    move_tag(hub, three[0].job.tag, hub.history(TARGET)[0].sha)


def _first_tag_moved_to_a_copy(hub: LocalHub, three: Releases) -> None:
    """Other weights under the first tag, on a branch of their own, with a provenance that fits them."""
    old = hub.refs(TARGET)[f"refs/tags/{three[0].job.tag}"]
    files = hub.files(TARGET, old)
    forged = replace(made(hub, old), device="another")
    hub.repo(TARGET).create_ref("refs/heads/other", old)
    sha = hub.seed(TARGET, {**files, "provenance.json": to_json(forged)}, revision="other")
    move_tag(hub, three[0].job.tag, sha)


def _set_parent(hub: LocalHub, sha: str, parent: str | None) -> None:
    path = hub.repo(TARGET).folder / "commits" / f"{sha}.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"parent": parent}))
    _load_commit.cache_clear()


def _history_squashed(hub: LocalHub, three: Releases) -> None:
    _set_parent(hub, hub.history(TARGET)[0].sha, None)


def _release_cut_out(hub: LocalHub, three: Releases) -> None:
    """main without the second release, whose tag is deleted, too."""
    newest, _, first, *_ = hub.history(TARGET)
    _set_parent(hub, newest.sha, first.sha)
    hub.repo(TARGET).delete_ref(f"refs/tags/{three[1].job.tag}")


def _other_link(**fields: str) -> Callable[[LocalHub, Releases], None]:
    """The newest release again, with another link."""

    def change(hub: LocalHub, three: Releases) -> None:
        newest = made(hub, three[2].job.tag)
        assert newest.log is not None
        assert newest.log.previous is not None
        forged = replace(newest, log=LogEntry(previous=replace(newest.log.previous, **fields)))
        move_tag(hub, three[2].job.tag, hub.seed(TARGET, {"provenance.json": to_json(forged)}))

    return change


def _second_forgotten(hub: LocalHub, three: Releases) -> None:
    """The newest names the first, as if there had been no release between them."""
    second = made(hub, three[1].job.tag)
    forged = replace(made(hub, three[2].job.tag), log=second.log)
    move_tag(hub, three[2].job.tag, hub.seed(TARGET, {"provenance.json": to_json(forged)}))


@pytest.mark.forgery
@pytest.mark.parametrize(
    ("change", "of", "found"),
    [
        (_tag_moved_forwards, 2, "and the next release names"),
        (_first_tag_moved_to_a_copy, 2, "and the next release names"),
        (_first_tag_moved_to_a_copy, 0, "and the next release names"),
        (_history_squashed, 2, "the history before"),
        (_release_cut_out, 2, "the history before"),
        (_other_link(sha256="0" * 64), 2, "is not the release that the next one names"),
        (_other_link(commit="0" * 40), 2, "the history before"),
        (_other_link(tag="upstream-00000000-00000000"), 2, "is not the release that the next one names"),
        (_second_forgotten, 1, "is none of the 2 releases before"),
    ],
)
def test_log_that_was_broken_is_said_to_be(
    hub: LocalHub, three: Releases, change: Callable[[LocalHub, Releases], None], of: int, found: str
) -> None:
    change(hub, three)
    check = log(hub, three[of].job.tag)
    assert check.status == "failed"
    assert found in check.found
    assert "report it" in check.fix


def test_tag_that_was_deleted_leaves_the_log_whole(hub: LocalHub, three: Releases) -> None:
    hub.repo(TARGET).delete_ref(f"refs/tags/{three[0].job.tag}")
    assert log(hub).found == "3 releases, from the first on"


def test_releases_from_before_the_log_stay_readable(hub: LocalHub, release: Release, tmp_path: Path) -> None:
    """As version 0.1 published them."""
    release.publish()
    old = replace(made(hub, "main"), log=None)
    assert '"log"' not in to_json(old)
    move_tag(hub, old.tag, hub.seed(TARGET, {"provenance.json": to_json(old)}))
    assert (log(hub).status, log(hub).found) == ("unknown", f"none: {old.tag} was published before the log began")
    newer = release.next(tmp_path)
    newer.publish()
    begins = f"2 releases, the log begins after {old.tag}, which was published before it"
    for revision in (old.tag, newer.job.tag):
        assert (log(hub, revision).status, log(hub, revision).found) == ("ok", begins)


@pytest.mark.forgery
def test_release_over_one_whose_tag_was_moved_is_not_published(
    hub: LocalHub, release: Release, tmp_path: Path
) -> None:
    release.publish()
    second = release.next(tmp_path)
    second.publish()
    move_tag(hub, second.job.tag, hub.refs(TARGET)[f"refs/tags/{release.job.tag}"])
    hub.seed(SOURCE, {"config.json": '{"n": 3}'})
    third = Release.of(hub, tmp_path)
    error = third.fails(f"the tag {second.job.tag} was moved to .* which is the release {release.job.tag}")
    assert "Move it back" in error.hint
