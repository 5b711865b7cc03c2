"""What comes from outside and is not as it should be: people's typing, uploads, tokens, disks, a Hub that moves.

Each ends with its exit code, one line of what happened where, what to do next, and nothing half-published; and
where a person can mend it, the next run goes on.
"""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import save

from bot.hub import client
from bot.hub.local import Fault, LocalHub
from bot.hub.local.seeding import Content
from bot.records import to_json
from bot.watch import watchlist as watchlists
from tests import factories
from tests.house import ASSETS, House, wait_for
from tests.hub.models import as_bot, requests
from tests.small_disk import mounted
from tests.small_model import (
    CARD,
    CONFIG,
    SOURCE,
    TARGET,
    WEIGHTS,
    conversations,
    sentence,
    small_model,
    small_weights,
)

Result = subprocess.CompletedProcess[str]
Before = Callable[[str], House]

# One source of each kind; chats and texts are data sets on the same Hub.
WATCHLIST = """\
publish_to: quantized
defaults:
  calibration:
    samples: 16
    seq_len: 64
    sources:
      - builtin: stdlib
      - {{file: notes.txt, weight: 2}}
      - {{dataset: lab/chats, revision: {chats}, split: train_sft, weight: 2}}
      - {{dataset: lab/texts, revision: {texts}, split: en/train, column: body, weight: 3}}
  gate: {{max_kl: 100, min_top1: 0, max_perplexity_ratio: 100}}
models:
  - lab/small
"""


# --- how it ends --------------------------------------------------------------------------------------------


def failed(result: Result, code: int, *words: str) -> None:
    """It ended with this code and one error in these words, told what to do next, and showed no stack."""
    errors = [line for line in result.stderr.splitlines() if line.startswith("error:")]
    assert (result.returncode, len(errors)) == (code, 1), result.stderr
    for word in words:
        assert word in errors[0]
    assert "hint:" in result.stderr
    assert "Traceback" not in result.stdout + result.stderr


def refused(house: House, code: int, *words: str) -> None:
    """A run says in these words why there is no job and what to do, ends with this code, publishes nothing."""
    result = house.call("run")
    errors = [line for line in result.stderr.splitlines() if line.startswith("error:")]
    assert (result.returncode, len(errors)) == (code, 1), result.stderr
    assert "Traceback" not in result.stderr
    assert "refused" in result.stderr
    assert "nothing to do" in result.stdout
    said = " ".join(result.stderr.split())
    for word in words:
        assert word in said
    assert_nothing_published(house)


def mended(house: House) -> None:
    """Now there is a job for it."""
    [job] = house.plan()["jobs"]
    assert (job["kind"], job["entry"]["repo_id"]) == ("release", SOURCE)


def assert_nothing_published(house: House) -> None:
    """No target, or one that nobody else can see."""
    for repo in house.hub.store.repos("model"):
        assert repo.namespace != "quantized" or repo.settings().private


def assert_published(house: House, result: Result) -> dict[str, Any]:
    """Whole and public; its provenance."""
    assert result.returncode == 0, result.stderr
    provenance: dict[str, Any] = json.loads(house.hub.files(TARGET)["provenance.json"])
    refs = house.hub.refs(TARGET)
    assert refs[f"refs/tags/{provenance['tag']}"] == refs["refs/heads/main"]
    assert not house.hub.repo(TARGET).settings().private
    return provenance


def quantized_again(result: Result) -> bool:
    return "quantizing:" in result.stderr


# --- houses -------------------------------------------------------------------------------------------------


@pytest.fixture
def house(hub: LocalHub, tmp_path: Path) -> House:
    """With a watchlist of one model that is not on the Hub yet."""
    house = House(hub, tmp_path)
    _write_watchlist(house, "publish_to: quantized\nmodels:\n  - lab/small\n")
    return house


