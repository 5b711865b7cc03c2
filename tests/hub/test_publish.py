"""From a folder to a repo: the order of the steps, who may not publish, and other runs that were first."""

from __future__ import annotations

import base64
import json
import re
from pathlib import Path
from typing import Any

import pytest
import stamina
from huggingface_hub import CommitOperationAdd, HfApi

from bot.errors import BotError, PublishError
from bot.hub.session import Hub
from bot.localhub import Fault, LocalHub
from bot.records import TargetState
from tests.support.release import Release
from tests.support.repos import SOURCE, TARGET, all_requests, forget_requests, requests, seal, source_files, writes

CHANGES = re.compile(r"/repos/create|/uploads/|/commit/|/settings|/tag/|/resolve/")


# --- the order ----------------------------------------------------------------------------------------------


def test_everything_is_published_as_it_was_made(hub: LocalHub, release: Release) -> None:
    publication = release.publish()
    newest, initial = hub.history(TARGET)
    content = hub.files(TARGET)
    assert set(content) == release.paths
    made = {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for folder in release.artifact.folders
        for path in folder.rglob("*.*")
    }
    first = {"log": {"previous": None}}
    assert json.loads(content.pop("provenance.json")) == json.loads(made.pop("provenance.json")) | first
    assert {path: content[path] for path in made} == made
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
    total = sum(sizes.values()) - sizes["provenance.json"]  # which is completed when it is sent
    for what in ("hash", "upload", "read back"):
        reports = [report[1:] for report in seen if report[0] == f"{what} {TARGET}"]
        assert reports[-1] == (total, total, "B")
        assert len(reports) > len(sizes) + 1  # many for the large file
        assert len([done for done, *_ in reports if done == total]) == 1


# --- again --------------------------------------------------------------------------------------------------


def test_publishing_again_writes_nothing(hub: LocalHub, release: Release) -> None:
    first = release.publish()
    forget_requests(hub)
    second = release.publish()
    assert (second.sha, second.new, writes(hub)) == (first.sha, False, [])
    assert len(hub.requests) <= 4


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


@pytest.mark.parametrize("source", [SOURCE, "bot/Secret"])
def test_private_stays_private(hub: LocalHub, tmp_path: Path, source: str) -> None:
    """The entry asks for it, or upstream is private."""
    hub.seed(source, {"config.json": "{}", "model.safetensors": b"1"}, private=source != SOURCE)
    release = Release.of(hub, tmp_path, repo_id=source, private=source == SOURCE)
    assert release.publish().private
    assert (release.private, release.complete) == (True, True)


@pytest.mark.parametrize("gated", ["auto", "manual"])
def test_gating_of_upstream_is_set_before_the_repo_is_public(hub: LocalHub, tmp_path: Path, gated: Any) -> None:
    hub.seed(SOURCE, source_files(), gated=gated)
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
    release.publish()
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


# --- who may not publish ------------------------------------------------------------------------------------


def test_without_a_token_nothing_is_requested(hub: LocalHub, release: Release) -> None:
    caller = Hub(hub.endpoint, hub.token("bot"))
    forget_requests(hub)
    assert "HF_WRITE_TOKEN" in release.by(caller).fails("no token").hint
    assert hub.requests == ()


def test_read_token_is_refused_with_what_it_lacks(hub: LocalHub, release: Release) -> None:
    token = hub.token("bot", role="read")
    error = release.by(Hub(hub.endpoint, token, token)).fails(r"permitted to create the repo \(403: .*write role")
    assert error.exit_code == 7
    assert "HF_WRITE_TOKEN needs write access to 'quantized'" in error.hint
    assert token not in error.message + error.hint
    assert not hub.store.exists(TARGET)


@pytest.mark.parametrize(
    ("name", "words"),
    [("model.safetensors", "content that awq-bot did not publish"), ("provenance.json", "cannot be read")],
)
def test_foreign_repo_is_not_changed(hub: LocalHub, release: Release, name: str, words: str) -> None:
    hub.seed(TARGET, {name: b"{}"})
    forget_requests(hub)
    assert "target" in release.fails(words).hint
    assert writes(hub) == []


