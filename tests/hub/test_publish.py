"""From a folder to a repo: the order of the steps, and that publishing again changes nothing."""

from __future__ import annotations

import re
import time
from pathlib import Path

import pytest
import stamina
from huggingface_hub import HfApi

from bot.errors import PublishError
from bot.localhub import Fault, LocalHub
from bot.records import TargetState
from tests.support.release import Release
from tests.support.repos import CARD, SOURCE, TARGET, all_requests, forget_requests, requests, seal, writes

CHANGES = re.compile(r"/repos/create|/uploads/|/commit/|/settings|/tag/|/resolve/")


# --- the order ----------------------------------------------------------------------------------------------


def test_everything_is_published_as_it_was_made(hub: LocalHub, release: Release) -> None:
    publication = release.publish()
    newest, initial = hub.history(TARGET)
    sent = {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for folder in release.artifact.folders
        for path in folder.rglob("*")
        if path.is_file()
    }
    assert {path: content for path, content in hub.files(TARGET).items() if path != ".gitattributes"} == sent
    assert (newest.title, newest.parent) == (release.artifact.summary, initial.sha)
    assert hub.refs(TARGET) == {"refs/heads/main": newest.sha, f"refs/tags/{release.job.tag}": newest.sha}
    assert (publication.sha, publication.tag) == (newest.sha, release.job.tag)
    assert (publication.private, publication.new) == (False, True)
    assert publication.url == f"{hub.endpoint}/{TARGET}"
    assert (release.complete, release.private) == (True, False)


def test_steps_come_in_their_order(hub: LocalHub, release: Release) -> None:
    forget_requests(hub)
    release.publish()
    steps = [found[0].strip("/") for item in all_requests(hub) if (found := CHANGES.search(item.path))]
    tagging, opening, commit = (steps.index(step) for step in ("tag", "settings", "commit"))
    assert steps.index("repos/create") < steps.index("uploads") < commit < opening < tagging
    assert [steps.count(step) for step in ("repos/create", "commit", "settings", "tag")] == [1, 1, 1, 1]
    assert "uploads" not in steps[commit:]
    # Every file but the provenance, which was read with the state.
    assert steps[commit:opening].count("resolve") >= len(release.artifact.files)
    assert steps[tagging + 1 :] == []


def test_repo_is_private_until_everything_was_read_back(hub: LocalHub, release: Release) -> None:
    """The last file is never read back, so the repo stays private, however often it is tried."""
    hub.faults.add(Fault(path="/resolve/.*tokenizer.json", method="GET", status=404, times=None))
    for _ in range(2):
        assert "again" in release.fails(r"tokenizer\.json is missing").hint
        assert release.private
        assert list(hub.refs(TARGET)) == ["refs/heads/main"]
    hub.faults.clear()
    assert release.publish().new
    assert (len(hub.history(TARGET)), release.private) == (2, False)


def test_hashing_sending_and_reading_back_are_reported_by_bytes(hub: LocalHub, tmp_path: Path) -> None:
    release = Release.of(hub, tmp_path, {"config.json": b"{}", "model.safetensors": b"int4" * 2**20})
    seen: list[tuple[str, int, int, str]] = []
    # Neither a part that is sent again nor a file that is read again may count twice.
    hub.faults.add(Fault(path="/uploads/", method="PUT", status=503))
    hub.faults.add(Fault(path="/objects/.*/model", method="GET", cut_after_bytes=3_000_000))
    release.publish(lambda *report: seen.append(report))
    sizes = {file.path: file.size_bytes for file in release.artifact.files}
    everything = sum(sizes.values())
    expected = {"hash": everything, "upload": everything, "read back": everything - sizes["provenance.json"]}
    for what, total in expected.items():
        reports = [report[1:] for report in seen if report[0] == f"{what} {TARGET}"]
        assert reports[-1] == (total, total, "B")
        assert len(reports) > len(sizes) + 2  # many for the large file
        assert len([done for done, *_ in reports if done == total]) == 1


# --- again --------------------------------------------------------------------------------------------------


def test_publishing_again_writes_nothing(hub: LocalHub, release: Release) -> None:
    first = release.publish()
    forget_requests(hub)
    second = release.publish()
    assert writes(hub) == []
    assert len(hub.requests) <= 4
    assert (second.sha, second.new) == (first.sha, False)