@pytest.fixture(scope="module")
def ready(tmp_path_factory: pytest.TempPathFactory) -> House:
    """A small model calibrated on every kind of source, and done but for publishing. Its Hub is at rest."""
    root = tmp_path_factory.mktemp("ready") / "house"
    root.mkdir()
    house = House(LocalHub(root / "hub"), root)
    house.hub.seed(SOURCE, small_model())
    chats = house.hub.seed(
        "lab/chats", {"data/train_sft-00000-of-00001.jsonl": conversations()}, repo_type="dataset"
    )
    texts = house.hub.seed("lab/texts", {"en/train/0000.parquet": _texts()}, repo_type="dataset")
    (root / "notes.txt").write_text("\n".join(sentence(number) for number in range(60)))
    _write_watchlist(house, WATCHLIST.format(chats=chats, texts=texts))
    with house.hub:
        result = house.call("run", "--dry-run")
    assert result.returncode == 0, result.stderr
    return house


@pytest.fixture
def before(ready: House, tmp_path: Path) -> Iterator[Before]:
    """A copy of the ready house in which the stage of the given name has not run; its Hub is up."""
    copies: list[House] = []

    def make(stage: str) -> House:
        house = ready.copy_to(tmp_path / stage)
        undone = {"pull": ("weights.json", "source"), "quantize": ("quantized.json", "quantized", "layers")}
        for name in undone.get(stage, ()):
            path = house.jobs[0] / name
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        house.hub.start()
        copies.append(house)
        return house

    yield make
    for house in copies:
        house.hub.stop()


def _write_watchlist(house: House, content: str | bytes) -> None:
    (house.root / "watchlist.yaml").write_bytes(content.encode() if isinstance(content, str) else content)


def _edit_watchlist(house: House, old: str, new: str) -> str:
    """Returns what it was."""
    before = (house.root / "watchlist.yaml").read_text()
    assert old in before
    _write_watchlist(house, before.replace(old, new))
    return before


def _texts() -> bytes:
    rows = [{"body": sentence(number), "language": "en"} for number in range(2000, 2060)]
    stream = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), stream)
    return stream.getvalue()


def _meanwhile(house: House, fault: Fault, act: Callable[[], object], *words: str) -> Result:
    """A run during whose held-back request something else happens."""
    house.hub.faults.add(fault)
    with house.start(*words) as process:
        wait_for(lambda: not house.hub.faults.pending or process.poll() is not None)
        act()
        out, err = process.communicate(timeout=120)
    return Result(words, process.returncode, out, err)


# Only pull asks with HEAD; the plan has read all that it needs by then.
_AT_PULL = Fault(path=r"resolve/.*/model\.safetensors", method="HEAD", delay_s=3)


# --- upstream: what the plan refuses, with the reason --------------------------------------------------------


def test_a_repo_that_is_not_there_is_named_and_taken_once_it_is(house: House) -> None:
    refused(house, 3, "missing: no such repo", f"Look at {SOURCE} on the Hub")
    house.hub.seed(SOURCE, small_model())
    mended(house)


def test_a_gated_repo_waits_for_access(house: House) -> None:
    house.hub.seed(SOURCE, small_model(), gated="manual")
    refused(house, 3, "gated", "ask for it on the model's page")
    house.hub.grant_access(SOURCE, "bot")
    mended(house)


def test_truncated_weights_are_seen_before_they_are_downloaded(house: House) -> None:
    whole = save(small_weights())
    house.hub.seed(SOURCE, small_model(model__safetensors=whole[:-100]))
    refused(house, 3, WEIGHTS, "ends at byte", f"Look at {SOURCE} on the Hub")
    assert not requests(house.hub, "HEAD", WEIGHTS)
    house.hub.seed(SOURCE, {WEIGHTS: whole})
    mended(house)


def test_a_shard_that_the_index_names_is_waited_for(house: House) -> None:
    weights = small_weights()
    names = sorted(weights)
    shards = {"a.safetensors": names[:5], "b.safetensors": names[5:]}
    files = {shard: save({name: weights[name] for name in inside}) for shard, inside in shards.items()}
    weight_map = {name: shard for shard, inside in shards.items() for name in inside}
    index = json.dumps({"metadata": {}, "weight_map": weight_map})
    repo = {path: content for path, content in small_model().items() if path != WEIGHTS}
    repo["model.safetensors.index.json"], repo["a.safetensors"] = index, files["a.safetensors"]
    house.hub.seed(SOURCE, repo)
    refused(house, 3, "upload incomplete: b.safetensors", "It is looked at again next time.")
    house.hub.seed(SOURCE, {"b.safetensors": files["b.safetensors"]})
    mended(house)


