"""Ours beside other libraries, on the trained models and on the real one.

    make bench-peers                   all of it: three hours of CPU time
    make bench-peers BENCH=--quick     one small model and few tokens: some minutes

Every library gets the same calibration tokens, as token ids, in a process with one thread and in an environment of
its own with pinned versions, in $XDG_CACHE_HOME/awq-bot/peers. What it saves is repacked as an AWQ checkpoint and
measured as ours is. Artifacts and losses are kept, see kept.py. A library that cannot run here is named with its
error.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from bot.calibration.blocks import build_calibration_set
from bot.errors import BotError
from bot.records import Calibration
from tests.benchmarks import real
from tests.benchmarks.cases import ASSETS, TRAINED
from tests.benchmarks.kept import Calibrated, Measured, Model, is_kept, measured, quantized
from tests.benchmarks.methods import (
    AUTO_ROUND,
    AUTO_ROUND_LIGHT,
    AUTOAWQ,
    GPTQMODEL,
    LLM_COMPRESSOR,
    OURS,
    ROUNDING,
    CannotRunError,
    Method,
)
from tests.benchmarks.run import store
from tests.benchmarks.tables import PEERS, last_line_of_peers, peers_table, write_table
from tests.benchmarks.texts import Text
from tests.support.real_model import NAME, NotAvailableError, real_model

ASSET_GROUP = 128
ASSET_SAMPLES, QUICK_SAMPLES, SEQ_LEN = 128, 16, 512
QUICK_BLOCKS = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """A model, what it is measured on, and by which methods it is quantized."""

    calibrated: Calibrated
    texts: tuple[Text, ...]
    methods: tuple[Method, ...]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one small model, 16 blocks")
    parser.add_argument("--kept", action="store_true", help="beside ours, only what an earlier run has made")
    parser.add_argument("--processes", type=int, default=2, help="that quantize at once")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    models = {}
    for subject in _subjects(quick=asked.quick):
        models[subject.calibrated.model.name] = _compare(subject, kept=asked.kept, processes=asked.processes)
    store(PEERS, "quick" if asked.quick else "full", {"models": models})
    write_table("bench-peers", peers_table(json.loads(PEERS.read_text())))
    print(last_line_of_peers(models))


def _subjects(*, quick: bool) -> Iterator[Subject]:
    # The quickest first. auto-round's 200 iterations are too many for the real model on a CPU.
    quickest = (OURS, ROUNDING, GPTQMODEL, LLM_COMPRESSOR[1])
    longer = (LLM_COMPRESSOR[0], LLM_COMPRESSOR[2])
    if quick:
        yield _asset(TRAINED[0], (*quickest, *longer, AUTO_ROUND_LIGHT, AUTOAWQ), quick=True)
        return
    for name in TRAINED:
        yield _asset(name, (*quickest, *longer, AUTO_ROUND, AUTOAWQ), quick=False)
    try:
        folder = real_model()
    except NotAvailableError as error:
        print(f"peers: {NAME} is not available here: {error.message}")
        return
    calibrated, texts = real.subjects(folder, quick=False)
    methods = (*quickest, AUTOAWQ, *longer, AUTO_ROUND_LIGHT)
    yield Subject(calibrated=calibrated[real.COMPARED], texts=texts, methods=methods)


def _asset(name: str, methods: tuple[Method, ...], *, quick: bool) -> Subject:
    folder = ASSETS / name
    asked = Calibration(samples=QUICK_SAMPLES if quick else ASSET_SAMPLES, seq_len=SEQ_LEN)
    blocks, _ = build_calibration_set(asked, tokenizer_folder=folder, folder=Path(), trust_remote_code=False)
    test = load_file(ASSETS / "tokens" / f"{name}.safetensors")["test"].long()
    text = Text(name="test", label="the committed `test` tokens", tokens=test[:QUICK_BLOCKS] if quick else test)
    calibrated = Calibrated(model=Model(name, folder, ASSET_GROUP), text="stdlib", blocks=blocks)
    return Subject(calibrated=calibrated, texts=(text,), methods=methods)


def _compare(subject: Subject, *, kept: bool, processes: int) -> dict[str, Any]:
    """A model of the results; ours comes last."""
    calibrated, model = subject.calibrated, subject.calibrated.model
    made: list[Measured] = []
    always = (OURS, ROUNDING) if kept else subject.methods
    wanted = [method for method in subject.methods if method in always or is_kept(method, calibrated)]
    failed = {method.name: "not run yet" for method in subject.methods if method not in wanted}
    with ThreadPoolExecutor(processes) as pool:
        running = {method.name: pool.submit(quantized, method, calibrated) for method in wanted}
        for method in wanted:
            try:
                running[method.name].result()
            except CannotRunError as error:
                failed[method.name] = error.message
                print(f"{model.name}: {error.message}", flush=True)
                continue
            made.append(measured(method, calibrated, subject.texts))
            print(made[-1], flush=True)
    return {
        "model_sha256": model.sha256,
        "group_size": model.group_size,
        "calibration": real.described_tokens(calibrated.blocks),
        "texts": {text.name: {"label": text.label} | real.described_tokens(text.tokens) for text in subject.texts},
        "measured": [asdict(one) for one in sorted(made, key=lambda one: (one.method == OURS.name, one.method))],
        "failed": failed,
    }


if __name__ == "__main__":
    try:
        main()
    except BotError as error:
        raise SystemExit(f"error: {error.message}" + (f"\n{error.hint}" if error.hint else "")) from error
