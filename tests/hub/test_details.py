"""config.json, weight index and safetensors headers of a new release, from untrusted uploads."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import stamina
from huggingface_hub import HfApi

from bot.hub import client, fetch
from bot.localhub import Fault, LocalHub
from bot.records import Details
from tests.support import factories
from tests.support.repos import SOURCE, as_bot, requests, safetensors, source_files, upstream_of

Files = dict[str, bytes | str]
INDEX = "model.safetensors.index.json"
SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")


def looked_into(hub: LocalHub, files: Files) -> Details:
    hub.seed(SOURCE, files)
    return client.details(as_bot(hub), [upstream_of(hub, factories.entry())])[0]


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


def test_missing_shard_is_not_a_problem_of_the_details(hub: LocalHub) -> None:
    files = sharded()
    del files[SHARDS[1]]
    found = looked_into(hub, files)
    assert (found.problem, found.weight_files) == (None, SHARDS)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("config.json", "[1]", "config.json: not a JSON object"),
        ("config.json", "{", "config.json: not valid JSON"),
        ("config.json", b"\xff\xfe", "config.json: not valid JSON"),
        ("config.json", b" " * 2001, "config.json is larger than 2,000 bytes"),
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


@pytest.mark.parametrize(
    "index",
    [
        {"weight_map": {"a": "../../etc/passwd"}},
        {"weight_map": {"a": "/etc/passwd.safetensors"}},
        {"weight_map": {"a": "C:\\x.safetensors"}},
        {"weight_map": {"a": "pytorch_model.bin"}},
        {"weight_map": {"a": 3}},
        {"weight_map": ["model.safetensors"]},
        {},
    ],
)
def test_hostile_index_names_are_refused(hub: LocalHub, index: dict[str, object]) -> None:
    found = looked_into(hub, {**sharded(), INDEX: json.dumps(index)})
    assert INDEX in str(found.problem)


def test_missing_weights_and_a_missing_config_are_named(hub: LocalHub) -> None:
    files = source_files(pytorch_model__bin=b"1")
    del files["model.safetensors"]
    found = looked_into(hub, files)
    assert (found.problem, found.weight_files) == (None, ())
    hub.seed(SOURCE, {}, delete=("config.json",))
    found = client.details(as_bot(hub), [upstream_of(hub, factories.entry())])[0]
    assert found.problem == "upload incomplete: config.json is missing"


@pytest.mark.parametrize(("inline", "differ"), [("{{ old }}", True), ("{{ new }}", False), (None, False)])
def test_two_different_chat_templates_are_a_warning(hub: LocalHub, inline: str | None, differ: bool) -> None:
    config = json.dumps({"chat_template": inline} if inline else {})
    found = looked_into(hub, source_files(chat_template__jinja="{{ new }}", tokenizer_config__json=config))
    assert [warning for warning in found.warnings if "differ" in warning] == list(found.warnings)
    assert bool(found.warnings) == differ


@pytest.mark.parametrize("deleted", ["repo", "commit"])
def test_repo_or_commit_that_is_deleted_meanwhile_is_a_problem(hub: LocalHub, api: HfApi, deleted: str) -> None:
    hub.seed("bot/Brief", source_files())
    found = upstream_of(hub, factories.entry(repo_id="bot/Brief"))
    if deleted == "repo":
        api.delete_repo("bot/Brief")
    else:
        found = replace(found, sha=factories.SHA)
    assert "was deleted" in str(client.details(as_bot(hub), [found])[0].problem)


@pytest.mark.parametrize(("status", "words"), [(403, "answers 403"), (503, "answers 503")])
def test_one_bad_answer_stops_no_other_entry(hub: LocalHub, status: int, words: str) -> None:
    hub.seed(SOURCE, source_files())
    hub.seed("lab/Other", source_files())
    hub.faults.add(Fault(path=f"/{SOURCE}/resolve/.*/model", status=status, times=None))
    sources = [upstream_of(hub, factories.entry()), upstream_of(hub, factories.entry(repo_id="lab/Other"))]
    with stamina.set_testing(True, attempts=2):
        bad, good = client.details(as_bot(hub), sources)
    assert words in str(bad.problem)
    assert good.problem is None


def test_details_are_of_the_listed_commit(hub: LocalHub) -> None:
    hub.seed(SOURCE, source_files())
    found = upstream_of(hub, factories.entry())
    hub.seed(SOURCE, {"config.json": '{"model_type": "other"}'})
    assert client.details(as_bot(hub), [found])[0].config == factories.CONFIG
