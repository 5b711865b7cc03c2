"""From a folder to a repo: the order, the refusals, and that a second time changes nothing."""

from __future__ import annotations

import re
import time
from pathlib import Path

import pytest
import stamina
from huggingface_hub import HfApi

from bot.errors import PublishError
from bot.hub import client
from bot.hub.publish import Artifact, finish, publish
from bot.localhub import Fault, LocalHub
from bot.records import Job, TargetState, no_progress
from tests.support.repos import (
    CARD,
    SOURCE,
    TARGET,
    all_requests,
    as_bot,
    forget_requests,
    make_artifact,
    release_job,
    requests,
    seal,
    writes,
)

CHANGES = re.compile(r"/repos/create|/uploads/|/commit/|/settings|/tag/|/resolve/")


def is_complete(hub: LocalHub, job: Job) -> bool:
    found = client.published(as_bot(hub), [job.entry])[0]
    return found.complete and found.provenance is not None and found.provenance.tag == job.tag


def is_private(hub: LocalHub) -> bool:
    return hub.repo(TARGET).settings().private


# --- the order ----------------------------------------------------------------------------------------------


def test_everything_is_published_as_it_was_made(hub: LocalHub, job: Job, artifact: Artifact) -> None:
    publication = publish(as_bot(hub), job, artifact, no_progress)
    head = hub.history(TARGET)[0].sha
    sent = {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for folder in artifact.folders
        for path in folder.rglob("*")
        if path.is_file()
    }
    assert {path: content for path, content in hub.files(TARGET).items() if path != ".gitattributes"} == sent
    assert hub.refs(TARGET) == {"refs/heads/main": head, f"refs/tags/{job.tag}": head}
    assert (publication.sha, publication.tag, publication.url) == (head, job.tag, f"{hub.endpoint}/{TARGET}")
    assert (publication.private, publication.new) == (False, True)
    assert is_complete(hub, job)
    assert not is_private(hub)


def test_steps_come_in_their_order(hub: LocalHub, job: Job, artifact: Artifact) -> None:
    forget_requests(hub)
    publish(as_bot(hub), job, artifact, no_progress)
    steps = [found[0].strip("/") for item in all_requests(hub) if (found := CHANGES.search(item.path))]
    tagging = steps.index("tag")
    opening = steps.index("settings")
    commit = steps.index("commit")
    assert steps.index("repos/create") < steps.index("uploads") < commit < opening < tagging
    assert [steps.count(step) for step in ("repos/create", "commit", "settings", "tag")] == [1, 1, 1, 1]
    assert "uploads" not in steps[commit:]
    # Every file but the provenance, which was read when the state was.
    assert steps[commit:opening].count("resolve") >= len(artifact.files)
    assert steps[tagging + 1 :] == []


def test_repo_is_private_until_everything_was_read_back(hub: LocalHub, job: Job, artifact: Artifact) -> None:
    """The last file never reads back, so nobody but us may see the repo, however often it is tried."""
    hub.faults.add(Fault(path="/resolve/.*tokenizer.json", method="GET", status=404, times=None))
    for _ in range(2):
        with pytest.raises(PublishError, match=r"tokenizer\.json is missing") as caught:
            publish(as_bot(hub), job, artifact, no_progress)
        assert "again" in caught.value.hint
        assert is_private(hub)
        assert list(hub.refs(TARGET)) == ["refs/heads/main"]
    hub.faults.clear()
    assert publish(as_bot(hub), job, artifact, no_progress).new
    assert (len(hub.history(TARGET)), is_private(hub)) == (2, False)


def test_commit_names_its_parent_and_the_summary(hub: LocalHub, job: Job, artifact: Artifact) -> None:
    publish(as_bot(hub), job, artifact, no_progress)
    newest, initial = hub.history(TARGET)
    assert (newest.title, newest.parent) == (artifact.summary, initial.sha)


def test_hashing_sending_and_reading_back_are_reported_by_bytes(hub: LocalHub, tmp_path: Path) -> None:
    job = release_job(hub)
    artifact = make_artifact(tmp_path / "job", job, {"config.json": b"{}", "model.safetensors": b"int4" * 2**20})
    seen: list[tuple[str, int, int, str]] = []
    # Neither a part that is sent again nor a file that is read again may count twice.
    hub.faults.add(Fault(path="/uploads/", method="PUT", status=503))
    hub.faults.add(Fault(path="/objects/.*/model", method="GET", cut_after_bytes=3_000_000))
    publish(as_bot(hub), job, artifact, lambda *report: seen.append(report))
    sizes = {file.path: file.size_bytes for file in artifact.files}
    everything = sum(sizes.values())
    expected = {"hash": everything, "upload": everything, "read back": everything - sizes["provenance.json"]}
    for what, total in expected.items():
        reports = [report[1:] for report in seen if report[0] == f"{what} {TARGET}"]
        assert reports[-1] == (total, total, "B")
        assert len(reports) > len(sizes) + 2  # many for the large file
        assert len([done for done, *_ in reports if done == total]) == 1


# --- again --------------------------------------------------------------------------------------------------


def test_second_time_writes_nothing(hub: LocalHub, job: Job, artifact: Artifact) -> None:
    first = publish(as_bot(hub), job, artifact, no_progress)
    forget_requests(hub)
    second = publish(as_bot(hub), job, artifact, no_progress)
    assert writes(hub) == []
    assert len(hub.requests) <= 4
    assert (second.sha, second.new) == (first.sha, False)


