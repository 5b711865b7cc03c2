"""Who may not publish, what is not ours, and who was there first."""

from __future__ import annotations

from pathlib import Path

import pytest
from huggingface_hub import CommitOperationAdd, HfApi

from bot.errors import EnvironmentProblem, PublishError
from bot.hub.publish import Artifact, finish, publish
from bot.hub.session import Hub
from bot.localhub import Fault, LocalHub
from bot.records import Job, no_progress
from tests.support.repos import (
    SOURCE,
    TARGET,
    as_bot,
    forget_requests,
    make_artifact,
    release_job,
    requests,
    writes,
)


def is_private(hub: LocalHub) -> bool:
    return hub.repo(TARGET).settings().private


# --- refusals -----------------------------------------------------------------------------------------------


def test_without_a_token_nothing_is_asked(hub: LocalHub, job: Job, artifact: Artifact) -> None:
    forget_requests(hub)
    with pytest.raises(PublishError, match="no token") as caught:
        publish(Hub(hub.endpoint, hub.token("bot")), job, artifact, no_progress)
    assert "HF_WRITE_TOKEN" in caught.value.hint
    assert hub.requests == ()


def test_read_only_token_is_told_what_it_lacks(hub: LocalHub, job: Job, artifact: Artifact) -> None:
    token = hub.token("bot", role="read")
    with pytest.raises(PublishError, match=r"may not create the repo \(403: .*write role") as caught:
        publish(Hub(hub.endpoint, token, token), job, artifact, no_progress)
    assert caught.value.exit_code == 7
    assert "HF_WRITE_TOKEN needs write access to 'quantized'" in caught.value.hint
    assert token not in caught.value.message + caught.value.hint
    assert not hub.store.exists(TARGET)


def test_namespace_of_somebody_else_is_refused(hub: LocalHub, tmp_path: Path) -> None:
    job = release_job(hub, target="lab/Tiny-awq")
    with pytest.raises(PublishError, match="lab/Tiny-awq: the token may not create the repo") as caught:
        publish(as_bot(hub), job, make_artifact(tmp_path / "job", job), no_progress)
    assert "'lab'" in caught.value.hint


def test_revoked_token_is_an_environment_problem(hub: LocalHub, job: Job, artifact: Artifact) -> None:
    caller = as_bot(hub)
    hub.revoke_token(str(caller.write_token))
    with pytest.raises(EnvironmentProblem, match="refuses the token"):
        publish(caller, job, artifact, no_progress)


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"model.safetensors": b"theirs"}, "content that awq-bot did not publish"),
        ({"provenance.json": b"{}"}, "cannot be read"),
    ],
)
def test_foreign_repo_is_left_alone(
    hub: LocalHub, job: Job, artifact: Artifact, files: dict[str, bytes], words: str
) -> None:
    hub.seed(TARGET, files)
    forget_requests(hub)
    with pytest.raises(PublishError, match=words) as caught:
        publish(as_bot(hub), job, artifact, no_progress)
    assert "target" in caught.value.hint
    assert writes(hub) == []


def test_file_that_is_nowhere_is_missed_before_anything_is_sent(
    hub: LocalHub, job: Job, artifact: Artifact
) -> None:
    (artifact.folders[0] / "model.safetensors").unlink()
    forget_requests(hub)
    with pytest.raises(PublishError, match=r"model\.safetensors is neither in the job's folder nor on the Hub"):
        publish(as_bot(hub), job, artifact, no_progress)
    assert requests(hub, "PUT", "/uploads/") == []


def test_card_that_the_hub_refuses_is_named(hub: LocalHub, job: Job, artifact: Artifact) -> None:
    (artifact.folders[1] / "README.md").write_text("---\nlicense: nonsense\n---\n")
    with pytest.raises(PublishError, match=r"refused: .*license") as caught:
        publish(as_bot(hub), job, artifact, no_progress)
    assert "README.md" in caught.value.hint