def test_publication_without_its_tag_is_finished_from_the_hub_alone(hub: LocalHub, release: Release) -> None:
    hub.faults.add(Fault(path="/tag/", status=403))
    release.fails("not permitted to create the tag")
    forget_requests(hub)
    assert release.finish().new
    assert release.complete
    assert [line.rsplit("/", 2)[1] for line in writes(hub)] == ["tag"]


def test_publication_that_was_deleted_cannot_be_finished(release: Release) -> None:
    with pytest.raises(PublishError, match="no longer exists") as caught:
        release.finish()
    assert caught.value.hint == "Plan again."


@pytest.mark.parametrize("lost", [False, True], ids=["busy", "lost"])
def test_every_step_can_be_retried(hub: LocalHub, release: Release, lost: bool) -> None:
    for step in ("/refs", "/repos/create", "/preupload/", "/objects/batch", "/uploads/", "/settings", "/tag/"):
        hub.faults.add(Fault(path=step, status=None if lost else 503, lose_answer=lost))
    with stamina.set_testing(True, attempts=3):
        assert release.publish().new
    assert hub.faults.pending == ()
    assert release.complete
    assert len(hub.history(TARGET)) == 2


# --- visibility and gating ----------------------------------------------------------------------------------


def test_empty_public_repo_is_private_until_it_is_read_back(hub: LocalHub, api: HfApi, release: Release) -> None:
    api.create_repo(TARGET)
    seen: list[bool] = []
    release.publish(lambda *_: seen.append(release.private))
    assert set(seen) == {True}
    assert not release.private


def test_repo_made_by_hand_with_a_first_card_counts_as_empty(hub: LocalHub, api: HfApi, release: Release) -> None:
    api.create_repo(TARGET, private=True)
    assert release.publish().new
    assert hub.files(TARGET)["README.md"] == CARD.encode()


@pytest.mark.parametrize("why", ["entry", "upstream"])
def test_private_stays_private(hub: LocalHub, tmp_path: Path, why: str) -> None:
    source = "bot/Secret" if why == "upstream" else SOURCE
    if why == "upstream":
        hub.seed(source, {"config.json": "{}", "model.safetensors": b"1"}, private=True)
    release = Release.of(hub, tmp_path, repo_id=source, private=why == "entry")
    assert release.publish().private
    assert (release.private, release.complete) == (True, True)


@pytest.mark.parametrize("gated", ["auto", "manual"])
def test_gating_of_upstream_is_set_before_the_repo_is_public(
    hub: LocalHub, release: Release, tmp_path: Path, gated: str
) -> None:
    hub.seed(SOURCE, {}, gated="manual" if gated == "manual" else "auto")
    release = Release.of(hub, tmp_path)
    hub.faults.add(Fault(path="/settings", status=403))
    assert "stays private" in release.fails("gating could not be set").hint
    assert (release.private, list(hub.refs(TARGET))) == (True, ["refs/heads/main"])
    forget_requests(hub)
    release.publish()
    assert (hub.repo(TARGET).settings().gated, release.private) == (gated, False)
    assert len(requests(hub, "PUT", "/settings")) == 2


def test_visibility_that_may_not_be_changed_is_named(hub: LocalHub, release: Release) -> None:
    hub.faults.add(Fault(path="/settings", status=403, times=None))
    release.fails("not permitted to make it public")
    assert release.private
    assert release.state.state is TargetState.OURS


def test_large_artifact_takes_few_requests(hub: LocalHub, tmp_path: Path) -> None:
    shards = {f"model-{number:05}-of-00012.safetensors": bytes([number]) * 4000 for number in range(12)}
    release = Release.of(hub, tmp_path, shards)
    forget_requests(hub)
    started = time.monotonic()
    release.publish()
    assert time.monotonic() - started < 20
    api_calls = [item for item in hub.requests if item.host == "hub" and "/resolve/" not in item.path]
    assert len(api_calls) <= 3 * len(shards) + 20


def test_only_files_of_the_artifact_are_sent(hub: LocalHub, release: Release) -> None:
    """Neither a temporary file in the folder, nor one that is not in the provenance."""
    folder = release.artifact.folders[0]
    (folder / ".model.safetensors.tmp").write_bytes(b"half")
    listed = [file for file in release.artifact.files if file.path not in ("provenance.json", "tokenizer.json")]
    sealed = Release(hub, release.job, seal(folder.parent, release.job, listed), release.caller)
    assert sealed.publish().new
    assert set(hub.files(TARGET)) == release.paths - {"tokenizer.json"}
