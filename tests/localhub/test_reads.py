"""Reading: what the API says about repos, and the files themselves."""

from __future__ import annotations

import http.client
import json
import struct
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import HfApi, RepoFile, RepoFolder, get_hf_file_metadata, hf_hub_url
from huggingface_hub.errors import (
    BadRequestError,
    EntryNotFoundError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import get_session

from bot.localhub import Limits, LocalHub
from bot.localhub.store import Content
from tests.support.commits import refused

REPO = "upstream/tiny"
CARD = """---
license: apache-2.0
base_model: someone/base
language: [en, no]
tags: [chat]
datasets: [a/b]
date: 2024-01-02
---
# Tiny
"""
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 64,
    "quantization_config": {"quant_method": "awq", "bits": 4},
}
_HEADER = json.dumps(
    {
        "a": {"dtype": "F16", "shape": [4, 8], "data_offsets": [0, 64]},
        "b": {"dtype": "I32", "shape": [3], "data_offsets": [64, 76]},
    }
).encode()
WEIGHTS = struct.pack("<Q", len(_HEADER)) + _HEADER + bytes(76)


@pytest.fixture
def sha(hub: LocalHub) -> str:
    files: dict[str, Content] = {
        "README.md": CARD,
        "config.json": json.dumps(CONFIG),
        "tokenizer_config.json": json.dumps({"eos_token": "</s>", "model_max_length": 5}),
        "model.safetensors": WEIGHTS,
        "assets/a/x.txt": "x",
        "assets/y.txt": "y",
    }
    return hub.seed(REPO, files)


def test_model_info_is_made_from_card_config_and_weights(anonymous: HfApi, sha: str) -> None:
    info = anonymous.model_info(REPO, files_metadata=True)
    assert (info.id, info.author, info.sha) == (REPO, "upstream", sha)
    assert (info.private, info.gated, info.disabled) == (False, False, False)
    assert (info.library_name, info.pipeline_tag) == ("transformers", "text-generation")
    assert None not in (info.last_modified, info.created_at)
    # `no` is a language, and a date is text.
    assert info.card_data
    expected = {"license": "apache-2.0", "language": ["en", "no"], "date": "2024-01-02"}
    assert {key: info.card_data.get(key) for key in expected} == expected
    assert info.safetensors
    assert (info.safetensors.parameters, info.safetensors.total) == ({"F16": 32, "I32": 3}, 35)
    siblings = {item.rfilename: (item.size, bool(item.lfs)) for item in info.siblings or ()}
    assert siblings["model.safetensors"] == (len(WEIGHTS), True)
    assert siblings["README.md"] == (len(CARD), False)
    # Of config.json and tokenizer_config.json only what the Hub shows.
    stub = {key: CONFIG[key] for key in ("architectures", "model_type")}
    assert info.config == stub | {"tokenizer_config": {"eos_token": "</s>"}}
    assert set(info.tags or ()) == {
        "transformers", "safetensors", "llama", "text-generation", "chat", "en", "no", "dataset:a/b",
        "base_model:someone/base", "base_model:quantized:someone/base", "license:apache-2.0", "4-bit", "awq",
        "region:us",
    }  # fmt: skip
    some = anonymous.model_info(REPO, expand=["sha", "gated", "siblings"])
    assert (some.sha, some.gated, some.card_data, some.tags) == (sha, False, None, None)
    assert {sibling.size for sibling in some.siblings or ()} == {None}
    with pytest.raises(BadRequestError):
        anonymous.model_info(REPO, expand=["nonsense"])  # type: ignore[list-item]


def test_sharded_parameters_are_summed_and_missing_shards_mean_unknown(hub: LocalHub, anonymous: HfApi) -> None:
    index = json.dumps({"weight_map": {"a": "m-1.safetensors", "b": "m-2.safetensors"}})
    hub.seed(REPO, {"model.safetensors.index.json": index, "m-1.safetensors": WEIGHTS})
    assert anonymous.model_info(REPO).safetensors is None
    hub.seed(REPO, {"m-2.safetensors": WEIGHTS})
    assert anonymous.get_safetensors_metadata(REPO).parameter_count == {"F16": 64, "I32": 6}


def test_what_is_missing_has_its_own_error(anonymous: HfApi, sha: str, tmp_path: Path) -> None:
    with pytest.raises(RepositoryNotFoundError):
        anonymous.model_info("missing/missing")
    for revision in ("missing", sha[:7]):
        with pytest.raises(RevisionNotFoundError):
            anonymous.model_info(REPO, revision=revision)
    with pytest.raises(RemoteEntryNotFoundError) as caught:
        anonymous.hf_hub_download(REPO, "nothing.bin", cache_dir=tmp_path)
    assert caught.value.response.headers["X-Repo-Commit"] == sha
    assert anonymous.file_exists(REPO, "config.json")


