"""What `make bench-peers` does beside the long computation: layouts, measuring, ratios, libraries that fail."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from bot.checkpoint import gemm
from bot.checkpoint.reader import Checkpoint
from bot.evaluate.metrics import evaluate
from bot.files import cache_folder
from bot.records import no_progress
from tests.benchmarks import methods, tables
from tests.benchmarks.cases import ASSETS
from tests.benchmarks.compare_peers import ASSET_GROUP
from tests.benchmarks.kept import Calibrated, Model, is_kept, loss, measured, place
from tests.benchmarks.methods import GPTQMODEL, METHODS, OURS, ROUNDING, CannotRunError
from tests.benchmarks.peers.layouts import as_gemm
from tests.benchmarks.tables import NOT_MEASURED, PEERS, README, last_line_of_peers, marks, peers_on, peers_table
from tests.benchmarks.test_real import AUTOAWQ as SOME_AUTOAWQ
from tests.benchmarks.test_real import OURS as SOME_OURS
from tests.benchmarks.test_real import ROUNDING as SOME_ROUNDING
from tests.benchmarks.texts import Text

# One linear, 16 channels of it, as GPTQModel 7.6.0 and llm-compressor 0.14.0.1 saved it, and as they read it back.
LAYOUTS = Path(__file__).parent / "peers" / "layouts.safetensors"


@pytest.fixture
def model() -> Model:
    return Model("qwen3-tiny", ASSETS / "qwen3-tiny", ASSET_GROUP)


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.mark.parametrize(("layout", "reader"), [("gptq", "gptqmodel"), ("compressed", "llm_compressor")])
def test_a_repacked_linear_has_the_weights_that_its_library_reads(
    layout: str, reader: str, tmp_path: Path
) -> None:
    stored = load_file(LAYOUTS)
    saved = {name: tensor for name, tensor in stored.items() if name.startswith(layout)}
    save_file(saved | {"model.norm.weight": torch.ones(4)}, tmp_path / "model.safetensors")
    tensors = dict(as_gemm(Checkpoint(tmp_path)))
    assert set(tensors) == {f"{layout}.{part}" for part in gemm.Packed._fields} | {"model.norm.weight"}
    weight = gemm.dequantize(*(tensors[f"{layout}.{part}"] for part in gemm.Packed._fields))
    # Both read it as float16, and llm-compressor stores its scales in float32.
    assert torch.allclose(weight, stored[f"read_by_{reader}"].float(), rtol=2e-3, atol=0)


def test_linears_whose_groups_are_mixed_are_refused(tmp_path: Path) -> None:
    saved = {name: tensor for name, tensor in load_file(LAYOUTS).items() if name.startswith("gptq")}
    save_file(saved | {"gptq.g_idx": saved["gptq.g_idx"].flip(0)}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="gptq: the channels of a group are not neighbours"):
        dict(as_gemm(Checkpoint(tmp_path)))


@pytest.mark.slow
def test_losses_are_those_that_evaluation_reports_and_are_kept(model: Model) -> None:
    tokens = load_file(ASSETS / "tokens" / "qwen3-tiny.safetensors")["test"].long()[:3, :128].contiguous()
    texts = tuple(Text(name=name, label="", tokens=part) for name, part in (("a", tokens[:2]), ("b", tokens[1:])))
    calibrated = Calibrated(model=model, text="none", blocks=tokens)
    one = measured(ROUNDING, calibrated, texts)
    artifact = next(cache_folder("bench").glob("*/artifact"))
    for text, found in zip(texts, one.losses, strict=True):
        report = evaluate(
            model.folder,
            artifact,
            tokens=text.tokens,
            text_label="",
            trust_remote_code=False,
            progress=no_progress,
            device="cpu",
        )
        assert found == loss(model, artifact, text)
        assert found.kl == pytest.approx(report.kl_mean, rel=1e-4)
        assert found.top1 == report.top1_agreement
        assert found.perplexity == pytest.approx(report.perplexity_quantized, rel=1e-5)
        assert found.perplexity_source == pytest.approx(report.perplexity_source, rel=1e-5)
    assert one.bits_per_weight == pytest.approx(4 + 20 / ASSET_GROUP)
    # Made again, it would have other files' times.
    written = {path: path.stat().st_mtime_ns for path in artifact.parent.rglob("*")}
    assert measured(ROUNDING, calibrated, texts) == one
    assert {path: path.stat().st_mtime_ns for path in artifact.parent.rglob("*")} == written


def test_only_our_artifact_depends_on_our_code(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    calibrated = Calibrated(model=model, text="", blocks=torch.zeros(1, 8, dtype=torch.int64))

    def kept() -> set[str]:
        return {name for name, method in METHODS.items() if is_kept(method, calibrated)}

    for method in METHODS.values():
        place(method, calibrated).mkdir(parents=True)
        (place(method, calibrated) / "run.json").touch()
    assert kept() == set(METHODS)
    monkeypatch.setattr(methods, "OUR_CODE", ("bot/card",))
    assert kept() == set(METHODS) - {OURS.name}


def test_a_library_that_cannot_be_installed_is_named_with_pips_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    with pytest.raises(CannotRunError, match=r"^gptqmodel: pip cannot install it: .*torch==2\.13\.0"):
        methods.make(GPTQMODEL, tmp_path, tmp_path, tmp_path / "out", group_size=128)


def test_a_run_that_fails_is_named_with_its_last_line(tmp_path: Path) -> None:
    python = cache_folder("peers") / "gptqmodel" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text("#!/bin/sh\necho Traceback >&2\necho 'RuntimeError: no kernel' >&2\nexit 1\n")
    python.chmod(0o755)
    (python.parents[1] / "installed.txt").write_text((methods.PEERS_FOLDER / "gptqmodel.txt").read_text())
    with pytest.raises(CannotRunError, match=r"^gptqmodel: RuntimeError: no kernel$"):
        methods.make(GPTQMODEL, tmp_path, tmp_path, tmp_path / "out", group_size=128)


MODELS = {
    "tiny": {
        "model_sha256": "m",
        "group_size": 64,
        "calibration": {"blocks": 16, "seq_len": 512, "sha256": "c"},
        "texts": {"prose": {"sha256": "p"}, "code": {"sha256": "q"}},
        "measured": [asdict(one) for one in (SOME_AUTOAWQ, SOME_ROUNDING, SOME_OURS)],
        "failed": {"gptqmodel": "gptqmodel: RuntimeError: no kernel"},
    }
}


def test_last_line_names_the_peer_that_ours_is_nearest_to() -> None:
    assert last_line_of_peers(MODELS) == "peers: best=rounding kl_ratio=0.600"


def test_table_has_versions_and_what_was_not_measured() -> None:
    assert peers_table({"full": {"models": MODELS}}).splitlines()[4:] == [
        "| source |  |  |  | 19.00 | 4.00 |",
        "| AutoAWQ 0.2.9, fixed | 4.25 | 20 | 0 | 0.2000, 80.0%, 20.00 | 0.2000, 90.0%, 5.00 |",
        "| rounding to nearest | 4.25 | 40 | 0 | 0.4000, 80.0%, 20.00 | 0.1000, 90.0%, 5.00 |",
        "| ours, `awq+gptq` | 4.25 | 10 | 0 | 0.1000, 81.2%, 20.00 | 0.0600, 91.2%, 5.00 |",
        "| GPTQModel, GPTQ |  |  |  | not measured: gptqmodel: RuntimeError: no kernel |",
        "| **KL, ours ÷ best peer** |  |  |  | **0.500** (autoawq) | **0.600** (rounding) |",
    ]


@pytest.mark.parametrize(
    ("calibration", "prose", "found"),
    [("c", "p", {"autoawq", "rounding"}), ("c", "other", set()), ("d", "p", set())],
)
def test_peers_count_for_the_real_model_only_on_the_same_tokens(
    calibration: str, prose: str, found: set[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tables, "PEERS", tmp_path / "peers.json")
    tables.PEERS.write_text(json.dumps({"full": {"models": MODELS}}))
    peers = peers_on("m", calibration, {"prose": {"sha256": prose}, "code": {"sha256": "q"}})
    assert set(peers) == found


def test_readme_has_the_table_of_the_results() -> None:
    results = json.loads(PEERS.read_text()) if PEERS.exists() else None
    begin, end = marks("bench-peers")
    shown = README.read_text().split(begin)[1].split(end)[0]
    assert shown == (peers_table(results) if results else NOT_MEASURED)
