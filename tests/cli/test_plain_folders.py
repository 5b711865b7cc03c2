"""`quantize` and `evaluate` on plain folders: what they print for programs, what is lost, what they refuse."""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load, save

from bot.calibration import stdlib
from bot.calibration.evaluation import evaluation_tokens
from bot.cli import stages
from bot.jobs.plain import hint_for_folders
from bot.quantize.destination import record_path
from bot.records import Evaluation, TextSource
from tests.cli.conftest import Run
from tests.support import tiny_models
from tests.support.sandbox import ASSETS, MODELS
from tests.support.small_disk import mounted
from tests.support.small_sandbox import CONFIG, WEIGHTS, assert_failed, small_model, small_weights

Result = subprocess.CompletedProcess[str]
Call = Callable[..., Result]

PER_TOKEN = {"perplexity_source", "perplexity_quantized", "kl_mean", "kl_p99", "top1_agreement"}
FIGURES = PER_TOKEN | {"bits_per_weight", "bits_per_weight_file"}
GROUP_SIZE = 128
TEXT_CHARACTERS = 40_000  # some 8,000 tokens: enough to tell AWQ from plain rounding, and quickly read


# --- for programs -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Made:
    """A model quantized and measured by the command line. texts: what it was measured on, prose and chats."""

    source: Path
    out: Path
    texts: tuple[Path, Path]
    quantized: Result
    evaluated: Result


@pytest.fixture(scope="module", params=[MODELS[0], pytest.param(MODELS[1], marks=pytest.mark.slow)])
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp(request.param)
    source, out = ASSETS / request.param, folder / "out"
    texts = folder / "unseen.txt", folder / "chats.jsonl"
    unseen = "\n".join(stdlib.documents("test"))
    texts[0].write_text(unseen[:TEXT_CHARACTERS])
    said = (unseen[start : start + 1000] for start in range(TEXT_CHARACTERS, 2 * TEXT_CHARACTERS, 1000))
    texts[1].write_text("".join(json.dumps({"messages": [{"role": "user", "content": x}]}) + "\n" for x in said))
    size = ("--samples", "16", "--seq-len", "256")
    folders = ("--source", str(source), "--quantized", str(out))
    return Made(
        source=source,
        out=out,
        texts=texts,
        quantized=_process("quantize", "--source", str(source), "--out", str(out), *size, "--json"),
        evaluated=_process("evaluate", *folders, *(f"--text={text}" for text in texts), "--json"),
    )


def _process(*words: str) -> Result:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    result = subprocess.run(
        [sys.executable, "-m", "bot", *words],
        env=environment | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )
    assert result.returncode == 0, result.stderr
    return result


def test_stdout_is_one_json_object_and_nothing_else(made: Made) -> None:
    for result in (made.quantized, made.evaluated):
        assert isinstance(json.loads(result.stdout), dict)
        assert "Warning" not in result.stderr
    assert json.loads(made.evaluated.stdout).keys() >= FIGURES


def test_figures_are_plausible(made: Made) -> None:
    report = json.loads(made.evaluated.stdout)
    assert all(isinstance(report[name], float) for name in FIGURES)
    assert 1 < report["perplexity_source"] < report["perplexity_quantized"] < 1.4 * report["perplexity_source"]
    assert 0 < report["kl_mean"] < report["kl_p99"]
    assert 0.6 < report["top1_agreement"] < 1
    assert report["bits_per_weight"] == pytest.approx(4 + (16 + 4) / GROUP_SIZE)
    assert report["bits_per_weight"] < report["bits_per_weight_file"] < 16
    assert json.loads(made.quantized.stdout)["bits_per_weight"] == report["bits_per_weight"]


def test_each_text_has_figures_of_its_own(made: Made) -> None:
    report = json.loads(made.evaluated.stdout)
    assert report["text_label"] == "unseen.txt and chats.jsonl"
    prose, chats = report["sources"]
    assert (prose["label"], chats["label"]) == ("unseen.txt", "chats.jsonl")
    assert prose["predictions"] + chats["predictions"] == report["predictions"]
    mean = sum(each["kl_mean"] * each["predictions"] for each in (prose, chats)) / report["predictions"]
    assert report["kl_mean"] == pytest.approx(mean)


