"""What the status page reads of a target's releases, in how many requests, and where it stops."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bot.hub import history
from bot.hub.history import read_histories
from bot.localhub import Fault, LocalHub
from bot.records import Provenance, ReleaseHistory, from_json, to_json
from tests.support.release import Release
from tests.support.repos import TARGET, all_requests, as_bot, forget_requests


@pytest.fixture
def three(release: Release, tmp_path: Path) -> Sequence[Release]:
    """Published one after another; of the third, only small files differ."""
    release.publish()
    second = release.next(tmp_path, {"config.json": b'{"n": 2}', "model.safetensors": b"2" * 9000})
    second.publish()
    release.hub.seed("lab/Tiny", {"tokenizer_config.json": '{"n": 3}'})
    third = Release.of(release.hub, tmp_path, {"config.json": b'{"n": 3}', "model.safetensors": b"2" * 9000})
    third.publish()
    return release, second, third


def read(hub: LocalHub, target: str = TARGET) -> ReleaseHistory:
    return read_histories(as_bot(hub), [target])[0]


def tags(found: ReleaseHistory) -> list[str]:
    return [item.tag for item in found.releases]


def put_provenance(hub: LocalHub, made: Provenance) -> None:
    """A newer head, to which its tag is moved."""
    hub.seed(TARGET, {"provenance.json": to_json(made)})
    repo = hub.repo(TARGET)
    repo.delete_ref(f"refs/tags/{made.tag}")
    repo.create_ref(f"refs/tags/{made.tag}", "main")


def made(hub: LocalHub, revision: str = "main") -> Provenance:
    return from_json(Provenance, hub.files(TARGET, revision)["provenance.json"])


def test_releases_are_read_from_the_newest_to_the_first(hub: LocalHub, three: Sequence[Release]) -> None:
    found = read(hub)
    assert tags(found) == [item.job.tag for item in reversed(three)]
    assert (found.whole, found.problem, found.repo_id) == (True, "", TARGET)
    newest = found.releases[0]
    assert newest.commit == hub.refs(TARGET)[f"refs/tags/{newest.tag}"]
    assert newest.date == hub.repo(TARGET).commit(newest.commit).date[:19] + "Z"
    report = made(hub).report
    assert (newest.kl_mean, newest.top1_agreement) == (report.kl_mean, report.top1_agreement)
    assert newest.size_bytes == report.size_quantized_bytes
    assert newest.source_sha == three[2].job.upstream.sha


def test_a_release_of_small_files_is_told_from_one_of_weights(hub: LocalHub, three: Sequence[Release]) -> None:
    assert [item.kind for item in read(hub).releases] == ["refresh", "release", "release"]


def test_three_requests_and_one_per_earlier_release(hub: LocalHub, three: Sequence[Release]) -> None:
    forget_requests(hub)
    read(hub)
    assert len([item for item in all_requests(hub) if item.status == 200]) == 3 + 2


def test_no_more_are_read_than_are_shown(
    hub: LocalHub, three: Sequence[Release], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(history, "MOST_RELEASES", 2)
    forget_requests(hub)
    found = read(hub)
    assert tags(found) == [three[2].job.tag, three[1].job.tag]
    assert not found.whole
    assert found.problem == ""
    assert len([item for item in all_requests(hub) if item.status == 200]) == 3 + 1


def test_a_deleted_tag_leaves_the_release_that_the_log_names(hub: LocalHub, three: Sequence[Release]) -> None:
    hub.repo(TARGET).delete_ref(f"refs/tags/{three[1].job.tag}")
    assert tags(read(hub)) == [item.job.tag for item in reversed(three)]


def test_releases_from_before_the_log_are_found_by_their_tags(hub: LocalHub, three: Sequence[Release]) -> None:
    put_provenance(hub, replace(made(hub), log=None))
    assert tags(read(hub)) == [item.job.tag for item in reversed(three)]


def test_what_was_changed_by_hand_after_a_release_is_not_its_figures(
    hub: LocalHub, three: Sequence[Release]
) -> None:
    newest = made(hub)
    hub.seed(TARGET, {"provenance.json": to_json(replace(newest, report=replace(newest.report, kl_mean=9.0)))})
    found = read(hub)
    assert tags(found) == [item.job.tag for item in reversed(three)]
    assert found.releases[0].kl_mean == newest.report.kl_mean


def test_a_release_without_its_tag_is_not_shown_but_those_before_it_are(
    hub: LocalHub, three: Sequence[Release]
) -> None:
    hub.repo(TARGET).delete_ref(f"refs/tags/{three[2].job.tag}")
    assert tags(read(hub)) == [three[1].job.tag, three[0].job.tag]


def test_what_is_not_the_release_that_the_next_one_names_ends_the_history(
    hub: LocalHub, three: Sequence[Release]
) -> None:
    newest = made(hub)
    assert newest.log is not None
    assert newest.log.previous is not None
    forged = replace(newest.log, previous=replace(newest.log.previous, sha256="0" * 64))
    put_provenance(hub, replace(newest, log=forged))
    found = read(hub)
    assert tags(found) == [newest.tag]
    assert "is not the release that" in found.problem
    assert not found.whole


@pytest.mark.parametrize(
    "figures", [{"kl_mean": -1.0}, {"kl_mean": 1e300}, {"top1_agreement": 7.0}, {"size_quantized_bytes": 2**2000}]
)
def test_figures_that_cannot_be_right_are_left_out_and_said(
    hub: LocalHub, three: Sequence[Release], figures: dict[str, Any]
) -> None:
    newest = made(hub)
    put_provenance(hub, replace(newest, report=replace(newest.report, **figures)))
    found = read(hub)
    assert tags(found) == [three[1].job.tag, three[0].job.tag]
    assert found.problem == "a release with figures that cannot be right is left out"


def test_a_target_that_is_not_there_or_not_ours_has_no_releases(hub: LocalHub) -> None:
    assert read(hub) == ReleaseHistory(repo_id=TARGET)
    hub.seed("quantized/Other", {"README.md": "by hand"})
    assert read(hub, "quantized/Other").releases == ()


def test_a_hub_that_fails_is_a_problem_of_that_target_alone(
    hub: LocalHub, three: Sequence[Release], monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.faults.add(Fault(path="/commits/", status=403, times=1))
    found = read(hub)
    assert (found.releases, found.problem) == ((), "its history answers 403")