@pytest.mark.parametrize(
    ("config", "code", "word"),
    [
        (json.dumps({key: value for key, value in CONFIG.items() if key != "model_type"}), 4, "no model_type"),
        (json.dumps([CONFIG]), 3, "config.json: not a JSON object"),
        ("{", 3, "config.json: not valid JSON"),
        (json.dumps(CONFIG | {"quantization_config": {"quant_method": "gptq"}}), 4, "quantized already (gptq)"),
    ],
    ids=["without model_type", "a list", "no JSON", "quantized already"],
)
def test_a_config_that_cannot_be_worked_with_is_refused(house: House, config: str, code: int, word: str) -> None:
    house.hub.seed(SOURCE, small_model(config__json=config))
    refused(house, code, word)
    house.hub.seed(SOURCE, {"config.json": json.dumps(CONFIG)})
    mended(house)


def test_shapes_that_do_not_divide_are_named_with_the_group_size(house: House) -> None:
    config = CONFIG | {"hidden_size": 96}
    weights = save(small_weights(config))
    house.hub.seed(SOURCE, small_model(config__json=json.dumps(config), model__safetensors=weights))
    refused(house, 4, "96 input channels are no multiple of the group size 128", "Put it on `hold:`")
    _edit_watchlist(house, "models:", "defaults: {recipe: {group_size: 32}}\nmodels:")
    mended(house)


def test_pickles_are_never_read(house: House) -> None:
    pickles = {path: content for path, content in small_model().items() if path != WEIGHTS}
    house.hub.seed(SOURCE, pickles | {"pytorch_model.bin": b"cos\nsystem\n(S'true'\ntR."})
    refused(house, 3, "pickle-only", "Convert them to safetensors upstream")
    assert not requests(house.hub, "GET", "pytorch_model.bin")
    house.hub.seed(SOURCE, {WEIGHTS: save(small_weights())})
    mended(house)


def test_a_licence_must_be_stated(house: House) -> None:
    house.hub.seed(SOURCE, small_model(README__md="# A small model\n"))
    refused(house, 3, "licence absent", "`licenses: {allow: [unknown]}` to this entry")
    house.hub.seed(SOURCE, {"README.md": CARD})
    mended(house)


def test_a_denied_licence_is_not_published(house: House) -> None:
    house.hub.seed(SOURCE, small_model())
    was = _edit_watchlist(house, "models:", "defaults: {licenses: {deny: [mit]}}\nmodels:")
    refused(house, 3, "licence refused: mit is denied", "Take it off `licenses: deny`")
    _write_watchlist(house, was)
    mended(house)


def test_a_target_with_somebody_elses_content_is_left_alone(house: House) -> None:
    house.hub.seed(SOURCE, small_model())
    theirs = house.hub.seed(TARGET, {"README.md": "mine", "weights.bin": b"mine"}, private=True)
    refused(house, 7, f"{TARGET} is someone else's", "Choose another `target`")
    assert house.hub.refs(TARGET)["refs/heads/main"] == theirs
    _edit_watchlist(house, "- lab/small", "- {repo_id: lab/small, target: quantized/other-awq}")
    mended(house)