def test_the_folder_is_whole_and_only_its_record_is_left_beside_it(made: Made) -> None:
    """What is in the folder may be uploaded by hand."""
    assert {path.name for path in made.out.parent.iterdir()} == {
        "out",
        record_path(made.out).name,
        *(text.name for text in made.texts),
    }
    listed = {file["path"] for file in json.loads(made.quantized.stdout)["files"]}
    there = {path.relative_to(made.out).as_posix() for path in made.out.rglob("*") if path.is_file()}
    assert there == listed
    assert {"config.json", "tokenizer.json", "generation_config.json", "LICENSE"} <= listed


@torch.inference_mode()
def test_it_loses_less_than_plain_rounding_on_the_same_tokens(made: Made) -> None:
    report = json.loads(made.evaluated.stdout)
    asked = Evaluation(sources=tuple(TextSource(file=str(text)) for text in made.texts))
    tokens, _ = evaluation_tokens(asked, tokenizer_folder=made.source, trust_remote_code=False)
    assert (report["tokens"], report["predictions"]) == (tokens.numel(), tokens[:, 1:].numel())
    packed = tiny_models.packed_linears(made.out)
    rounded = {
        name: tiny_models.rounded(value, GROUP_SIZE) if name.removesuffix(".weight") in packed else value
        for name, value in tiny_models.tensors_of(made.source).items()
    }
    log_p, log_q = (
        tiny_models.logits_of(made.source, tokens, weights=weights)[:, :-1].log_softmax(-1)
        for weights in (None, rounded)
    )
    lost_by_rounding = (log_p.exp() * (log_p - log_q)).sum(-1).double().mean()
    assert report["kl_mean"] < 0.95 * lost_by_rounding


# --- what is refused ----------------------------------------------------------------------------------------


@pytest.fixture
def call(run: Run, monkeypatch: pytest.MonkeyPatch) -> Call:
    """The command line in this process, so that torch is imported once."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return lambda *words: Result(words, *run(*map(str, words)))


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A small model's folder."""
    folder = tmp_path / "source"
    for path, content in small_model().items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, Path):
            shutil.copy(content, folder / path)
        else:
            (folder / path).write_bytes(content.encode() if isinstance(content, str) else content)
    return folder


@pytest.fixture
def quantize(call: Call, source: Path, tmp_path: Path) -> Call:
    """Quantize the small model into `out`, with more words. Fails when a refusal leaves anything behind."""

    def quantize(*more: str | Path, out: Path = tmp_path / "out") -> Result:
        result = call("quantize", "--source", source, "--out", out, "--samples", "16", "--seq-len", "64", *more)
        if result.returncode != 0:
            assert not (out / "config.json").exists()
            assert not (out.parent / f".{out.name}.partial").exists()
        return result

    return quantize


def change_a_weight(content: bytes, value: float) -> bytes:
    weights = load(content)
    weights["model.layers.0.mlp.up_proj.weight"][3, 7] = value
    return save(weights)


WITHOUT_TYPE = {key: value for key, value in CONFIG.items() if key != "model_type"}


@pytest.mark.parametrize(
    ("name", "damaged", "code", "words"),
    [
        (WEIGHTS, lambda content: content[:-100], 3, (WEIGHTS, "ends at byte")),
        (WEIGHTS, lambda content: change_a_weight(content, np.nan), 5, ("layer 0, mlp.up_proj", "NaN")),
        ("tokenizer.json", lambda _: b'{"version": "1.0"', 5, ("the tokenizer in", "source does not load")),
        ("config.json", lambda _: json.dumps(WITHOUT_TYPE).encode(), 4, ("source", "has no model_type")),
        ("config.json", lambda _: json.dumps([CONFIG]).encode(), 3, ("source", "not a JSON object")),
    ],
    ids=["truncated", "NaN", "tokenizer", "without model_type", "a list"],
)
def test_damaged_source_is_reported_with_the_place(
    quantize: Call, source: Path, name: str, damaged: Callable[[bytes], bytes], code: int, words: tuple[str, ...]
) -> None:
    (source / name).write_bytes(damaged((source / name).read_bytes()))
    assert_failed(quantize(), code, *words)