def test_missing_file_is_found_before_anything_is_sent(hub: LocalHub, release: Release) -> None:
    (release.artifact.folders[0] / "model.safetensors").unlink()
    release.fails(r"model\.safetensors is neither in the job's folder nor on the Hub")
    assert requests(hub, "PUT", "/uploads/") == []


@pytest.mark.parametrize("written", ["as it is", "base64"])
def test_file_with_a_secret_of_this_process_is_not_published(
    hub: LocalHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, written: str
) -> None:
    secret = "a-secret-that-nothing-writes"
    content = secret.encode() if written == "as it is" else base64.b64encode(secret.encode())
    release = Release.of(hub, tmp_path, {"config.json": b'{"x": "%b"}' % content})
    monkeypatch.setenv("HF_CREATE_TOKEN", secret)
    error = release.fails("config.json has a secret of this process in it")
    assert secret not in error.message
    assert not [item for item in all_requests(hub) if "preupload" in item.path]
    assert release.private


@pytest.mark.parametrize("path", ["/preupload/", "/objects/batch"])
def test_answer_of_another_form_is_named(hub: LocalHub, release: Release, path: str) -> None:
    """JSON, as a gateway answers, where huggingface_hub itself looks at the form and raises ValueError."""
    hub.faults.add(Fault(path=path, status=200, body='{"error": "no"}', times=None))
    with stamina.set_testing(True, attempts=2):
        release.fails("an answer is not one of the Hub's API", BotError)


def test_card_that_the_hub_refuses_is_named(release: Release) -> None:
    (release.artifact.folders[1] / "README.md").write_text("---\nlicense: nonsense\n---\n")
    assert "README.md" in release.fails(r"refused: .*license").hint


# --- commits by others --------------------------------------------------------------------------------------


@pytest.mark.parametrize("update", [False, True], ids=["first release", "update"])
def test_commit_by_another_run_is_not_overwritten(
    hub: LocalHub, api: HfApi, release: Release, tmp_path: Path, update: bool
) -> None:
    def commit_by_hand(what: str, done: int, total: int, unit: str) -> None:
        if what.startswith("upload") and done == total:
            api.create_commit(TARGET, [CommitOperationAdd("note.md", b"x")], commit_message="by hand")

    if update:
        release.publish()
        release = release.next(tmp_path)
    words = (
        "another run has published to it since the plan was made"
        if update
        else "content that awq-bot did not publish"
    )
    assert release.fails(words, progress=commit_by_hand).exit_code == 7
    assert hub.history(TARGET)[0].title == "by hand"
    assert (len(hub.history(TARGET)), release.private) == (3 if update else 2, not update)


@pytest.mark.parametrize("lost", [True, False], ids=["lost", "refused"])
def test_commit_is_made_once_whatever_happens_to_its_answer(hub: LocalHub, release: Release, lost: bool) -> None:
    hub.faults.add(Fault(path="/commit/", lose_answer=lost, status=None if lost else 503))
    assert release.publish().new
    assert len(hub.history(TARGET)) == 2
    assert len(requests(hub, "POST", "/commit/")) == (1 if lost else 2)


def test_commit_that_is_refused_is_not_retried(hub: LocalHub, release: Release) -> None:
    hub.faults.add(Fault(path="/commit/", status=403, body="quota", times=None))
    release.fails(r"not permitted to commit \(403")
    assert len(requests(hub, "POST", "/commit/")) == 1


def test_tag_on_another_commit_is_found_before_uploading(hub: LocalHub, api: HfApi, release: Release) -> None:
    api.create_repo(TARGET, private=True)
    api.create_tag(TARGET, tag=release.job.tag)
    forget_requests(hub)
    assert "Delete that tag" in release.fails(f"the tag {release.job.tag} is already on ").hint
    assert writes(hub) == []


def test_tag_that_was_moved_keeps_the_repo_incomplete(hub: LocalHub, api: HfApi, release: Release) -> None:
    first = release.publish()
    api.delete_tag(TARGET, tag=release.job.tag)
    api.create_tag(TARGET, tag=release.job.tag, revision=hub.history(TARGET)[1].sha)
    with pytest.raises(PublishError, match="already"):
        release.finish()
    assert hub.history(TARGET)[0].sha == first.sha