def test_dataset_and_model_of_one_name_are_two_repos(hub: LocalHub, anonymous: HfApi, tmp_path: Path) -> None:
    parquet = "refs/convert/parquet"
    hub.seed("a/b", {"x": "model"})
    sha = hub.seed("a/b", {"x": "dataset", "d.parquet": b"PAR1"}, repo_type="dataset")
    hub.seed("a/b", {"p.parquet": b"PAR1"}, repo_type="dataset", revision=parquet)
    for name, revision, content in (("x", None, b"dataset"), ("p.parquet", parquet, b"PAR1")):
        path = anonymous.hf_hub_download("a/b", name, repo_type="dataset", revision=revision, cache_dir=tmp_path)
        assert Path(path).read_bytes() == content
    assert anonymous.dataset_info("a/b").sha == sha
    assert [ref.name for ref in anonymous.list_repo_refs("a/b", repo_type="dataset").converts] == ["parquet"]
    assert [info.id for info in anonymous.list_datasets(author="a")] == ["a/b"]


def test_list_models_filters(hub: LocalHub, anonymous: HfApi, api: HfApi, sha: str) -> None:
    hub.seed("upstream/other", {"README.md": "---\nlicense: mit\n---\n"}, gated="auto")
    hub.repo("upstream/other").update_settings(downloads=7)
    hub.seed("else/third", {})
    hub.seed("quantized/secret", {}, private=True)
    assert [info.id for info in api.list_models(author="quantized")] == ["quantized/secret"]
    queries: list[tuple[dict[str, Any], list[str]]] = [
        ({}, ["else/third", "upstream/other", REPO]),
        ({"author": "upstream", "search": "OTH"}, ["upstream/other"]),
        ({"filter": ["license:mit"]}, ["upstream/other"]),
        ({"gated": True}, ["upstream/other"]),
        ({"pipeline_tag": "text-generation"}, [REPO]),
        ({"sort": "last_modified", "limit": 2}, ["else/third", "upstream/other"]),
        ({"sort": "downloads", "limit": 1}, ["upstream/other"]),
    ]
    for query, expected in queries:
        assert [info.id for info in anonymous.list_models(**query)] == expected
    (info,) = anonymous.list_models(author="upstream", search="tiny", expand=["sha", "siblings", "cardData"])
    assert (info.sha, bool(info.card_data), bool(info.siblings)) == (sha, True, True)
    heads = list(
        anonymous.list_models(author="Upstream", expand=["sha", "lastModified", "gated", "private", "disabled"])
    )
    assert [(head.sha, head.gated, head.private, head.disabled) for head in heads] == [
        (hub.refs("upstream/other")["refs/heads/main"], "auto", False, False),
        (sha, False, False, False),
    ]
    assert all(head.last_modified == anonymous.model_info(head.id).last_modified for head in heads)


def test_pages_of_models_trees_and_commits(tmp_path: Path) -> None:
    limits = Limits(list_page=2, tree_page=3, expanded_tree_page=2, commits_page=2)
    with LocalHub(tmp_path / "hub", limits=limits) as hub:
        client = HfApi(endpoint=hub.endpoint, token=False)
        for number in range(5):
            hub.seed(f"a/m{number}", {})
        assert [info.id for info in client.list_models(author="a")] == [f"a/m{number}" for number in range(5)]
        assert [info.id for info in client.list_models(limit=3)] == ["a/m0", "a/m1", "a/m2"]
        answer = get_session().get(f"{hub.endpoint}/api/models?author=a&limit=1&sort=createdAt&expand[]=sha")
        assert [item["id"] for item in answer.json()] == ["a/m4"]
        again = get_session().get(answer.links["next"]["url"])
        assert [(item["id"], "sha" in item) for item in again.json()] == [("a/m3", True)]
        names = [f"d/{number}.txt" for number in range(7)]
        hub.seed("a/m0", dict.fromkeys(names, "x"), message="seven")
        for number in range(4):
            hub.seed("a/m0", {"one": str(number)}, message=f"n{number}")
        hub.clear_requests()
        items = {item.path: item for item in client.list_repo_tree("a/m0", recursive=True, expand=True)}
        assert (list(items), len(hub.requests)) == ([".gitattributes", "d", *names, "one"], 5)
        last = {path: item.last_commit.title for path, item in items.items() if item.last_commit}
        assert last == {".gitattributes": "initial commit", "one": "n3"} | dict.fromkeys(("d", *names), "seven")
        titles = [commit.title for commit in client.list_repo_commits("a/m0")]
        assert titles == ["n3", "n2", "n1", "n0", "seven", "Upload files", "initial commit"]


def test_tree_of_a_folder_and_paths_info(anonymous: HfApi, sha: str) -> None:
    assert {item.path for item in anonymous.list_repo_tree(REPO) if isinstance(item, RepoFolder)} == {"assets"}
    below = list(anonymous.list_repo_tree(REPO, "assets", recursive=True, revision=sha))
    assert [item.path for item in below] == ["assets/a", "assets/a/x.txt", "assets/y.txt"]
    with pytest.raises(EntryNotFoundError):
        list(anonymous.list_repo_tree(REPO, "nothing"))
    folder, weights = anonymous.get_paths_info(REPO, ["model.safetensors", "assets", "nothing"], expand=True)
    assert (folder.path, weights.path) == ("assets", "model.safetensors")
    assert isinstance(weights, RepoFile)
    assert weights.lfs
    assert weights.last_commit
    assert weights.last_commit.oid == sha


