"""Inference engines for tests: what they are asked, answers, and stand-ins for their environments and packages."""

from __future__ import annotations

import sys
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from bot.hub.session import Hub
from bot.records import Engine, EngineAnswer, Reference, Scores, Served, to_json
from bot.serve.engines import engine_folder

ENGINE = Engine(name="gptqmodel", version="7.6.0")
NO_HUB = Hub("http://127.0.0.1:9")  # serving asks no Hub

REFERENCE = Reference(
    blocks=((5, 6, 7, 8), (9, 5, 6, 7)),
    log_probs=((-1.0, -2.0, -0.5), (-3.0, -0.25, -1.5)),
    likeliest=((6, 1, 8), (2, 6, 7)),
    margins=((1.0, 2.0, 0.1), (1.0, 1.0, 3.0)),
    prompts=((1, 2), (3,)),
)

ANSWER = EngineAnswer(
    scores=tuple(
        Scores(log_probs=row, likeliest=best, likeliest_log_probs=tuple(max(-0.5, value) for value in row))
        for row, best in zip(REFERENCE.log_probs, REFERENCE.likeliest, strict=True)
    ),
    generated=((4, 4), (2,)),
    generated_scores=(
        Scores(log_probs=(-5.0, -0.5, -0.5), likeliest=(3, 4, 4), likeliest_log_probs=(-0.1, -0.5, -0.5)),
        Scores(log_probs=(-1.0,), likeliest=(2,), likeliest_log_probs=(-1.0,)),
    ),
    tokens_per_s=12.5,
    kernel="TorchAtenAwqLinear",
    device="CPU",
    versions={"gptqmodel": "7.6.0", "torch": "2.13.0"},
)


def served(**fields: Any) -> Served:
    standard: dict[str, Any] = {
        "engine": "gptqmodel",
        "version": "7.6.0",
        "kernel": "TorchAtenAwqLinear",
        "device": "CPU",
        "tokens": 2044,
        "mean_difference": 0.0081,
        "max_difference": 0.0546,
        "agreement": 1.0,
        "new_tokens": 96,
        "tokens_per_s": 10.42,
        "versions": {"gptqmodel": "7.6.0", "torch": "2.13.0"},
    }
    return Served(**standard | fields)


def shifted(answer: EngineAnswer, nats: float) -> EngineAnswer:
    """Each block's log-probabilities are off by so much."""
    moved = (replace(row, log_probs=tuple(value + nats for value in row.log_probs)) for row in answer.scores)
    return replace(answer, scores=tuple(moved))


def stand_in_environment(engine: Engine = ENGINE) -> Path:
    """An installed environment whose Python is this one's, without any package. Its folder."""
    folder = engine_folder(engine)
    (folder / "bin").mkdir(parents=True)
    (folder / "bin" / "python").symlink_to(sys.executable)
    (folder / ".complete").touch()
    return folder


def answering(path: Path, answer: EngineAnswer, code: str = "") -> Path:
    """A script in the place of the engine's that gives this answer. code: runs before, and may change it."""
    text = f"import json, sys\nfrom pathlib import Path\nanswer = json.loads({to_json(answer)!r})\n{code}\n"
    path.write_text(text + "Path(sys.argv[2]).write_text(json.dumps(answer))\n")
    return path


def write_wheel(folder: Path, name: str, version: str) -> None:
    """A package with nothing in it, for a real pip that has no index."""
    info = f"{name}-{version}.dist-info"
    files = {
        f"{name}.py": "",
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = "".join(f"{path},,\n" for path in (*files, f"{info}/RECORD"))
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as archive:
        for path, content in (*files.items(), (f"{info}/RECORD", record)):
            archive.writestr(path, content)