def test_publication_without_its_tag_is_finished_from_the_hub_alone(
    hub: LocalHub, job: Job, artifact: Artifact
) -> None:
    hub.faults.add(Fault(path="/tag/", status=403, times=None))
    with pytest.raises(PublishError, match="may not create the tag"):
        publish(as_bot(hub), job, artifact, no_progress)
    hub.faults.clear()
    forget_requests(hub)
    assert finish(as_bot(hub), job, no_progress).new
    assert is_complete(hub, job)
    assert [line.rsplit("/", 2)[1] for line in writes(hub)] == ["tag"]


def test_finishing_what_went_away_says_so(hub: LocalHub, job: Job) -> None:
    with pytest.raises(PublishError, match="no longer there") as caught:
        finish(as_bot(hub), job, no_progress)
    assert caught.value.hint == "Plan again."


@pytest.mark.parametrize("lost", [False, True], ids=["busy", "lost"])
def test_every_step_may_have_to_be_repeated(hub: LocalHub, job: Job, artifact: Artifact, lost: bool) -> None:
    for step in ("/refs", "/repos/create", "/preupload/", "/objects/batch", "/uploads/", "/settings", "/tag/"):
        hub.faults.add(Fault(path=step, status=None if lost else 503, lose_answer=lost))
    with stamina.set_testing(True, attempts=3):
        assert publish(as_bot(hub), job, artifact, no_progress).new
    assert hub.faults.pending == ()
    assert is_complete(hub, job)
    assert len(hub.history(TARGET)) == 2


# --- visibility and gating ----------------------------------------------------------------------------------


def test_empty_public_repo_is_closed_until_it_is_read_back(
    hub: LocalHub, api: HfApi, job: Job, artifact: Artifact
) -> None:
    api.create_repo(TARGET)
    seen: list[bool] = []
    publish(as_bot(hub), job, artifact, lambda *_: seen.append(is_private(hub)))
    assert set(seen) == {True}
    assert not is_private(hub)


def test_repo_made_by_hand_with_a_first_card_is_ours_to_fill(
    hub: LocalHub, api: HfApi, job: Job, artifact: Artifact
) -> None:
    api.create_repo(TARGET, private=True)
    assert publish(as_bot(hub), job, artifact, no_progress).new
    assert hub.files(TARGET)["README.md"] == CARD.encode()


@pytest.mark.parametrize("why", ["entry", "upstream"])
def test_private_stays_private(hub: LocalHub, tmp_path: Path, why: str) -> None:
    source = "bot/Secret" if why == "upstream" else SOURCE
    if why == "upstream":
        hub.seed(source, {"config.json": "{}", "model.safetensors": b"1"}, private=True)
    job = release_job(hub, repo_id=source, private=why == "entry")
    publication = publish(as_bot(hub), job, make_artifact(tmp_path / "job", job), no_progress)
    assert publication.private
    assert is_private(hub)
    assert is_complete(hub, job)


@pytest.mark.parametrize("gated", ["auto", "manual"])
def test_gate_of_upstream_is_set_before_the_repo_is_public(hub: LocalHub, tmp_path: Path, gated: str) -> None:
    release_job(hub)
    hub.seed(SOURCE, {}, gated="manual" if gated == "manual" else "auto")
    job = release_job(hub)
    publish(as_bot(hub), job, make_artifact(tmp_path / "job", job), no_progress)
    assert (hub.repo(TARGET).settings().gated, is_private(hub)) == (gated, False)
    assert len(requests(hub, "PUT", "/settings")) == 2


def test_gate_that_may_not_be_set_leaves_the_repo_private(hub: LocalHub, tmp_path: Path) -> None:
    release_job(hub)
    hub.seed(SOURCE, {}, gated="auto")
    job = release_job(hub)
    hub.faults.add(Fault(path="/settings", status=403, times=None))
    with pytest.raises(PublishError, match="gating could not be set") as caught:
        publish(as_bot(hub), job, make_artifact(tmp_path / "job", job), no_progress)
    assert caught.value.exit_code == 7
    assert "stays private" in caught.value.hint
    assert is_private(hub)
    assert list(hub.refs(TARGET)) == ["refs/heads/main"]


def test_visibility_that_may_not_be_changed_is_named(hub: LocalHub, job: Job, artifact: Artifact) -> None:
    hub.faults.add(Fault(path="/settings", status=403, times=None))
    with pytest.raises(PublishError, match="may not make it public"):
        publish(as_bot(hub), job, artifact, no_progress)
    assert is_private(hub)
    assert client.published(as_bot(hub), [job.entry])[0].state is TargetState.OURS


def test_large_artifact_takes_few_requests(hub: LocalHub, job: Job, tmp_path: Path) -> None:
    shards = {f"model-{number:05}-of-00012.safetensors": bytes([number]) * 4000 for number in range(12)}
    forget_requests(hub)
    started = time.monotonic()
    publish(as_bot(hub), job, make_artifact(tmp_path / "job", job, shards), no_progress)
    assert time.monotonic() - started < 20
    api_calls = [item for item in hub.requests if item.host == "hub" and "/resolve/" not in item.path]
    assert len(api_calls) <= 3 * len(shards) + 20


def test_provenance_alone_decides_what_is_read_back(hub: LocalHub, job: Job, artifact: Artifact) -> None:
    """A file of the record that is not in the provenance is sent all the same, and not missed."""
    listed = [file for file in artifact.files if file.path not in ("provenance.json", "tokenizer.json")]
    sealed = seal(artifact.folders[0].parent, job, listed)
    assert publish(as_bot(hub), job, sealed, no_progress).new
    assert "tokenizer.json" not in hub.files(TARGET)
