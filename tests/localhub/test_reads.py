"""Reading: what the Hub says about repos, and the files themselves."""

from __future__ import annotations

import http.client
import json
import struct
from pathlib import Path

import pytest
from huggingface_hub import (
    HfApi,
    RepoFile,
    RepoFolder,
    get_hf_file_metadata,
    hf_hub_download,
    hf_hub_url,
    snapshot_download,
)
from huggingface_hub.errors import (
    BadRequestError,
    EntryNotFoundError,
    HfHubHTTPError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import get_session

from bot.localhub import Limits, LocalHub

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


def safetensors_bytes(tensors: dict[str, tuple[str, list[int], int]]) -> bytes:
    """name → (dtype, shape, bytes)."""
    header, offset = {}, 0
    for name, (dtype, shape, size) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + bytes(offset)


WEIGHTS = safetensors_bytes({"a": ("F16", [4, 8], 64), "b": ("I32", [3], 12)})


@pytest.fixture
def sha(hub: LocalHub) -> str:
    files: dict[str, bytes | str | Path] = {
        "README.md": CARD,
        "config.json": json.dumps(CONFIG),
        "tokenizer_config.json": json.dumps({"eos_token": "</s>", "model_max_length": 5}),
        "model.safetensors": WEIGHTS,
        "assets/a/x.txt": "x",
        "assets/y.txt": "y",
    }
    return hub.seed(REPO, files)


def test_model_info(anonymous: HfApi, sha: str) -> None:
    info = anonymous.model_info(REPO, files_metadata=True)
    assert (info.id, info.author, info.sha) == (REPO, "upstream", sha)
    assert info.private is False
    assert info.gated is False
    assert info.disabled is False
    assert info.library_name == "transformers"
    assert info.pipeline_tag == "text-generation"
    assert info.last_modified is not None
    assert info.created_at is not None
    assert info.card_data is not None
    assert info.card_data.license == "apache-2.0"
    assert info.card_data.base_model == "someone/base"
    assert info.card_data.language == ["en", "no"]  # `no` is a language, not a falsehood
    assert info.card_data.get("date") == "2024-01-02"
    assert info.safetensors is not None
    assert info.safetensors.parameters == {"F16": 32, "I32": 3}
    assert info.safetensors.total == 35
    siblings = {sibling.rfilename: sibling for sibling in info.siblings or ()}
    weights = siblings["model.safetensors"]
    assert weights.size == len(WEIGHTS)
    assert weights.lfs is not None
    assert weights.lfs.size == len(WEIGHTS)
    assert siblings["README.md"].lfs is None
    assert siblings["README.md"].size == len(CARD)


def test_config_is_a_stub(anonymous: HfApi, sha: str) -> None:
    assert anonymous.model_info(REPO).config == {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "tokenizer_config": {"eos_token": "</s>"},
    }


def test_tags_come_from_the_card_and_the_files(anonymous: HfApi, sha: str) -> None:
    assert set(anonymous.model_info(REPO).tags or ()) == {
        "transformers", "safetensors", "llama", "text-generation", "chat", "en", "no", "dataset:a/b",
        "base_model:someone/base", "base_model:quantized:someone/base", "license:apache-2.0", "4-bit", "awq",
        "region:us",
    }  # fmt: skip


def test_expand_answers_only_what_was_asked(hub: LocalHub, anonymous: HfApi, sha: str) -> None:
    info = anonymous.model_info(REPO, expand=["sha", "gated", "siblings", "safetensors"])
    assert info.sha == sha
    assert info.gated is False
    assert info.card_data is None
    assert info.tags is None
    assert all(sibling.size is None for sibling in info.siblings or ())
    with pytest.raises(BadRequestError):
        anonymous.model_info(REPO, expand=["nonsense"])  # type: ignore[list-item]


def test_sharded_parameters_are_summed_and_missing_shards_mean_unknown(hub: LocalHub, anonymous: HfApi) -> None:
    index = json.dumps({"weight_map": {"a": "m-1.safetensors", "b": "m-2.safetensors"}})
    hub.seed(REPO, {"model.safetensors.index.json": index, "m-1.safetensors": WEIGHTS})
    assert anonymous.model_info(REPO).safetensors is None
    hub.seed(REPO, {"m-2.safetensors": WEIGHTS})
    safetensors = anonymous.model_info(REPO).safetensors
    assert safetensors is not None
    assert safetensors.total == 70
    assert anonymous.get_safetensors_metadata(REPO).parameter_count == {"F16": 64, "I32": 6}


def test_not_found_errors_are_told_apart(
    hub: LocalHub, api: HfApi, anonymous: HfApi, sha: str, tmp_path: Path
) -> None:
    for client in (api, anonymous):
        with pytest.raises(RepositoryNotFoundError):
            client.model_info("nobody/nothing")
        with pytest.raises(RevisionNotFoundError):
            client.model_info(REPO, revision="nowhere")
        with pytest.raises(RevisionNotFoundError):
            client.model_info(REPO, revision=sha[:7])
        with pytest.raises(RemoteEntryNotFoundError) as caught:
            client.hf_hub_download(REPO, "nothing.bin", cache_dir=tmp_path)
        assert caught.value.response.headers["X-Repo-Commit"] == sha
    assert anonymous.file_exists(REPO, "config.json")
    assert not anonymous.file_exists(REPO, "nothing")
    assert not anonymous.revision_exists(REPO, "nothing")


def test_dataset_and_model_of_one_name_are_two_repos(hub: LocalHub, anonymous: HfApi, tmp_path: Path) -> None:
    hub.seed("a/b", {"x": "model"})
    hub.seed("a/b", {"x": "dataset", "d.parquet": b"PAR1"}, repo_type="dataset")
    hub.seed("a/b", {"p.parquet": b"PAR1"}, repo_type="dataset", revision="refs/convert/parquet")
    path = hf_hub_download("a/b", "x", repo_type="dataset", endpoint=hub.endpoint, cache_dir=tmp_path, token=False)
    assert Path(path).read_text() == "dataset"
    assert anonymous.dataset_info("a/b").sha == hub.history("a/b", repo_type="dataset")[0].sha
    converted = anonymous.hf_hub_download(
        "a/b", "p.parquet", repo_type="dataset", revision="refs/convert/parquet", cache_dir=tmp_path
    )
    assert Path(converted).read_bytes() == b"PAR1"
    assert [ref.name for ref in anonymous.list_repo_refs("a/b", repo_type="dataset").converts] == ["parquet"]
    assert [info.id for info in anonymous.list_datasets(author="a")] == ["a/b"]


def test_list_models_filters(hub: LocalHub, anonymous: HfApi, api: HfApi, sha: str) -> None:
    hub.seed("upstream/other", {"README.md": "---\nlicense: mit\n---\n"}, gated="auto")
    hub.seed("else/third", {})
    hub.seed("quantized/secret", {}, private=True)
    assert {info.id for info in anonymous.list_models()} == {REPO, "upstream/other", "else/third"}
    assert {info.id for info in api.list_models(author="quantized")} == {"quantized/secret"}
    assert [info.id for info in anonymous.list_models(author="upstream", search="OTH")] == ["upstream/other"]
    assert [info.id for info in anonymous.list_models(filter=["license:mit"])] == ["upstream/other"]
    assert [info.id for info in anonymous.list_models(gated=True)] == ["upstream/other"]
    assert [info.id for info in anonymous.list_models(pipeline_tag="text-generation")] == [REPO]
    newest = [info.id for info in anonymous.list_models(sort="last_modified", limit=2)]
    assert newest == ["else/third", "upstream/other"]
    expanded = list(
        anonymous.list_models(author="upstream", search="tiny", expand=["sha", "siblings", "cardData"])
    )
    assert expanded[0].sha == sha
    assert expanded[0].card_data is not None
    assert expanded[0].siblings


def test_pages_of_models_trees_and_commits(tmp_path: Path) -> None:
    limits = Limits(list_page=2, tree_page=3, expanded_tree_page=2, commits_page=2)
    with LocalHub(tmp_path / "hub", limits=limits) as hub:
        client = HfApi(endpoint=hub.endpoint, token=False)
        for number in range(5):
            hub.seed(f"a/m{number}", {})
        assert [info.id for info in client.list_models(author="a")] == [f"a/m{number}" for number in range(5)]
        assert [info.id for info in client.list_models(limit=3)] == ["a/m0", "a/m1", "a/m2"]

        names = [f"d/{number}.txt" for number in range(7)]
        hub.seed("a/m0", dict.fromkeys(names, "x"), message="seven")
        for number in range(4):
            hub.seed("a/m0", {"one": str(number)}, message=f"n{number}")
        items = list(client.list_repo_tree("a/m0", recursive=True))
        assert [item.path for item in items] == sorted([".gitattributes", "d", *names, "one"])
        hub.clear_requests()
        expanded = {item.path: item for item in client.list_repo_tree("a/m0", recursive=True, expand=True)}
        assert len(hub.requests) == 5
        assert {path: item.last_commit.title for path, item in expanded.items() if item.last_commit} == {
            ".gitattributes": "initial commit", "d": "seven", **dict.fromkeys(names, "seven"), "one": "n3",
        }  # fmt: skip
        titles = [commit.title for commit in client.list_repo_commits("a/m0")]
        assert titles == ["n3", "n2", "n1", "n0", "seven", "Upload files", "initial commit"]


def test_tree_of_a_folder_and_paths_info(anonymous: HfApi, sha: str) -> None:
    top = list(anonymous.list_repo_tree(REPO))
    assert {item.path for item in top if isinstance(item, RepoFolder)} == {"assets"}
    below = list(anonymous.list_repo_tree(REPO, "assets", recursive=True, revision=sha))
    assert [item.path for item in below] == ["assets/a", "assets/a/x.txt", "assets/y.txt"]
    with pytest.raises(EntryNotFoundError):
        list(anonymous.list_repo_tree(REPO, "nothing"))

    infos = anonymous.get_paths_info(REPO, ["model.safetensors", "assets", "nothing"], expand=True)
    assert [info.path for info in infos] == ["assets", "model.safetensors"]
    weights = infos[1]
    assert isinstance(weights, RepoFile)
    assert weights.lfs is not None
    assert weights.last_commit is not None
    assert weights.last_commit.oid == sha


def test_download_of_a_large_file_goes_to_the_second_host_without_the_token(
    hub: LocalHub, api: HfApi, sha: str, tmp_path: Path
) -> None:
    path = api.hf_hub_download(REPO, "model.safetensors", cache_dir=tmp_path)
    assert Path(path).read_bytes() == WEIGHTS
    (fetched,) = [record for record in hub.requests if record.host == "files"]
    assert (fetched.method, fetched.status, fetched.bytes_sent) == ("GET", 200, len(WEIGHTS))
    assert not fetched.authenticated


def test_the_second_host_refuses_a_token_and_a_changed_link(hub: LocalHub, sha: str) -> None:
    url = hf_hub_url(REPO, "model.safetensors", endpoint=hub.endpoint)
    location = get_session().head(url, follow_redirects=False).headers["Location"]
    assert location.startswith("http://localhost:")
    assert get_session().get(location).content == WEIGHTS
    refused = get_session().get(location, headers={"authorization": f"Bearer {hub.token()}"})
    assert refused.status_code == 400
    assert get_session().get(location.replace("signature=", "signature=0")).status_code == 403
    assert get_session().get(location.replace("expires=", "expires=9")).status_code == 403
    other = location.replace("/objects/", "/uploads/").partition("/model.safetensors")
    assert get_session().put(other[0] + other[2].partition("?")[1] + other[2].partition("?")[2]).status_code == 403


@pytest.mark.parametrize("name", ["model.safetensors", "README.md"])
def test_file_metadata_and_ranges(hub: LocalHub, sha: str, name: str) -> None:
    whole = hub.files(REPO)[name]
    url = hf_hub_url(REPO, name, endpoint=hub.endpoint)
    metadata = get_hf_file_metadata(url, token=False)
    entry = hub.history(REPO)[0].files[name]
    assert metadata.commit_hash == sha
    assert metadata.etag == (entry.sha256 if entry.is_lfs else entry.blob_id)
    assert metadata.size == len(whole)
    part = get_session().get(url, headers={"Range": "bytes=3-10"}, follow_redirects=True)
    assert (part.status_code, part.content) == (206, whole[3:11])
    assert part.headers["Content-Range"] == f"bytes 3-10/{len(whole)}"
    tail = get_session().get(url, headers={"Range": f"bytes={len(whole) - 4}-"}, follow_redirects=True)
    assert tail.content == whole[-4:]
    beyond = get_session().get(url, headers={"Range": f"bytes={len(whole)}-"}, follow_redirects=True)
    assert beyond.status_code == 416


def test_snapshot_of_a_revision(hub: LocalHub, sha: str, tmp_path: Path) -> None:
    hub.seed(REPO, {"later": "x"}, delete=["config.json"])
    hub.seed(REPO, {"pr": "x"}, revision="refs/pr/1")
    folder = snapshot_download(REPO, revision=sha, endpoint=hub.endpoint, cache_dir=tmp_path, token=False)
    found = {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in Path(folder).rglob("*")
        if path.is_file()
    }
    assert found == hub.files(REPO, sha)
    assert "config.json" in found
    from_pr = snapshot_download(
        REPO, revision="refs/pr/1", endpoint=hub.endpoint, cache_dir=tmp_path, token=False, allow_patterns=["pr"]
    )
    assert (Path(from_pr) / "pr").read_text() == "x"


def test_seed_can_replace_a_whole_repo_and_take_a_folder(hub: LocalHub, sha: str, tmp_path: Path) -> None:
    (tmp_path / "new" / "sub").mkdir(parents=True)
    (tmp_path / "new" / "sub" / "w.bin").write_bytes(b"\0\1\2")
    hub.seed(REPO, tmp_path / "new", replace_all=True, message="anew", author="someone")
    assert sorted(hub.files(REPO)) == [".gitattributes", "sub/w.bin"]
    commit = hub.history(REPO)[0]
    assert (commit.title, commit.author, commit.parent) == ("anew", "someone", sha)
    assert commit.files["sub/w.bin"].is_lfs


def test_raw_path_is_what_is_routed(hub: LocalHub, sha: str) -> None:
    hub.seed(REPO, {"a/r%C3%A9sum&#é.txt": "odd"})
    url = hf_hub_url(REPO, "a/r%C3%A9sum&#é.txt", endpoint=hub.endpoint)
    assert get_session().get(url).text == "odd"


@pytest.mark.parametrize(
    "path",
    [
        "/api/models/..%2F..%2Fetc/passwd",
        "/api/models/a/..",
        "/api/models/%2e%2e/x",
        "/api/models/datasets/x",
        "/a/b%00c/resolve/main/x",
    ],
)
def test_hostile_repo_ids_are_refused(hub: LocalHub, path: str) -> None:
    connection = http.client.HTTPConnection(hub.endpoint.removeprefix("http://"))
    connection.request("GET", path)
    assert connection.getresponse().status == 400
    connection.close()


def test_unknown_routes_and_agent_harnesses_are_404(hub: LocalHub) -> None:
    assert get_session().get(f"{hub.endpoint}/api/agent-harnesses").status_code == 404
    assert get_session().get(f"{hub.endpoint}/api/spaces/a/b").status_code == 404
    assert get_session().get(f"{hub.endpoint}/a/b/c/d/e/f").status_code == 404


def test_links_for_people_open(hub: LocalHub, sha: str) -> None:
    page = get_session().get(f"{hub.endpoint}/{REPO}").text
    assert "model.safetensors" in page
    assert "# Tiny" in page
    assert sha in get_session().get(f"{hub.endpoint}/{REPO}/commit/{sha}").text
    assert REPO in get_session().get(hub.endpoint).text


def test_moved_repo_redirects(hub: LocalHub, sha: str, tmp_path: Path) -> None:
    token = hub.add_token("mover", orgs=["upstream", "renamed"])
    client = HfApi(endpoint=hub.endpoint, token=token)
    client.move_repo(REPO, "renamed/tiny2")
    assert client.model_info(REPO).id == "renamed/tiny2"
    path = client.hf_hub_download(REPO, "model.safetensors", cache_dir=tmp_path)
    assert Path(path).read_bytes() == WEIGHTS
    hub.seed("upstream/third", {})
    with pytest.raises(HfHubHTTPError) as caught:
        client.move_repo("upstream/third", "renamed/tiny2")
    assert caught.value.response.status_code == 409
    client.create_repo(REPO)
    assert client.model_info(REPO).id == REPO
