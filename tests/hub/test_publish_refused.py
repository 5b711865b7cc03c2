"""Who may not publish, repos that awq-bot did not make, and other runs that were first."""

from __future__ import annotations

from pathlib import Path

import pytest
from huggingface_hub import CommitOperationAdd, HfApi

from bot.errors import EnvironmentProblem, PublishError
from bot.hub.session import Hub
from bot.localhub import Fault, LocalHub
from tests.support.release import Release
from tests.support.repos import TARGET, forget_requests, requests, writes


def test_without_a_token_nothing_is_requested(hub: LocalHub, release: Release) -> None:
    caller = Hub(hub.endpoint, hub.token("bot"))
    forget_requests(hub)
    assert "HF_WRITE_TOKEN" in release.by(caller).fails("no token").hint
    assert hub.requests == ()


def test_read_token_is_refused_with_what_it_lacks(hub: LocalHub, release: Release) -> None:
    token = hub.token("bot", role="read")
    error = release.by(Hub(hub.endpoint, token, token)).fails(
        r"not permitted to create the repo \(403: .*write role"
    )
    assert error.exit_code == 7
    assert "HF_WRITE_TOKEN needs write access to 'quantized'" in error.hint
    assert token not in error.message + error.hint
    assert not hub.store.exists(TARGET)


def test_namespace_of_another_account_is_refused(hub: LocalHub, tmp_path: Path) -> None:
    release = Release.of(hub, tmp_path, target="lab/Tiny-awq")
    assert "'lab'" in release.fails("lab/Tiny-awq: the token is not permitted to create the repo").hint


def test_revoked_token_is_an_environment_problem(hub: LocalHub, release: Release) -> None:
    hub.revoke_token(str(release.caller.write_token))
    release.fails("refuses the token", EnvironmentProblem)


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"model.safetensors": b"theirs"}, "content that awq-bot did not publish"),
        ({"provenance.json": b"{}"}, "cannot be read"),
    ],
)
def test_foreign_repo_is_not_changed(hub: LocalHub, release: Release, files: dict[str, bytes], words: str) -> None:
    hub.seed(TARGET, files)
    forget_requests(hub)
    assert "target" in release.fails(words).hint
    assert writes(hub) == []


def test_missing_file_is_found_before_anything_is_sent(hub: LocalHub, release: Release) -> None:
    (release.artifact.folders[0] / "model.safetensors").unlink()
    release.fails(r"model\.safetensors is neither in the job's folder nor on the Hub")
    assert requests(hub, "PUT", "/uploads/") == []


def test_card_that_the_hub_refuses_is_named(release: Release) -> None:
    (release.artifact.folders[1] / "README.md").write_text("---\nlicense: nonsense\n---\n")
    assert "README.md" in release.fails(r"refused: .*license").hint


# --- commits of others --------------------------------------------------------------------------------------


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
    words = "another run has published to it" if update else "content that awq-bot did not publish"
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


def test_tag_on_another_commit_is_found_before_anything_is_sent(
    hub: LocalHub, api: HfApi, release: Release
) -> None:
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