def test_a_thousand_entries_are_answered_in_two_requests_each(house: House) -> None:
    names = [f"lab/model-{number}" for number in range(1000)]
    _write_watchlist(house, "publish_to: quantized\nmodels:\n" + "".join(f"  - {name}\n" for name in names))
    there = watchlists.load(house.root / "watchlist.yaml")[::50]
    few: dict[str, Content] = {"README.md": CARD, "config.json": json.dumps(CONFIG), WEIGHTS: b"weights"}
    for entry in there:
        house.hub.seed(entry.repo_id, few)
    for entry, source in zip(there, client.upstream(as_bot(house.hub), there), strict=True):
        made = factories.provenance(entry, source)
        sha = house.hub.seed(entry.target, {"provenance.json": to_json(made)})
        house.hub.repo(entry.target).create_ref(f"refs/tags/{made.tag}", sha)
    house.hub.clear_requests()
    plan = house.plan()
    reasons = [skip["reason"] for skip in plan["skipped"]]
    assert (plan["jobs"], len(reasons)) == ([], 1000)
    assert reasons.count("up to date") == len(there)
    assert sum(reason.startswith("missing") for reason in reasons) == 1000 - len(there)
    asked = [request for request in house.hub.requests if "lab/" in request.path or "quantized/" in request.path]
    assert {request.method for request in asked} == {"GET"}
    # One more for the provenance of what is there.
    assert len(asked) == 2 * 1000 + len(there)


# --- the watchlist ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "line", "word"),
    [
        (b"publish_to: quantized\nmodels:\n  - lab/sm\xe4ll\n", 3, "not UTF-8"),
        (b"- lab/small\n- lab/other\n", 1, "found a list"),
        (b"", 1, "found nothing"),
        (b"publish_to: quantized\nmodels:\n\t- lab/small\n", 3, "a tab in the indentation"),
    ],
    ids=["not UTF-8", "a list", "empty", "tabs"],
)
def test_a_watchlist_that_cannot_be_read_is_told_by_line(
    house: House, content: bytes, line: int, word: str
) -> None:
    _write_watchlist(house, content)
    failed(house.call("run"), 2, f"watchlist.yaml:{line}:", word)
    assert not house.hub.requests
    _write_watchlist(house, "publish_to: quantized\nmodels:\n  - lab/small\n")
    assert house.call("check").returncode == 0


# --- tokens -------------------------------------------------------------------------------------------------


def test_a_revoked_token_stops_the_plan_and_a_new_one_goes_on(house: House) -> None:
    house.hub.seed(SOURCE, small_model())
    token = house.hub.add_token("bot")
    house.hub.revoke_token(token)
    failed(house.call("run", token=token), 8, "refuses the token")
    assert_nothing_published(house)
    mended(house)


def test_a_read_only_token_publishes_nothing_and_a_write_token_goes_on_without_quantizing(before: Before) -> None:
    house = before("publish")
    made = _times(house)
    result = house.call("run", token=house.hub.token("bot", role="read"))
    failed(result, 7, TARGET, "the token may only read")
    assert "HF_WRITE_TOKEN" in result.stderr
    assert_nothing_published(house)
    assert _times(house) == made
    report = house.jobs[0] / "report.json"
    measured = report.stat().st_mtime_ns
    result = house.call("run")
    assert_published(house, result)
    assert not quantized_again(result)
    assert report.stat().st_mtime_ns == measured


def test_somebody_elses_namespace_is_refused_until_they_let_us_in(before: Before) -> None:
    house = before("publish")
    token = house.hub.add_token("newcomer")
    failed(house.call("run", token=token), 7, TARGET, "newcomer does not belong to quantized")
    assert_nothing_published(house)
    house.hub.add_token("newcomer", orgs=["quantized"])
    result = house.call("run", token=token)
    assert_published(house, result)
    assert not quantized_again(result)


def test_somebody_elses_content_that_came_while_we_worked_is_not_overwritten(before: Before) -> None:
    house = before("publish")
    theirs = house.hub.seed(TARGET, {"README.md": "mine", "weights.bin": b"mine"}, private=True)
    failed(house.call("publish", "--job", str(house.jobs[0])), 7, TARGET, "content that is not ours")
    assert house.hub.refs(TARGET)["refs/heads/main"] == theirs
    house.hub.store.delete(house.hub.repo(TARGET))
    result = house.call("run")
    assert_published(house, result)
    assert not quantized_again(result)