NARROW = CONFIG | {"hidden_size": 96}


@pytest.mark.parametrize(
    ("changed", "code", "words"),
    [
        ({"config.json": CONFIG | {"quantization_config": {}}}, 4, ("config.json", "already quantized")),
        ({"config.json": CONFIG | {"model_type": "qwen99"}}, 4, ("'qwen99': transformers", "does not know it")),
        (
            {"config.json": CONFIG | {"model_type": "qwen99", "auto_map": {}}},
            4,
            ("does not know it", "It needs its own code, which runs only for an entry of a watchlist"),
        ),
        ({"config.json": CONFIG | {"architectures": ["BertForMaskedLM"]}}, 4, ("is not a causal language model",)),
        (
            {"config.json": NARROW, WEIGHTS: save(small_weights(NARROW))},
            4,
            ("96 input channels are not a multiple of the group size 128", "hint: Use `--group-size 32`"),
        ),
        ({"tokenizer.json": None}, 3, ("source: no tokenizer", "It is read from tokenizer.json")),
        ({WEIGHTS: None}, 3, ("neither model.safetensors nor",)),
    ],
)
def test_what_the_plan_would_refuse_is_refused_before_torch_is_loaded(
    quantize: Call,
    source: Path,
    monkeypatch: pytest.MonkeyPatch,
    changed: dict[str, Any],
    code: int,
    words: tuple[str, ...],
) -> None:
    monkeypatch.delattr(stages, "loading_torch")
    for name, content in changed.items():
        if content is None:
            (source / name).unlink()
        else:
            (source / name).write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    result = quantize()
    assert_failed(result, code, words[0])
    assert all(word in result.stderr for word in words)
    assert not any(word in result.stderr for word in ("hold:", "group_size", "entry's recipe"))


@pytest.mark.parametrize(
    ("hint", "said"),
    [
        ("Put it on `hold:` to silence this.", "This version cannot quantize it."),
        (
            "This version cannot quantize it; put it on `hold:` in the watchlist.",
            "This version cannot quantize it.",
        ),
        ("Set `method: awq+gptq` in the entry's recipe.", "Use `--method awq+gptq`."),
        ("Use `group_size: 64`, which divides them.", "Use `--group-size 64`, which divides them."),
        ("Download it again.", "Download it again."),
    ],
)
def test_hints_name_options_where_there_is_no_watchlist(hint: str, said: str) -> None:
    assert hint_for_folders(hint) == said


