"""Writing: commits with small and large files, parents, branches and tags."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import CommitOperationAdd, CommitOperationCopy, CommitOperationDelete, HfApi
from huggingface_hub.errors import BadRequestError, EntryNotFoundError, HfHubHTTPError, RevisionNotFoundError
from huggingface_hub.utils import get_session

from bot.localhub import Limits, LocalHub

REPO = "quantized/tiny-awq"
CARD = b"---\nlicense: mit\n---\n# Tiny\n"


def add(path: str, content: bytes) -> CommitOperationAdd:
    return CommitOperationAdd(path_in_repo=path, path_or_fileobj=content)


def bearer(hub: LocalHub) -> dict[str, str]:
    return {"authorization": f"Bearer {hub.token()}"}


def test_new_repo_holds_one_commit_with_gitattributes(hub: LocalHub, api: HfApi) -> None:
    url = api.create_repo(REPO)

    assert url.repo_id == REPO
    assert str(url) == f"{hub.endpoint}/{REPO}"
    commits = api.list_repo_commits(REPO)
    assert [commit.title for commit in commits] == ["initial commit"]
    assert list(hub.files(REPO)) == [".gitattributes"]
    assert b"*.safetensors filter=lfs" in hub.files(REPO)[".gitattributes"]


def test_create_repo_twice_is_a_conflict_unless_exist_ok(api: HfApi) -> None:
    api.create_repo(REPO)
    with pytest.raises(HfHubHTTPError) as caught:
        api.create_repo(REPO)
    assert caught.value.response.status_code == 409
    assert api.create_repo(REPO, exist_ok=True).repo_id == REPO


def test_commit_round_trip_of_small_and_large_files(hub: LocalHub, api: HfApi, tmp_path: Path) -> None:
    weights = os.urandom(300_000)
    path = tmp_path / "model.safetensors"
    path.write_bytes(weights)
    api.create_repo(REPO)
    info = api.create_commit(
        REPO,
        [
            add("README.md", CARD),
            add("assets/plot.png", b"\x89PNG\r\n\x1a\n\0" + bytes(50)),
            add("empty.bin", b""),
            CommitOperationAdd(path_in_repo="model.safetensors", path_or_fileobj=path),
        ],
        commit_message="Publish",
        commit_description="All at once.",
    )

    assert info.oid == api.model_info(REPO).sha
    assert hub.files(REPO, info.oid)["model.safetensors"] == weights
    assert hub.files(REPO)["README.md"] == CARD
    entries = hub.history(REPO)[0].files
    assert {path for path, entry in entries.items() if entry.is_lfs} == {"model.safetensors", "assets/plot.png"}
    assert entries["model.safetensors"].sha256 == hashlib.sha256(weights).hexdigest()
    commit = api.list_repo_commits(REPO)[0]
    assert (commit.title, commit.message, commit.authors) == ("Publish", "All at once.", ["bot"])


def test_large_file_outside_every_pattern_is_added_to_gitattributes(hub: LocalHub, api: HfApi) -> None:
    api.create_repo(REPO)
    api.create_commit(
        REPO, [add("tokenizer.json", b" " * (10 * 1024 * 1024 + 1)), add("vocab.json", b"{}")], commit_message="x"
    )
    assert hub.files(REPO)[".gitattributes"].endswith(b"tokenizer.json filter=lfs diff=lfs merge=lfs -text\n")
    entries = hub.history(REPO)[0].files
    assert entries["tokenizer.json"].is_lfs
    assert not entries["vocab.json"].is_lfs


def test_known_large_object_is_not_sent_again(hub: LocalHub, api: HfApi) -> None:
    api.create_repo(REPO)
    api.create_commit(REPO, [add("a.bin", b"\1" * 100)], commit_message="a")
    hub.clear_requests()
    api.create_commit(REPO, [add("b.bin", b"\1" * 100)], commit_message="b")
    assert not [record for record in hub.requests if record.method == "PUT"]
    assert hub.files(REPO)["b.bin"] == b"\1" * 100


def test_unchanged_files_make_no_commit(hub: LocalHub, api: HfApi) -> None:
    api.create_repo(REPO)
    operations = {"README.md": CARD, "a.bin": b"\1\2"}
    first = api.create_commit(REPO, [add(*item) for item in operations.items()], commit_message="a")
    second = api.create_commit(REPO, [add(*item) for item in operations.items()], commit_message="b")
    assert first.oid == second.oid
    assert len(hub.history(REPO)) == 2


@pytest.mark.parametrize("size", [2001, 4096, 5000])
def test_multipart_upload(tmp_path: Path, size: int) -> None:
    content = os.urandom(size)
    limits = Limits(multipart_above_bytes=2000, part_bytes=1024)
    with LocalHub(tmp_path / "hub", limits=limits) as hub:
        api = HfApi(endpoint=hub.endpoint, token=hub.token())
        api.create_repo(REPO)
        api.create_commit(REPO, [add("a.bin", content)], commit_message="a")
        puts = [record for record in hub.requests if record.method == "PUT"]
        assert len(puts) == -(-size // 1024)
        assert not any(record.authenticated for record in puts)
        assert hub.files(REPO)["a.bin"] == content
        assert list(hub.store.temporary.iterdir()) == []


def lfs_batch(hub: LocalHub, oid: str, size: int) -> dict[str, Any]:
    answer = get_session().post(
        f"{hub.endpoint}/{REPO}.git/info/lfs/objects/batch",
        headers=bearer(hub),
        json={"operation": "upload", "transfers": ["basic"], "objects": [{"oid": oid, "size": size}]},
    )
    assert answer.status_code == 200
    item: dict[str, Any] = answer.json()["objects"][0]
    return item


@pytest.mark.parametrize("sent", [b"other", b"toolong", b"s"])
def test_upload_that_is_not_what_its_id_says_is_refused(hub: LocalHub, api: HfApi, sent: bytes) -> None:
    api.create_repo(REPO)
    oid = hashlib.sha256(b"right").hexdigest()
    actions = lfs_batch(hub, oid, 5)["actions"]
    assert get_session().put(actions["upload"]["href"], content=sent).status_code == 400
    verify = get_session().post(actions["verify"]["href"], headers=bearer(hub), json={"oid": oid, "size": 5})
    assert verify.status_code == 404
    assert "actions" in lfs_batch(hub, oid, 5)
    assert list(hub.store.temporary.iterdir()) == []


def test_commit_of_an_object_that_was_never_uploaded_is_refused(hub: LocalHub, api: HfApi) -> None:
    api.create_repo(REPO)
    lines = (
        b'{"key": "header", "value": {"summary": "x"}}\n'
        b'{"key": "lfsFile", "value": {"path": "a.bin", "algo": "sha256", "size": 5, "oid": "' + b"a" * 64 + b'"}}'
    )
    url = f"{hub.endpoint}/api/models/{REPO}/commit/main"
    answer = get_session().post(url, headers=bearer(hub), content=lines)
    assert answer.status_code == 400
    assert "does not exist" in answer.json()["error"]
    assert len(hub.history(REPO)) == 1


def test_stale_parent_is_refused_and_the_head_accepted(hub: LocalHub, api: HfApi) -> None:
    api.create_repo(REPO)
    first = hub.history(REPO)[0].sha
    second = api.create_commit(REPO, [add("a", b"1")], commit_message="a", parent_commit=first).oid
    with pytest.raises(HfHubHTTPError) as caught:
        api.create_commit(REPO, [add("a", b"2")], commit_message="b", parent_commit=first)
    assert caught.value.response.status_code == 412
    api.create_commit(REPO, [add("a", b"3")], commit_message="c", parent_commit=second[:7])
    assert hub.files(REPO)["a"] == b"3"


def test_delete_files_and_folders_and_copy(hub: LocalHub, api: HfApi) -> None:
    api.create_repo(REPO)
    names = ["keep", "gone", "folder/a", "folder/deep/b", "folderlike"]
    api.create_commit(
        REPO, [add(name, name.encode()) for name in names] + [add("w.bin", b"\0w")], commit_message="a"
    )
    api.create_commit(
        REPO,
        [
            CommitOperationDelete(path_in_repo="gone"),
            CommitOperationDelete(path_in_repo="folder/"),
            CommitOperationCopy(src_path_in_repo="w.bin", path_in_repo="w2.bin"),
            CommitOperationCopy(src_path_in_repo="keep", path_in_repo="kept"),
        ],
        commit_message="b",
    )
    assert sorted(hub.files(REPO)) == [".gitattributes", "folderlike", "keep", "kept", "w.bin", "w2.bin"]
    assert hub.files(REPO)["w2.bin"] == b"\0w"
    with pytest.raises(EntryNotFoundError):
        api.delete_file("nothing", REPO)


def test_a_file_cannot_take_the_place_of_a_folder(hub: LocalHub, api: HfApi) -> None:
    api.create_repo(REPO)
    api.create_commit(REPO, [add("a/b", b"1")], commit_message="a")
    with pytest.raises(BadRequestError):
        api.create_commit(REPO, [add("a", b"1")], commit_message="b")
    assert hub.files(REPO)["a/b"] == b"1"


def test_tags_and_branches_are_created_once_and_deleted(hub: LocalHub, api: HfApi) -> None:
    api.create_repo(REPO)
    first = hub.history(REPO)[0].sha
    api.create_commit(REPO, [add("a", b"1")], commit_message="a")
    api.create_tag(REPO, tag="v1/rc", revision=first, tag_message="the first")
    api.create_branch(REPO, branch="feature/x", revision=first)
    with pytest.raises(HfHubHTTPError) as caught:
        api.create_tag(REPO, tag="v1/rc")
    assert caught.value.response.status_code == 409
    api.create_tag(REPO, tag="v1/rc", exist_ok=True)
    api.create_branch(REPO, branch="feature/x", exist_ok=True)

    assert api.model_info(REPO, revision="v1/rc").sha == first
    on_branch = api.create_commit(REPO, [add("b", b"2")], commit_message="b", revision="feature/x").oid
    assert "b" not in hub.files(REPO)
    assert hub.files(REPO, "feature/x") == {**hub.files(REPO, first), "b": b"2"}
    refs = api.list_repo_refs(REPO)
    assert {ref.name: ref.target_commit for ref in refs.tags} == {"v1/rc": first}
    assert {ref.ref: ref.target_commit for ref in refs.branches}["refs/heads/feature/x"] == on_branch

    api.delete_tag(REPO, tag="v1/rc")
    api.delete_branch(REPO, branch="feature/x")
    assert list(hub.refs(REPO)) == ["refs/heads/main"]
    with pytest.raises(RevisionNotFoundError):
        api.delete_tag(REPO, tag="v1/rc")
    with pytest.raises(HfHubHTTPError, match="main branch cannot be deleted"):
        api.delete_branch(REPO, branch="main")


def test_commit_to_a_missing_branch_is_revision_not_found(hub: LocalHub, api: HfApi) -> None:
    api.create_repo(REPO)
    with pytest.raises(RevisionNotFoundError):
        api.create_commit(REPO, [add("a", b"1")], commit_message="a", revision="nowhere")


def test_pull_request_gets_its_own_ref(hub: LocalHub, api: HfApi, reader: HfApi) -> None:
    api.create_repo(REPO)
    info = reader.create_commit(REPO, [add("a", b"1"), add("w.bin", b"\0")], commit_message="a", create_pr=True)
    assert info.pr_revision == "refs/pr/1"
    assert "a" not in hub.files(REPO)
    assert reader.model_info(REPO, revision="refs/pr/1").sha == info.oid
    pulls = reader.list_repo_refs(REPO, include_pull_requests=True).pull_requests
    assert pulls is not None
    assert [pull.ref for pull in pulls] == ["refs/pr/1"]


def test_upload_folder(hub: LocalHub, api: HfApi, tmp_path: Path) -> None:
    (tmp_path / "m" / "sub").mkdir(parents=True)
    (tmp_path / "m" / "config.json").write_text("{}")
    (tmp_path / "m" / "sub" / "x.bin").write_bytes(b"\0\1")
    api.create_repo("quantized/data", repo_type="dataset")
    api.upload_folder(repo_id="quantized/data", folder_path=tmp_path / "m", repo_type="dataset")
    files = hub.files("quantized/data", repo_type="dataset")
    assert files["sub/x.bin"] == b"\0\1"
    assert files["config.json"] == b"{}"


@pytest.mark.parametrize(
    "path", ["../x", "a/../../x", "/etc/passwd", "a\\b", "a\0b", "a//b", "./a", ".", "", ".git/config", "x" * 300]
)
def test_hostile_paths_are_refused(hub: LocalHub, api: HfApi, path: str) -> None:
    api.create_repo(REPO)
    lines = [
        {"key": "header", "value": {"summary": "x"}},
        {"key": "file", "value": {"path": path, "content": "", "encoding": "base64"}},
    ]
    body = "\n".join(json.dumps(line) for line in lines)
    url = f"{hub.endpoint}/api/models/{REPO}/commit/main"
    answer = get_session().post(url, headers=bearer(hub), content=body)
    assert answer.status_code == 400
    assert len(hub.history(REPO)) == 1


@pytest.mark.parametrize("tag", ["", "a b", "../x", "a..b", "refs/heads/x", "x.lock", "-x", "a~1", "t" * 200])
def test_hostile_refs_are_refused(hub: LocalHub, api: HfApi, tag: str) -> None:
    api.create_repo(REPO)
    url = f"{hub.endpoint}/api/models/{REPO}/tag/main"
    assert get_session().post(url, headers=bearer(hub), json={"tag": tag}).status_code == 400
    assert list(hub.refs(REPO)) == ["refs/heads/main"]