def _times(house: House) -> dict[str, int]:
    made = [path for folder in ("layers", "quantized") for path in (house.jobs[0] / folder).rglob("*")]
    assert made
    return {str(path): path.stat().st_mtime_ns for path in made}


# --- a Hub that moves ---------------------------------------------------------------------------------------


def test_what_the_plan_saw_is_what_is_published_though_upstream_went_on(before: Before) -> None:
    house = before("pull")
    planned = house.hub.refs(SOURCE)["refs/heads/main"]
    newer = save({name: 2 * tensor for name, tensor in small_weights().items()})
    result = _meanwhile(house, _AT_PULL, lambda: house.hub.seed(SOURCE, {WEIGHTS: newer}), "run")
    provenance = assert_published(house, result)
    assert provenance["source"]["sha"] == planned
    [job] = house.plan()["jobs"]
    assert job["reason"] == f"upstream changed: {WEIGHTS}"


def test_an_upstream_that_goes_away_while_it_is_pulled_is_an_upstream_error(before: Before) -> None:
    house = before("pull")
    upstream = house.hub.repo(SOURCE)
    result = _meanwhile(house, _AT_PULL, lambda: house.hub.store.delete(upstream), "run")
    failed(result, 3, SOURCE, "answers 404")
    assert_nothing_published(house)
    refused(house, 3, "missing")
    house.hub.seed(SOURCE, small_model())
    mended(house)


# --- disks --------------------------------------------------------------------------------------------------


def test_a_disk_that_is_too_small_is_said_before_pulling(before: Before, small_disk: Path) -> None:
    house = before("publish")
    result = house.call("run", "--work", str(small_disk))
    failed(result, 8, str(small_disk), "GB free, the job needs")
    assert "--work" in result.stderr
    assert not list(small_disk.rglob("*.safetensors"))
    assert_published(house, house.call("run"))


def test_a_disk_that_fills_up_while_pulling_keeps_what_is_whole(before: Before) -> None:
    house = before("pull")
    failed(_with_small_files_only(house, "run"), 8, "/source: cannot write")
    assert_nothing_published(house)
    result = house.call("run")
    assert_published(house, result)
    assert not quantized_again(result)


def test_a_disk_that_fills_up_while_quantizing_names_the_file_and_leaves_no_half_of_it(
    before: Before, ready: House
) -> None:
    house = before("quantize")
    failed(_with_small_files_only(house, "run"), 8, "layers/hidden-00000.bin: cannot be written")
    job = house.jobs[0]
    assert not list((job / "layers").iterdir())
    assert not (job / "quantized").exists()
    assert_nothing_published(house)
    result = house.call("quantize", "--job", str(job))
    assert result.returncode == 0, result.stderr
    made = json.loads((job / "quantized.json").read_text())["record"]
    assert made["files"] == json.loads((ready.jobs[0] / "quantized.json").read_text())["record"]["files"]
    assert_published(house, house.call("run"))


def test_a_disk_that_is_full_when_the_card_is_written_is_said_so(before: Before) -> None:
    house = before("publish")
    job = house.jobs[0]
    (job / "card.json").unlink()
    failed(_with_small_files_only(house, "card", "--job", str(job), limit_kib=1), 8, str(job), "cannot write")
    assert_published(house, house.call("run"))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    with mounted(tmp_path / "disk", options="size=1m") as folder:
        yield folder


def _with_small_files_only(house: House, *words: str, limit_kib: int = 64) -> Result:
    """The command under a limit on file size, which a write meets as it meets a full disk."""
    limited = ["bash", "-c", f'ulimit -f {limit_kib}; exec "$@"', "bash", sys.executable, "-m", "bot", *words]
    return subprocess.run(
        limited, env=house.environment(), cwd=house.root, capture_output=True, text=True, check=False, timeout=120
    )


# --- calibration and the gate -------------------------------------------------------------------------------