@pytest.mark.parametrize(
    ("name", "content", "word"),
    [
        ("one-line.txt", b"One line, and that is all.\n", "tokens; 1,024 are needed"),
        ("binary.txt", b"text\n\0\1\2\n", ":2: binary content"),
        ("missing.txt", None, "does not exist"),
        ("chats.jsonl", b'{"messages": []}\n', "1 of 1 rows drawn cannot be used (1 without messages)"),
    ],
)
def test_unusable_calibration_text_is_named(
    quantize: Call, tmp_path: Path, name: str, content: bytes | None, word: str
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    assert_failed(quantize("--calibration", tmp_path / name), 5, str(tmp_path / name), word)


def test_missing_source_is_not_looked_for_elsewhere(call: Call, tmp_path: Path) -> None:
    nowhere, out = tmp_path / "nowhere", tmp_path / "out"
    assert_failed(call("quantize", "--source", nowhere, "--out", out), 2, f"{nowhere}: no such folder")
    assert_failed(call("evaluate", "--source", nowhere, "--quantized", out), 2, f"{nowhere}: no such folder")


def test_other_folders_are_neither_measured_nor_overwritten(
    call: Call, quantize: Call, source: Path, tmp_path: Path
) -> None:
    assert_failed(call("evaluate", "--source", source, "--quantized", source), 5, "no quantization_config")
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.txt").write_text("years of work")
    assert_failed(quantize(out=tmp_path / "thesis"), 2, "thesis: exists, and is not an AWQ folder")
    assert (tmp_path / "thesis" / "chapter.txt").read_text() == "years of work"
    below = tmp_path / "thesis" / "chapter.txt" / "out"
    assert_failed(quantize(out=below), 2, "chapter.txt is not a folder")


def test_folder_is_replaced_only_if_nothing_would_be_lost(
    quantize: Call, call: Call, source: Path, tmp_path: Path
) -> None:
    out, kept = tmp_path / "out", tmp_path / "kept"
    assert quantize().returncode == 0
    assert quantize("--group-size", "64").returncode == 0
    assert json.loads((out / "config.json").read_text())["quantization_config"]["group_size"] == 64
    out.rename(kept)

    def not_after(change: Callable[[], object], word: str) -> None:
        shutil.rmtree(out, ignore_errors=True)
        shutil.copytree(kept, out)
        change()
        before = {path: path.read_bytes() for path in out.iterdir()}
        assert_failed(call("quantize", "--source", source, "--out", out), 2, f"{out}: ", word)
        assert {path: path.read_bytes() for path in out.iterdir()} == before

    template = out / "tokenizer_config.json"
    not_after(lambda: (out / "notes.md").write_text("what I found out"), "holds notes.md, which")
    not_after(lambda: template.write_text(template.read_text() + " "), "holds tokenizer_config.json, which")
    record = record_path(out).read_bytes()
    not_after(record_path(out).unlink, "that `awq-bot quantize` did not write")
    record_path(out).write_bytes(b"{}")
    not_after(lambda: (out / "notes.md").write_text("2"), "that `awq-bot quantize` did not write")
    record_path(out).unlink()
    (kept / ".awq-bot.json").write_bytes(record)  # as earlier versions wrote it
    not_after(lambda: (out / "notes.md").write_text("3"), "holds notes.md, which")
    weights = source / WEIGHTS
    other = change_a_weight(weights.read_bytes(), 1)
    not_after(lambda: weights.write_bytes(other), "was made from another model")


def test_out_that_cannot_be_replaced_is_refused_before_any_work(
    call: Call, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    monkeypatch.chdir(tmp_path / "real")
    for out in (tmp_path / "link", "."):
        assert_failed(call("quantize", "--source", source, "--out", out), 2, "cannot be replaced as a whole")


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="there is no /proc")
def test_out_that_cannot_be_created_is_refused_before_any_work(call: Call, source: Path) -> None:
    result = call("quantize", "--source", source, "--out", "/proc/made/out")
    assert_failed(result, 8, "/proc/made/out: cannot be written")
    assert "loading" not in result.stderr


def test_full_disk_is_reported_with_the_file_and_the_next_run_resumes(quantize: Call, tmp_path: Path) -> None:
    assert quantize(out=tmp_path / "whole").returncode == 0
    largest = (tmp_path / "whole" / WEIGHTS).stat().st_size
    folder = tmp_path / "disk"
    folder.mkdir()
    with files_smaller_than(largest):
        result = quantize(out=folder / "out")
    assert_failed(result, 8, str(folder), WEIGHTS, "cannot be written: File too large")
    assert not (folder / "out").exists()
    assert quantize(out=folder / "out").returncode == 0
    assert {path.name for path in folder.iterdir()} == {"out", record_path(folder / "out").name}
    assert (folder / "out" / WEIGHTS).read_bytes() == (tmp_path / "whole" / WEIGHTS).read_bytes()


@contextmanager
def files_smaller_than(size_bytes: int) -> Iterator[None]:
    """A limit that a write meets as it meets a full disk; needs no right to mount one."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes - 1, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_read_only_disk_is_reported(quantize: Call, tmp_path: Path) -> None:
    with mounted(tmp_path / "disk", options="ro") as folder:
        assert_failed(quantize(out=folder / "out"), 8, "cannot be written: Read-only file system")
