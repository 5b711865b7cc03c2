"""Writing: commits with small and large files, parents, branches and tags."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import httpx2
import pytest
from huggingface_hub import CommitOperationCopy, CommitOperationDelete, HfApi
from huggingface_hub.errors import BadRequestError, EntryNotFoundError, HfHubHTTPError, RevisionNotFoundError
from huggingface_hub.utils import get_session

from bot.localhub import Limits, LocalHub
from tests.support.commits import push, refused

REPO = "quantized/tiny-awq"
CARD = b"---\nlicense: mit\n---\n# Tiny\n"


@pytest.fixture
def repo(hub: LocalHub, api: HfApi) -> str:
    """A new repo; returns its first commit."""
    assert api.create_repo(REPO).repo_id == REPO
    return hub.history(REPO)[0].sha


def post(hub: LocalHub, path: str, body: Any) -> httpx2.Response:
    content = body if isinstance(body, str) else json.dumps(body)
    headers = {"authorization": f"Bearer {hub.token()}", "content-type": "application/json"}
    return get_session().post(f"{hub.endpoint}{path}", headers=headers, content=content)


def post_commit(hub: LocalHub, key: str, value: dict[str, Any]) -> httpx2.Response:
    lines = [{"key": "header", "value": {"summary": "x"}}, {"key": key, "value": value}]
    return post(hub, f"/api/models/{REPO}/commit/main", "\n".join(json.dumps(line) for line in lines))


def test_new_repo_holds_one_commit_with_gitattributes_and_is_made_once(hub: LocalHub, api: HfApi) -> None:
    assert str(api.create_repo(REPO)) == f"{hub.endpoint}/{REPO}"
    assert [commit.title for commit in api.list_repo_commits(REPO)] == ["initial commit"]
    assert list(hub.files(REPO)) == [".gitattributes"]
    assert b"*.safetensors filter=lfs" in hub.files(REPO)[".gitattributes"]
    assert refused(lambda: api.create_repo(REPO)) == 409
    assert api.create_repo(REPO, exist_ok=True).repo_id == REPO
    api.create_repo(REPO, repo_type="dataset")
    push(api, REPO, {"a": b"1"}, repo_type="dataset")
    assert ("a" in hub.files(REPO, repo_type="dataset"), "a" in hub.files(REPO)) == (True, False)


def test_commit_of_small_and_large_files(hub: LocalHub, api: HfApi, repo: str, tmp_path: Path) -> None:
    path, weights = tmp_path / "model.safetensors", os.urandom(300_000)
    path.write_bytes(weights)
    png = b"\x89PNG\r\n\x1a\n\0" + bytes(50)
    files: dict[str, bytes | Path] = {"README.md": CARD, "assets/plot.png": png, "empty.bin": b"", path.name: path}
    info = push(api, REPO, files, commit_message="Publish", commit_description="All at once.")
    content = hub.files(REPO)
    assert {name: content[name] for name in files} == files | {path.name: weights}
    entries = hub.history(REPO)[0].files
    assert {path for path, entry in entries.items() if entry.is_lfs} == {"model.safetensors", "assets/plot.png"}
    assert entries["model.safetensors"].sha256 == hashlib.sha256(weights).hexdigest()
    commit = api.list_repo_commits(REPO)[0]
    assert (commit.title, commit.message, commit.authors) == ("Publish", "All at once.", ["bot"])
    assert push(api, REPO, {"README.md": CARD, "assets/plot.png": png}).oid == info.oid  # nothing changed


def test_large_file_outside_every_pattern_is_added_to_gitattributes(hub: LocalHub, api: HfApi, repo: str) -> None:
    push(api, REPO, {"tokenizer.json": b" " * (10 * 1024 * 1024 + 1), "vocab.json": b"{}"})
    assert hub.files(REPO)[".gitattributes"].endswith(b"tokenizer.json filter=lfs diff=lfs merge=lfs -text\n")
    entries = hub.history(REPO)[0].files
    assert (entries["tokenizer.json"].is_lfs, entries["vocab.json"].is_lfs) == (True, False)


@pytest.mark.parametrize("size", [2001, 4096, 5000])
def test_multipart_upload(tmp_path: Path, size: int) -> None:
    content = os.urandom(size)
    limits = Limits(multipart_above_bytes=2000, part_bytes=1024)
    with LocalHub(tmp_path / "hub", limits=limits) as hub:
        api = HfApi(endpoint=hub.endpoint, token=hub.token())
        api.create_repo(REPO)
        push(api, REPO, {"a.bin": content})
        puts = [record for record in hub.requests if record.method == "PUT"]
        assert len(puts) == -(-size // 1024)
        assert not any(record.authenticated for record in puts)
        assert hub.files(REPO)["a.bin"] == content
        assert list(hub.store.temporary.iterdir()) == []


@pytest.mark.parametrize("sent", [b"other", b"toolong", b"s"])
def test_upload_that_differs_from_its_sha256_is_refused(hub: LocalHub, repo: str, sent: bytes) -> None:
    oid = hashlib.sha256(b"right").hexdigest()
    wanted = {"operation": "upload", "transfers": ["basic"], "objects": [{"oid": oid, "size": 5}]}
    batch = f"/{REPO}.git/info/lfs/objects"
    actions = post(hub, f"{batch}/batch", wanted).json()["objects"][0]["actions"]
    assert get_session().put(actions["upload"]["href"], content=sent).status_code == 400
    assert post(hub, f"{batch}/verify", {"oid": oid, "size": 5}).status_code == 404
    assert "actions" in post(hub, f"{batch}/batch", wanted).json()["objects"][0]
    assert list(hub.store.temporary.iterdir()) == []


def test_commit_of_an_object_that_was_never_uploaded_is_refused(hub: LocalHub, repo: str) -> None:
    answer = post_commit(hub, "lfsFile", {"path": "a.bin", "algo": "sha256", "size": 5, "oid": "a" * 64})
    assert answer.status_code == 400
    assert "does not exist" in answer.json()["error"]
    assert len(hub.history(REPO)) == 1


def test_stale_parent_is_refused_and_the_head_accepted(hub: LocalHub, api: HfApi, repo: str) -> None:
    head = push(api, REPO, {"a": b"1"}, parent_commit=repo).oid
    assert refused(lambda: push(api, REPO, {"a": b"2"}, parent_commit=repo)) == 412
    push(api, REPO, {"a": b"3"}, parent_commit=head[:7])
    assert hub.files(REPO)["a"] == b"3"


def test_delete_files_and_folders_and_copy(hub: LocalHub, api: HfApi, repo: str) -> None:
    names = ["keep", "gone", "folder/a", "folder/deep/b", "folderlike"]
    push(api, REPO, {name: name.encode() for name in names} | {"w.bin": b"\0w"})
    deleted = [CommitOperationDelete(path_in_repo=path) for path in ("gone", "folder/")]
    copies = {"w.bin": "w2.bin", "keep": "kept"}
    copied = [CommitOperationCopy(src_path_in_repo=old, path_in_repo=new) for old, new in copies.items()]
    api.create_commit(REPO, [*deleted, *copied], commit_message="b")
    assert sorted(hub.files(REPO)) == [".gitattributes", "folderlike", "keep", "kept", "w.bin", "w2.bin"]
    assert hub.files(REPO)["w2.bin"] == b"\0w"
    with pytest.raises(EntryNotFoundError):
        api.delete_file("nothing", REPO)


def test_a_file_cannot_take_the_place_of_a_folder(hub: LocalHub, api: HfApi, repo: str) -> None:
    push(api, REPO, {"a/b": b"1"})
    with pytest.raises(BadRequestError):
        push(api, REPO, {"a": b"1"})
    assert hub.files(REPO)["a/b"] == b"1"


def test_tags_and_branches_are_created_once_and_deleted(hub: LocalHub, api: HfApi, repo: str) -> None:
    push(api, REPO, {"a": b"1"})
    api.create_tag(REPO, tag="v1/rc", revision=repo, tag_message="the first")
    api.create_branch(REPO, branch="feature/x", revision=repo)
    assert refused(lambda: api.create_tag(REPO, tag="v1/rc")) == 409
    assert api.model_info(REPO, revision="v1/rc").sha == repo
    on_branch = push(api, REPO, {"b": b"2"}, revision="feature/x").oid
    assert "b" not in hub.files(REPO)
    assert hub.files(REPO, "feature/x") == {**hub.files(REPO, repo), "b": b"2"}
    refs = api.list_repo_refs(REPO)
    assert {ref.name: ref.target_commit for ref in refs.tags} == {"v1/rc": repo}
    assert {ref.ref: ref.target_commit for ref in refs.branches}["refs/heads/feature/x"] == on_branch
    api.delete_tag(REPO, tag="v1/rc")
    api.delete_branch(REPO, branch="feature/x")
    assert list(hub.refs(REPO)) == ["refs/heads/main"]
    with pytest.raises(RevisionNotFoundError):
        api.delete_tag(REPO, tag="v1/rc")
    with pytest.raises(RevisionNotFoundError):
        push(api, REPO, {"a": b"2"}, revision="no")
    with pytest.raises(HfHubHTTPError, match="main branch cannot be deleted"):
        api.delete_branch(REPO, branch="main")


def test_pull_request_gets_its_own_ref(hub: LocalHub, reader: HfApi, repo: str) -> None:
    info = push(reader, REPO, {"a": b"1", "w.bin": b"\0"}, create_pr=True)
    assert info.pr_revision == "refs/pr/1"
    assert "a" not in hub.files(REPO)
    assert reader.model_info(REPO, revision="refs/pr/1").sha == info.oid
    pulls = reader.list_repo_refs(REPO, include_pull_requests=True).pull_requests
    assert [pull.ref for pull in pulls or ()] == ["refs/pr/1"]


@pytest.mark.parametrize(
    "path", ["../x", "a/../../x", "/etc/passwd", "a\\b", "a\0b", "a//b", "./a", ".", "", ".git/config", "x" * 300]
)
def test_hostile_paths_are_refused(hub: LocalHub, repo: str, path: str) -> None:
    assert post_commit(hub, "file", {"path": path, "content": "", "encoding": "base64"}).status_code == 400
    assert len(hub.history(REPO)) == 1


@pytest.mark.parametrize("tag", ["", "a b", "../x", "a..b", "refs/heads/x", "x.lock", "-x", "a~1", "t" * 200])
def test_hostile_refs_are_refused(hub: LocalHub, repo: str, tag: str) -> None:
    assert post(hub, f"/api/models/{REPO}/tag/main", {"tag": tag}).status_code == 400
    assert list(hub.refs(REPO)) == ["refs/heads/main"]