def test_a_mix_of_sources_is_counted_by_source(ready: House) -> None:
    record = json.loads((ready.jobs[0] / "quantized.json").read_text())["record"]["calibration"]
    counts = {source["label"].partition("@")[0]: source for source in record["sources"]}
    assert {label: source["tokens"] for label, source in counts.items()} == {
        "builtin:stdlib": 2 * 64,
        "notes.txt": 4 * 64,
        "lab/chats": 4 * 64,
        "lab/texts": 6 * 64,
    }
    assert all(source["documents"] > 0 for source in counts.values())
    assert counts["lab/texts"]["languages"] == ["en"]
    assert sum(source["share"] for source in counts.values()) == pytest.approx(1)


@pytest.mark.parametrize(
    ("old", "new", "code", "words"),
    [
        ("split: en/train", "split: de/train", 2, ("lab/texts", "no parquet or jsonl file of split 'de/train'")),
        ("{chats}", factories.SHA, 3, (f"lab/chats@{factories.SHA[:8]} answers 404",)),
        ("dataset: lab/texts", "dataset: lab/nowhere", 3, ("lab/nowhere", "answers 404")),
    ],
    ids=["no such split", "no such commit", "no such data set"],
)
def test_a_data_set_that_is_not_there_is_an_error_before_any_weights_are_pulled(
    before: Before, old: str, new: str, code: int, words: tuple[str, ...]
) -> None:
    house = before("publish")
    chats = house.hub.refs("lab/chats", repo_type="dataset")["refs/heads/main"]
    was = _edit_watchlist(house, old.format(chats=chats), new)
    house.hub.clear_requests()
    failed(house.call("run"), code, *words)
    assert not requests(house.hub, "HEAD", WEIGHTS)
    assert_nothing_published(house)
    _write_watchlist(house, was)
    assert_published(house, house.call("run"))


def test_a_calibration_file_that_is_gone_is_named_and_missed_by_the_pull_too(before: Before) -> None:
    house = before("pull")
    notes = (house.root / "notes.txt").read_bytes()
    (house.root / "notes.txt").unlink()
    failed(house.call("run"), 2, "watchlist.yaml:8:", "notes.txt")
    failed(house.call("pull", "--job", str(house.jobs[0])), 2, "notes.txt: cannot be read")
    assert_nothing_published(house)
    (house.root / "notes.txt").write_bytes(notes)
    result = house.call("run")
    assert_published(house, result)
    assert not quantized_again(result)


def test_pulled_files_that_somebody_deleted_are_pulled_again(before: Before) -> None:
    house = before("quantize")
    shutil.rmtree(house.jobs[0] / "calibration")
    (house.jobs[0] / "source" / "tokenizer.json").unlink()
    result = house.call("pull", "--job", str(house.jobs[0]))
    assert result.returncode == 0, result.stderr
    assert (house.jobs[0] / "source" / "tokenizer.json").is_file()
    assert len(list((house.jobs[0] / "calibration").iterdir())) == 3


def test_a_tokenizer_that_does_not_load_ends_the_job_with_one_error(house: House) -> None:
    house.hub.seed(SOURCE, small_model(tokenizer__json='{"version": "1.0", "model": {"type": "None"}}'))
    _edit_watchlist(house, "models:", "defaults: {calibration: {sources: [{builtin: stdlib}]}}\nmodels:")
    result = house.call("run")
    failed(result, 5, "the tokenizer in", "does not load")
    assert "tokenizer.json" in result.stderr
    assert_nothing_published(house)
    house.hub.seed(SOURCE, {"tokenizer.json": ASSETS / "qwen3-tiny" / "tokenizer.json"})
    mended(house)


def test_good_weights_that_miss_the_gate_are_published_once_it_is_loosened(before: Before) -> None:
    house = before("publish")
    was = _edit_watchlist(house, "max_kl: 100", "max_kl: 0.0000001")
    result = house.call("run")
    failed(result, 6, SOURCE, "mean KL divergence", "is above max_kl 1e-07")
    assert "gate" in result.stderr
    assert not house.hub.store.exists(TARGET)
    _write_watchlist(house, was)
    result = house.call("run")
    assert_published(house, result)
    assert not quantized_again(result)
