"""What the plan reads of sources, in how many requests: files, metadata, and a new release's headers."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import stamina
from huggingface_hub import HfApi
from safetensors.numpy import save

from bot.errors import EnvironmentProblem
from bot.hub import fetch
from bot.hub.session import Hub
from bot.hub.sources import read_details, read_sources
from bot.localhub import Fault, LocalHub
from bot.records import Details, Upstream
from tests.support import factories
from tests.support.repos import SOURCE, as_bot, requests, safetensors, source_files, upstream_of


def listed(hub: LocalHub, **entry: Any) -> Upstream:
    return read_sources(as_bot(hub), [factories.entry(**entry)])[0]


def test_source_is_read_in_one_request(hub: LocalHub) -> None:
    sha = hub.seed(SOURCE, source_files())
    found = listed(hub)
    assert [(item.method, item.path) for item in hub.requests] == [("GET", f"/api/models/{SOURCE}/revision/main")]
    assert (found.sha, found.problem, found.gated, found.private) == (sha, None, None, False)
    assert (found.licenses, found.languages, found.tags) == (("apache-2.0",), ("en", "de"), ("chat",))
    assert found.pipeline_tag == "text-generation"
    assert found.last_modified == hub.repo(SOURCE).commit_at("refs/heads/main").date[:10]
    other = hub.seed(SOURCE, {"config.json": "{}"}, revision="refs/pr/1")
    assert listed(hub, revision="refs/pr/1").sha == other


def test_hashes_are_sha256_of_large_files_and_git_ids_of_small_ones(hub: LocalHub) -> None:
    hub.seed(SOURCE, source_files(model__safetensors=b"1234", LICENSE="hello\n"))
    weights, license_file = listed(hub).file("model.safetensors"), listed(hub).file("LICENSE")
    assert weights is not None
    assert license_file is not None
    # sha256sum and git hash-object
    assert weights.content_hash == "03ac674216f3e15c761ee1a5e255f067953623c8b388b4459e13f978d7c846f4"
    assert license_file.content_hash == "ce013625030ba8dba906f756967f9e9ca394464a"
    assert (weights.size_bytes, license_file.size_bytes) == (4, 6)


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ({"repo_id": "lab/Nothing"}, "missing: no such repo"),
        ({"repo_id": "lab/Secret"}, "missing: no such repo, or private"),
        ({"revision": "v9"}, "missing: no revision 'v9'"),
        ({"repo_id": "lab/Banned"}, "answers 403"),
        ({"repo_id": "lab/Broken"}, "answers 500"),
    ],
)
def test_unreadable_source_is_a_problem_of_one_entry(hub: LocalHub, entry: dict[str, str], words: str) -> None:
    hub.seed("lab/Secret", source_files(), private=True)
    hub.seed("lab/Banned", source_files())
    hub.disable("lab/Banned")
    hub.seed(SOURCE, source_files())
    hub.faults.add(Fault(path="lab/Broken", status=500, times=None))
    asked = [factories.entry(**entry), factories.entry()]
    with stamina.set_testing(True, attempts=2):
        bad, good = read_sources(as_bot(hub), asked)
    assert words in str(bad.problem)
    assert good.problem is None


def test_gating_is_listed_and_protects_the_weights(hub: LocalHub) -> None:
    hub.seed(SOURCE, source_files(), gated="manual")
    found = listed(hub)
    assert (found.gated, found.problem, len(found.files)) == ("manual", None, 8)
    assert "gated" in str(read_details(as_bot(hub), [found])[0].problem)
    hub.grant_access(SOURCE, "bot")
    assert read_details(as_bot(hub), [found])[0].problem is None


@pytest.mark.parametrize(
    ("metadata", "expected"),
    [
        ("license: [mit, 3, apache-2.0]", {"licenses": ("mit", "apache-2.0")}),
        ("license: ' mit '", {"licenses": ("mit",)}),
        ("language: 3", {"languages": ()}),
        ("language: en", {"languages": ("en",)}),
        ("language: [en, 3, {a: b}]", {"languages": ("en",)}),
        ("tags: x-ray", {"tags": ("x-ray",)}),
        ("tags: [a, 3, [b]]", {"tags": ("a",)}),
        ("pipeline_tag: [a]", {"pipeline_tag": "text-generation"}),
        ("model-index: 5", {"licenses": ()}),
        ("eval_results: 5", {"licenses": ()}),
        ("license_link: 2020-01-01", {"licenses": ()}),  # the Hub gives dates as text
        ("new_version: lab/Tiny-2", {"new_version": "lab/Tiny-2"}),
        ("new_version: 'https://evil.example/a'", {"new_version": None}),
        (f"new_version: {SOURCE}", {"new_version": None}),
        ("new_version: [a/b]", {"new_version": None}),
        ("just: [unclosed", {"licenses": ()}),
    ],
)
def test_invalid_metadata_counts_as_not_stated(hub: LocalHub, metadata: str, expected: dict[str, object]) -> None:
    hub.seed(SOURCE, source_files(README__md=f"---\n{metadata}\n---\n"))
    found = listed(hub)
    assert found.problem is None
    assert {key: getattr(found, key) for key in expected} == expected


@pytest.mark.parametrize("metadata", ["ignore_metadata_errors: true", "self: 1", "tags: 7"])
def test_metadata_that_the_client_cannot_parse_stops_no_other_entry(hub: LocalHub, metadata: str) -> None:
    hub.seed(SOURCE, source_files(README__md=f"---\n{metadata}\n---\n"))
    hub.seed("lab/Other", source_files())
    bad, good = read_sources(as_bot(hub), [factories.entry(), factories.entry(repo_id="lab/Other")])
    assert (bad.problem is None or "README.md" in bad.problem, good.problem) == (True, None)


def test_revoked_token_ends_the_plan(hub: LocalHub) -> None:
    caller = as_bot(hub)
    hub.revoke_token(str(caller.read_token))
    with pytest.raises(EnvironmentProblem, match="token"):
        read_sources(caller, [factories.entry()])


def test_unreachable_hub_ends_the_plan_at_once(hub: LocalHub) -> None:
    nowhere = Hub(hub.endpoint)
    hub.stop()
    asked = [factories.entry(repo_id=f"lab/{number}") for number in range(50)]
    started = time.monotonic()
    with stamina.set_testing(True, attempts=2), pytest.raises(EnvironmentProblem, match="refuses the connection"):
        read_sources(nowhere, asked)
    assert time.monotonic() - started < 5


def test_two_hundred_entries_are_read_in_parallel(hub: LocalHub) -> None:
    hub.seed(SOURCE, source_files())
    hub.faults.add(Fault(path="/api/models/lab", delay_s=0.02, times=None))
    asked = [factories.entry(target=f"quantized/{number}") for number in range(200)]
    started = time.monotonic()
    found = read_sources(as_bot(hub), asked)
    assert time.monotonic() - started < sum(item.duration_s for item in hub.requests) / 2
    assert [item.problem for item in found] == [None] * len(hub.requests) == [None] * 200


# --- details ------------------------------------------------------------------------------------------------

Files = dict[str, bytes | str]
POINTER = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 1234567\n"
INDEX = "model.safetensors.index.json"
SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")


def looked_into(hub: LocalHub, files: Files) -> Details:
    hub.seed(SOURCE, files)
    return read_details(as_bot(hub), [upstream_of(hub, factories.entry())])[0]


def sharded(**changed: bytes | str) -> Files:
    files = source_files()
    del files["model.safetensors"]
    weight_map = {"a.weight": SHARDS[0], "b.weight": SHARDS[1]}
    shards: Files = {
        INDEX: json.dumps({"weight_map": weight_map}),
        SHARDS[0]: safetensors({"a.weight": [4, 2]}),
        SHARDS[1]: safetensors({"b.weight": [3]}),
    }
    return {**files, **shards, **{path.replace("__", "."): content for path, content in changed.items()}}


def test_single_file_is_read_by_its_header_alone(hub: LocalHub) -> None:
    tensors = {"model.norm.weight": [256], "lm_head.weight": [1000, 256]}
    found = looked_into(hub, source_files(model__safetensors=safetensors(tensors)))
    assert found.problem is None
    assert (found.config, found.weight_files) == (factories.CONFIG, ("model.safetensors",))
    assert [(item.name, item.dtype, item.shape) for item in found.tensors] == [
        ("model.norm.weight", "F16", (256,)),
        ("lm_head.weight", "F16", (1000, 256)),
    ]
    assert sum(item.bytes_sent for item in requests(hub, "GET", "/objects/")) <= 100_000


def test_long_header_takes_a_second_range(hub: LocalHub) -> None:
    tensors = {f"model.layers.{number}.mlp.down_proj.weight": [1] for number in range(2000)}
    found = looked_into(hub, source_files(model__safetensors=safetensors(tensors)))
    assert [item.name for item in found.tensors] == list(tensors)
    assert len(requests(hub, "GET", "/objects/")) == 2


def test_shards_are_those_that_the_index_names(hub: LocalHub) -> None:
    found = looked_into(hub, sharded(consolidated__safetensors=safetensors({"x": [1]})))
    assert found.weight_files == SHARDS
    assert [(item.name, item.shape) for item in found.tensors] == [("a.weight", (4, 2)), ("b.weight", (3,))]
    hub.seed(SOURCE, {}, delete=[SHARDS[1]])
    found = read_details(as_bot(hub), [upstream_of(hub, factories.entry())])[0]
    assert (found.problem, found.weight_files) == (None, SHARDS)  # a missing shard is the plan's to judge


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("config.json", "[1]", "config.json: not a JSON object"),
        ("config.json", "{", "config.json: not valid JSON"),
        ("config.json", b"\xff\xfe", "config.json: not valid JSON"),
        ("config.json", b" " * 2001, "config.json is larger than 2,000 bytes"),
        ("config.json", POINTER, "config.json: it is a git-lfs pointer, not the file itself"),
        ("tokenizer.json", POINTER, "tokenizer.json: it is a git-lfs pointer, not the file itself"),
        ("model.safetensors", POINTER, "model.safetensors: it is a git-lfs pointer, not the file itself"),
        ("model.safetensors", b"", "model.safetensors: 0 bytes"),
        ("model.safetensors", b"\0\1", "model.safetensors: 2 bytes"),
        ("model.safetensors", b"\xff" * 100, "the header claims"),
        ("model.safetensors", (50).to_bytes(8, "little") + b"{" * 50, "model.safetensors: the header is not JSON"),
        ("model.safetensors", safetensors({"a": [4]})[:-1], "model.safetensors: tensor 'a' ends at byte"),
        ("model.safetensors", (2).to_bytes(8, "little") + b"[]", "the header is not a JSON object"),
    ],
)
def test_broken_upload_is_named(
    hub: LocalHub, monkeypatch: pytest.MonkeyPatch, name: str, content: bytes | str, words: str
) -> None:
    monkeypatch.setattr(fetch, "MAX_SMALL_FILE_BYTES", 2000)
    found = looked_into(hub, {**source_files(), name: content})
    assert words in str(found.problem)


def test_shards_may_be_in_folders_and_an_index_may_list_what_is_not_there(hub: LocalHub) -> None:
    shards: Files = {f"part/{name}": content for name, content in sharded().items() if name in SHARDS}
    weight_map = {
        "a.weight": f"part/{SHARDS[0]}",
        "b.weight": f"part/{SHARDS[1]}",
        "gone\x1b": f"part/{SHARDS[0]}",
    }
    files = {path: content for path, content in sharded().items() if path not in SHARDS}
    found = looked_into(hub, {**files, **shards, INDEX: json.dumps({"weight_map": weight_map})})
    assert (found.problem, found.weight_files) == (None, tuple(f"part/{name}" for name in SHARDS))
    assert [item.name for item in found.tensors] == ["a.weight", "b.weight"]
    assert found.warnings == (f"{INDEX} lists 1 tensors that no file holds, such as gone",)


EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"


@pytest.mark.parametrize(
    ("stored", "ties", "warning"),
    [
        ({EMBEDDING: 1, HEAD: 2}, True, f"config.json ties {HEAD} to {EMBEDDING}, but their values differ"),
        ({EMBEDDING: 1, HEAD: 1}, True, ""),
        ({HEAD: 2}, True, f"config.json ties {HEAD} to the embedding, and only {HEAD} is stored"),
        ({EMBEDDING: 1}, True, ""),
        ({EMBEDDING: 1, HEAD: 2}, False, ""),
        ({EMBEDDING: 1, "model.mtp.embed_tokens.weight": 2, "my_lm_head.weight": 3}, True, ""),
    ],
)
def test_tied_matrices_that_differ_are_a_warning(
    hub: LocalHub, stored: dict[str, int], ties: bool, warning: str
) -> None:
    weights = save({name: np.full((300, 256), value, dtype=np.float16) for name, value in stored.items()})
    config = json.dumps(factories.CONFIG | {"tie_word_embeddings": ties})
    found = looked_into(hub, source_files(config__json=config, model__safetensors=weights))
    assert found.problem is None
    assert len(found.warnings) == bool(warning)
    assert "".join(found.warnings).startswith(warning)
    # The header, and 64 kB of each of the two at most.
    assert len(requests(hub, "GET", "/objects/")) <= 3


def test_a_model_that_is_quantized_already_is_not_looked_into(hub: LocalHub) -> None:
    config = json.dumps({"model_type": "qwen3", "quantization_config": {"quant_method": "fp8"}})
    hub.seed(SOURCE, source_files(config__json=config, model__safetensors=b"of another form"))
    found = read_details(as_bot(hub), [upstream_of(hub, factories.entry())])[0]
    assert (found.problem, found.weight_files) == (None, ())
    assert not requests(hub, "GET", "/objects/")


NAMES = ["../../etc/passwd", "/etc/passwd.safetensors", "C:\\x.safetensors", "pytorch_model.bin", 3]


@pytest.mark.parametrize("weight_map", [*({"a": name} for name in NAMES), ["model.safetensors"], None])
def test_hostile_index_names_are_refused(hub: LocalHub, weight_map: object) -> None:
    found = looked_into(hub, {**sharded(), INDEX: json.dumps({"weight_map": weight_map})})
    assert INDEX in str(found.problem)


def test_missing_weights_and_a_missing_config_are_named(hub: LocalHub) -> None:
    files = source_files(pytorch_model__bin=b"1")
    del files["model.safetensors"]
    found = looked_into(hub, files)
    assert (found.problem, found.weight_files) == (None, ())
    hub.seed(SOURCE, {}, delete=("config.json",))
    found = read_details(as_bot(hub), [upstream_of(hub, factories.entry())])[0]
    assert found.problem == "upload incomplete: config.json is missing"


def test_small_files_that_are_json_or_templates_are_read(hub: LocalHub) -> None:
    files = source_files(chat_template__jinja="{{ new }}", tokenizer_config__json="{}", LICENSE="Terms.")
    found = looked_into(hub, files)
    assert found.small_files["chat_template.jinja"] == b"{{ new }}"
    assert {"tokenizer_config.json", "generation_config.json"} <= found.small_files.keys()
    assert found.small_files.keys().isdisjoint({"LICENSE", "README.md", "config.json", "tokenizer.json"})


@pytest.mark.parametrize("deleted", ["repo", "commit"])
def test_repo_or_commit_that_is_deleted_meanwhile_is_a_problem(hub: LocalHub, api: HfApi, deleted: str) -> None:
    hub.seed("bot/Brief", source_files())
    found = upstream_of(hub, factories.entry(repo_id="bot/Brief"))
    if deleted == "repo":
        api.delete_repo("bot/Brief")
    else:
        found = replace(found, sha=factories.SHA)
    assert "was deleted" in str(read_details(as_bot(hub), [found])[0].problem)


@pytest.mark.parametrize(("status", "words"), [(403, "answers 403"), (503, "answers 503")])
def test_one_bad_answer_stops_no_other_entry(hub: LocalHub, status: int, words: str) -> None:
    hub.seed(SOURCE, source_files())
    hub.seed("lab/Other", source_files())
    hub.faults.add(Fault(path=f"/{SOURCE}/resolve/.*/model", status=status, times=None))
    sources = [upstream_of(hub, factories.entry()), upstream_of(hub, factories.entry(repo_id="lab/Other"))]
    with stamina.set_testing(True, attempts=2):
        bad, good = read_details(as_bot(hub), sources)
    assert words in str(bad.problem)
    assert good.problem is None


def test_details_are_of_the_listed_commit(hub: LocalHub) -> None:
    hub.seed(SOURCE, source_files())
    found = upstream_of(hub, factories.entry())
    hub.seed(SOURCE, {"config.json": '{"model_type": "other"}'})
    assert read_details(as_bot(hub), [found])[0].config == factories.CONFIG