def test_only_files_of_the_artifact_are_sent(hub: LocalHub, job: Job, artifact: Artifact) -> None:
    (artifact.folders[0] / ".model.safetensors.tmp").write_bytes(b"half")
    publish(as_bot(hub), job, artifact, no_progress)
    assert set(hub.files(TARGET)) == {file.path for file in artifact.files} | {".gitattributes"}


# --- commits of others --------------------------------------------------------------------------------------


def test_commit_of_somebody_else_meanwhile_is_not_overwritten(
    hub: LocalHub, api: HfApi, job: Job, artifact: Artifact
) -> None:
    def meddle(what: str, done: int, total: int, unit: str) -> None:
        if what.startswith("upload") and done == total:
            api.create_commit(TARGET, [CommitOperationAdd("note.md", b"x")], commit_message="by hand")

    with pytest.raises(PublishError) as caught:
        publish(as_bot(hub), job, artifact, meddle)
    assert caught.value.exit_code == 7
    assert caught.value.hint
    assert [commit.title for commit in hub.history(TARGET)] == ["by hand", "initial commit"]
    assert is_private(hub)


def test_update_overtaken_by_somebody_else_says_so(
    hub: LocalHub, api: HfApi, job: Job, artifact: Artifact, tmp_path: Path
) -> None:
    def meddle(what: str, done: int, total: int, unit: str) -> None:
        if what.startswith("upload") and done == total:
            api.create_commit(TARGET, [CommitOperationAdd("note.md", b"x")], commit_message="by hand")

    publish(as_bot(hub), job, artifact, no_progress)
    hub.seed(SOURCE, {"config.json": "{}"})
    newer = release_job(hub)
    with pytest.raises(PublishError, match="another run published there meanwhile"):
        publish(as_bot(hub), newer, make_artifact(tmp_path / "newer", newer), meddle)
    assert hub.history(TARGET)[0].title == "by hand"


@pytest.mark.parametrize("lost", [True, False], ids=["lost", "refused"])
def test_commit_is_made_once_whatever_happens_to_its_answer(
    hub: LocalHub, job: Job, artifact: Artifact, lost: bool
) -> None:
    hub.faults.add(Fault(path="/commit/", lose_answer=lost, status=None if lost else 503))
    assert publish(as_bot(hub), job, artifact, no_progress).new
    assert len(hub.history(TARGET)) == 2
    assert len(requests(hub, "POST", "/commit/")) == (1 if lost else 2)


def test_commit_that_never_gets_through_is_an_error(hub: LocalHub, job: Job, artifact: Artifact) -> None:
    hub.faults.add(Fault(path="/commit/", status=403, body="quota", times=None))
    with pytest.raises(PublishError, match=r"may not commit \(403"):
        publish(as_bot(hub), job, artifact, no_progress)
    assert len(requests(hub, "POST", "/commit/")) == 1


def test_tag_on_another_commit_is_noticed_before_anything_is_sent(
    hub: LocalHub, api: HfApi, job: Job, artifact: Artifact
) -> None:
    api.create_repo(TARGET, private=True)
    api.create_tag(TARGET, tag=job.tag)
    forget_requests(hub)
    with pytest.raises(PublishError, match=f"the tag {job.tag} is already on .*") as caught:
        publish(as_bot(hub), job, artifact, no_progress)
    assert "Delete that tag" in caught.value.hint
    assert writes(hub) == []


def test_tag_that_appears_on_another_commit_keeps_the_repo_incomplete(
    hub: LocalHub, api: HfApi, job: Job, artifact: Artifact
) -> None:
    first = publish(as_bot(hub), job, artifact, no_progress)
    api.delete_tag(TARGET, tag=job.tag)
    api.create_tag(TARGET, tag=job.tag, revision=hub.history(TARGET)[1].sha)
    with pytest.raises(PublishError, match="already"):
        finish(as_bot(hub), job, no_progress)
    assert hub.history(TARGET)[0].sha == first.sha