def test_large_files_come_from_a_second_host_that_refuses_a_token_and_a_changed_link(
    hub: LocalHub, api: HfApi, sha: str, tmp_path: Path
) -> None:
    assert Path(api.hf_hub_download(REPO, "model.safetensors", cache_dir=tmp_path)).read_bytes() == WEIGHTS
    (fetched,) = [record for record in hub.requests if record.host == "files"]
    assert (fetched.authenticated, fetched.bytes_sent) == (False, len(WEIGHTS))
    url = hf_hub_url(REPO, "model.safetensors", endpoint=hub.endpoint)
    location = get_session().head(url, follow_redirects=False).headers["Location"]
    assert location.startswith("http://localhost:")
    refused = get_session().get(location, headers={"authorization": f"Bearer {hub.token()}"})
    assert refused.status_code == 400
    assert get_session().get(location.replace("signature=", "signature=0")).status_code == 403
    assert get_session().get(location.replace("expires=", "expires=9")).status_code == 403
    upload = location.replace("/objects/", "/uploads/").replace("/model.safetensors", "")
    assert get_session().put(upload).status_code == 403


@pytest.mark.parametrize("name", ["model.safetensors", "README.md"])
def test_file_metadata_and_ranges(hub: LocalHub, sha: str, name: str) -> None:
    whole, entry = hub.files(REPO)[name], hub.history(REPO)[0].files[name]
    url, size = hf_hub_url(REPO, name, endpoint=hub.endpoint), len(whole)
    metadata = get_hf_file_metadata(url, token=False)
    etag = entry.sha256 if entry.is_lfs else entry.blob_id
    assert (metadata.commit_hash, metadata.etag, metadata.size) == (sha, etag, size)
    part, tail, beyond = (
        get_session().get(url, headers={"Range": f"bytes={wanted}"}, follow_redirects=True)
        for wanted in ("3-10", f"{size - 4}-", f"{size}-")
    )
    assert (part.status_code, part.content, tail.content) == (206, whole[3:11], whole[-4:])
    assert part.headers["Content-Range"] == f"bytes 3-10/{size}"
    assert beyond.status_code == 416


def test_seed_can_replace_a_whole_repo_and_take_a_folder(hub: LocalHub, sha: str, tmp_path: Path) -> None:
    (tmp_path / "new" / "sub").mkdir(parents=True)
    (tmp_path / "new" / "sub" / "w.bin").write_bytes(b"\0\1\2")
    hub.seed(REPO, tmp_path / "new", replace_all=True, message="replaced", author="someone")
    assert sorted(hub.files(REPO)) == [".gitattributes", "sub/w.bin"]
    commit = hub.history(REPO)[0]
    assert (commit.title, commit.author, commit.parent) == ("replaced", "someone", sha)
    assert commit.files["sub/w.bin"].is_lfs


def test_raw_path_is_what_is_routed(hub: LocalHub, sha: str) -> None:
    hub.seed(REPO, {"a/r%C3%A9sum&#é.txt": "odd"})
    url = hf_hub_url(REPO, "a/r%C3%A9sum&#é.txt", endpoint=hub.endpoint)
    assert get_session().get(url).text == "odd"


@pytest.mark.parametrize(
    ("status", "paths"),
    [
        (400, ["/api/models/..%2F..%2Fetc/passwd", "/api/models/a/..", "/api/models/%2e%2e/x"]),
        (400, ["/api/models/datasets/x", "/a/b%00c/resolve/main/x"]),
        (404, ["/api/agent-harnesses", "/api/spaces/a/b", "/a/b/c/d/e/f"]),
    ],
)
def test_hostile_repo_ids_and_unknown_routes_are_refused(hub: LocalHub, status: int, paths: list[str]) -> None:
    for path in paths:
        connection = http.client.HTTPConnection(hub.endpoint.removeprefix("http://"))
        connection.request("GET", path)
        assert connection.getresponse().status == status
        connection.close()


def test_moved_repo_redirects_until_its_name_is_taken(hub: LocalHub, sha: str, tmp_path: Path) -> None:
    token = hub.add_token("mover", orgs=["upstream", "renamed"])
    client = HfApi(endpoint=hub.endpoint, token=token)
    client.move_repo(REPO, "renamed/tiny2")
    assert client.model_info(REPO).id == "renamed/tiny2"
    path = client.hf_hub_download(REPO, "model.safetensors", cache_dir=tmp_path)
    assert Path(path).read_bytes() == WEIGHTS
    hub.seed("upstream/third", {})
    assert refused(lambda: client.move_repo("upstream/third", "renamed/tiny2")) == 409
    client.create_repo(REPO)
    assert client.model_info(REPO).id == REPO
