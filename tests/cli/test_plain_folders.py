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
import transformers
from safetensors.numpy import load, save

from bot.calibration import stdlib
from bot.calibration.blocks import evaluation_tokens
from bot.cli import app
from bot.quantize.destination import RECORD
from tests.support.sandbox import ASSETS, MODELS
from tests.support.small_disk import mounted
from tests.support.small_sandbox import CONFIG, WEIGHTS, assert_failed, small_model, small_weights

Result = subprocess.CompletedProcess[str]
Run = Callable[..., Result]

FIGURES = (
    "perplexity_source",
    "perplexity_quantized",
    "kl_mean",
    "kl_p99",
    "top1_agreement",
    "bits_per_weight",
    "bits_per_weight_file",
)
GROUP_SIZE = 128
TEXT_CHARACTERS = 40_000  # some 8,000 tokens: enough to tell AWQ from plain rounding, and quickly read


# --- for programs -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Made:
    """A model quantized and measured by the command line. text: what it was measured on."""

    source: Path
    out: Path
    text: Path
    quantized: Result
    evaluated: Result


@pytest.fixture(scope="module", params=MODELS)
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp(request.param)
    source, out, text = ASSETS / request.param, folder / "out", folder / "unseen.txt"
    text.write_text("\n".join(stdlib.documents("test"))[:TEXT_CHARACTERS])
    size = ("--samples", "16", "--seq-len", "256")
    folders = ("--source", str(source), "--quantized", str(out))
    return Made(
        source=source,
        out=out,
        text=text,
        quantized=_process("quantize", "--source", str(source), "--out", str(out), *size, "--json"),
        evaluated=_process("evaluate", *folders, "--text", str(text), "--json"),
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
    assert json.loads(made.evaluated.stdout).keys() >= set(FIGURES)


def test_figures_are_plausible(made: Made) -> None:
    report = json.loads(made.evaluated.stdout)
    assert all(isinstance(report[name], float) for name in FIGURES)
    assert 1 < report["perplexity_source"] < report["perplexity_quantized"] < 1.4 * report["perplexity_source"]
    assert 0 < report["kl_mean"] < report["kl_p99"]
    assert 0.6 < report["top1_agreement"] < 1
    assert report["bits_per_weight"] == pytest.approx(4 + (16 + 4) / GROUP_SIZE)
    assert report["bits_per_weight"] < report["bits_per_weight_file"] < 16
    assert json.loads(made.quantized.stdout)["bits_per_weight"] == report["bits_per_weight"]


def test_the_folder_is_whole_and_nothing_is_left_beside_it(made: Made) -> None:
    assert {path.name for path in made.out.parent.iterdir()} == {"out", "unseen.txt"}
    listed = {file["path"] for file in json.loads(made.quantized.stdout)["files"]}
    there = {path.relative_to(made.out).as_posix() for path in made.out.rglob("*") if path.is_file()}
    assert there == listed | {RECORD}
    assert {"config.json", "tokenizer.json", "generation_config.json", "LICENSE"} <= listed


def test_it_loses_less_than_plain_rounding_on_the_same_tokens(made: Made) -> None:
    report = json.loads(made.evaluated.stdout)
    tokens, _ = evaluation_tokens(tokenizer_folder=made.source, trust_remote_code=False, text=made.text)
    assert tokens.numel() == report["tokens"]
    lost_by_rounding = kl_of_plain_rounding(made.source, tokens)
    assert report["kl_mean"] < 0.95 * lost_by_rounding


@torch.inference_mode()
def kl_of_plain_rounding(folder: Path, tokens: torch.Tensor) -> float:
    """Mean KL in nats per predicted token when every linear of the layers is rounded to 4 bits, and no more."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    expected = [model(block[None]).logits[0, :-1].log_softmax(-1) for block in tokens]
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and ".layers." in name:
            module.weight.copy_(torch.from_numpy(plain_rounding(module.weight.numpy())))
    parts = [
        (log_p.exp() * (log_p - model(block[None]).logits[0, :-1].log_softmax(-1))).sum(-1)
        for log_p, block in zip(expected, tokens, strict=True)
    ]
    return float(torch.cat(parts).double().mean())


def plain_rounding(weight: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """weight [out, in], each GROUP_SIZE inputs on 16 steps, zero among them; scales in float16."""
    groups = weight.astype(np.float32).reshape(len(weight), -1, GROUP_SIZE)
    low, high = groups.min(-1, keepdims=True).clip(max=0), groups.max(-1, keepdims=True).clip(min=0)
    scale = ((high - low) / 15).astype(np.float16).astype(np.float32)
    zero = np.clip(np.rint(-low / scale), 0, 15)
    steps = np.clip(np.rint(groups / scale) + zero, 0, 15)
    return np.asarray((steps - zero) * scale, dtype=np.float32).reshape(weight.shape)


# --- what is refused ----------------------------------------------------------------------------------------


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """The command line in this process, so that torch is imported once."""
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("signal.signal", lambda *args: None)

    def call(*words: str | Path) -> Result:
        arguments = ["awq-bot", *map(str, words)]
        monkeypatch.setattr(sys, "argv", arguments)
        with pytest.raises(SystemExit) as ended:
            app.main()
        printed = capsys.readouterr()
        code = ended.value.code
        return Result(arguments, code if isinstance(code, int) else 0, printed.out, printed.err)

    return call


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A small model's folder."""
    folder = tmp_path / "source"
    folder.mkdir()
    for path, content in small_model().items():
        if isinstance(content, Path):
            shutil.copy(content, folder / path)
        else:
            (folder / path).write_bytes(content.encode() if isinstance(content, str) else content)
    return folder


@pytest.fixture
def quantize(run: Run, source: Path, tmp_path: Path) -> Run:
    """Quantize the small model into `out`, with more words. Fails when a refusal leaves anything behind."""

    def call(*more: str | Path, out: Path = tmp_path / "out") -> Result:
        result = run("quantize", "--source", source, "--out", out, "--samples", "16", "--seq-len", "64", *more)
        if result.returncode != 0:
            assert not (out / "config.json").exists()
            assert not (out.parent / f".{out.name}.partial").exists()
        return result

    return call


def truncate(source: Path) -> None:
    (source / WEIGHTS).write_bytes((source / WEIGHTS).read_bytes()[:-100])


def name_a_missing_shard(source: Path) -> None:
    (source / WEIGHTS).unlink()
    weight_map = {"model.norm.weight": "model-00001-of-00002.safetensors"}
    (source / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def leave_pickles_only(source: Path) -> None:
    (source / WEIGHTS).rename(source / "pytorch_model.bin")


def put_a_nan(source: Path) -> None:
    weights = load((source / WEIGHTS).read_bytes())
    weights["model.layers.0.mlp.up_proj.weight"][3, 7] = np.nan
    (source / WEIGHTS).write_bytes(save(weights))


def cut_the_tokenizer(source: Path) -> None:
    (source / "tokenizer.json").write_text('{"version": "1.0", "model"')


@pytest.mark.parametrize(
    ("damage", "code", "words"),
    [
        (truncate, 3, (WEIGHTS, "ends at byte")),
        (name_a_missing_shard, 3, ("model-00001-of-00002.safetensors: missing",)),
        (leave_pickles_only, 3, ("source: neither model.safetensors nor",)),
        (put_a_nan, 5, ("layer 0, mlp.up_proj", "NaN")),
        (cut_the_tokenizer, 5, ("the tokenizer in", "source does not load")),
    ],
)
def test_damaged_source_is_reported_with_the_place(
    quantize: Run, source: Path, damage: Callable[[Path], None], code: int, words: tuple[str, ...]
) -> None:
    damage(source)
    assert_failed(quantize(), code, *words)


@pytest.mark.parametrize(
    ("config", "code", "word"),
    [
        ({key: value for key, value in CONFIG.items() if key != "model_type"}, 4, "has no model_type"),
        ([CONFIG], 3, "not a JSON object"),
        (CONFIG | {"model_type": "no-such-type"}, 4, "no-such-type"),
        (CONFIG | {"quantization_config": {"quant_method": "awq"}}, 4, "already quantized"),
        (CONFIG | {"intermediate_size": 512}, 3, "mismatched keys"),
    ],
    ids=["without model_type", "a list", "unknown type", "already quantized", "other shapes"],
)
def test_unusable_config_is_reported(quantize: Run, source: Path, config: object, code: int, word: str) -> None:
    (source / "config.json").write_text(json.dumps(config))
    assert_failed(quantize(), code, str(source), word)


def test_shapes_that_do_not_divide_are_named(quantize: Run, source: Path) -> None:
    config = CONFIG | {"hidden_size": 96}
    (source / "config.json").write_text(json.dumps(config))
    (source / WEIGHTS).write_bytes(save(small_weights(config)))
    assert_failed(quantize(), 4, "self_attn.q_proj: 96 input channels", "group size 128")
    assert quantize("--group-size", "32").returncode == 0


def test_chats_for_a_model_without_a_template_are_read_as_texts(
    quantize: Run, source: Path, tmp_path: Path
) -> None:
    (source / "chat_template.jinja").unlink()
    chats = tmp_path / "chats.jsonl"
    line = json.dumps({"messages": [{"role": "user", "content": "Hello? " * 50}]})
    chats.write_text(f"{line}\n")
    assert_failed(quantize("--calibration", chats), 5, f"{chats}: ", "tokens; 1,024 are needed")
    chats.write_text("".join(f"{line.replace('Hello', f'Hello {number}')}\n" for number in range(50)))
    done = quantize("--calibration", chats)
    assert done.returncode == 0
    folders = f"--source {source} --quantized {tmp_path / 'out'}"
    assert f"next: awq-bot evaluate {folders}\n" in done.stderr


@pytest.mark.parametrize(
    ("name", "content", "word"),
    [
        ("empty.txt", b"", "no text in it"),
        ("blank.jsonl", b"\n\n", "no text in it"),
        ("one-line.txt", b"One line, and that is all.\n", "tokens; 1,024 are needed"),
        ("binary.txt", b"text\n\0\1\2\n", ":2: binary content"),
        ("latin.txt", "Übergrößenträger\n".encode("latin-1"), "not UTF-8 text"),
        ("broken.jsonl", b'{"text": "whole"}\n{"text": "ha', ":2: broken JSON"),
        ("broken.parquet", b"PAR1PAR1", "broken parquet file"),
        ("photo.png", b"\x89PNG", "cannot read .png"),
        ("missing.txt", None, "is not there"),
    ],
)
def test_unusable_calibration_text_is_named(
    quantize: Run, tmp_path: Path, name: str, content: bytes | None, word: str
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    assert_failed(quantize("--calibration", tmp_path / name), 5, str(tmp_path / name), word)


def test_missing_source_is_not_looked_for_elsewhere(run: Run, tmp_path: Path) -> None:
    nowhere, out = tmp_path / "nowhere", tmp_path / "out"
    assert_failed(run("quantize", "--source", nowhere, "--out", out), 2, f"{nowhere}: no such folder")
    assert_failed(run("evaluate", "--source", nowhere, "--quantized", out), 2, f"{nowhere}: no such folder")


def test_other_folders_are_neither_measured_nor_overwritten(
    run: Run, quantize: Run, source: Path, tmp_path: Path
) -> None:
    assert_failed(run("evaluate", "--source", source, "--quantized", source), 5, "no quantization_config")
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.txt").write_text("years of work")
    assert_failed(quantize(out=tmp_path / "thesis"), 2, "thesis: exists, and is no AWQ folder")
    assert (tmp_path / "thesis" / "chapter.txt").read_text() == "years of work"
    below = tmp_path / "thesis" / "chapter.txt" / "out"
    assert_failed(quantize(out=below), 2, "chapter.txt is no folder")


def test_folder_is_replaced_only_if_nothing_would_be_lost(
    quantize: Run, run: Run, source: Path, tmp_path: Path
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
        assert_failed(run("quantize", "--source", source, "--out", out), 2, f"{out}: ", word)
        assert {path: path.read_bytes() for path in out.iterdir()} == before

    template = out / "tokenizer_config.json"
    not_after(lambda: (out / "notes.md").write_text("what I found out"), "holds notes.md, which")
    not_after(lambda: template.write_text(template.read_text() + " "), "holds tokenizer_config.json, which")
    not_after((out / RECORD).unlink, "that `awq-bot quantize` did not write")
    weights = load((source / WEIGHTS).read_bytes())
    weights["model.layers.0.mlp.up_proj.weight"][3, 7] += 1
    not_after(lambda: (source / WEIGHTS).write_bytes(save(weights)), "was made from another model")


def test_out_that_cannot_be_replaced_is_refused_before_any_work(
    run: Run, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    assert_failed(
        run("quantize", "--source", source, "--out", tmp_path / "link"), 2, "cannot be replaced as a whole"
    )
    monkeypatch.chdir(tmp_path / "real")
    assert_failed(run("quantize", "--source", source, "--out", "."), 2, "cannot be replaced as a whole")


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="there is no /proc")
def test_out_that_cannot_be_created_is_refused_before_any_work(run: Run, source: Path) -> None:
    result = run("quantize", "--source", source, "--out", "/proc/made/out")
    assert_failed(result, 8, "/proc/made/out: cannot be written")
    assert "loading" not in result.stderr


def test_full_disk_is_reported_with_the_file_and_the_next_run_resumes(quantize: Run, tmp_path: Path) -> None:
    assert quantize(out=tmp_path / "whole").returncode == 0
    largest = (tmp_path / "whole" / WEIGHTS).stat().st_size
    folder = tmp_path / "disk"
    folder.mkdir()
    with files_smaller_than(largest):
        result = quantize(out=folder / "out")
    assert_failed(result, 8, str(folder), WEIGHTS, "cannot be written: File too large")
    assert not (folder / "out").exists()
    assert quantize(out=folder / "out").returncode == 0
    assert {path.name for path in folder.iterdir()} == {"out"}
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


def test_read_only_disk_is_reported(quantize: Run, tmp_path: Path) -> None:
    with mounted(tmp_path / "disk", options="ro") as folder:
        assert_failed(quantize(out=folder / "out"), 8, "cannot be written: Read-only file system")
