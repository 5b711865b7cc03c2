"""A real model, SmolLM2-135M-Instruct, quantized by each method and measured on prose, code and chat.

    make bench-real                    all of it: AutoAWQ takes half an hour of CPU time, ours some minutes
    make bench-real BENCH=--quick      8 blocks of each text, and AutoAWQ only where its artifact is there

Every method runs in a separate process with one thread, on the same calibration tokens. Its artifact is read back
from disk to be measured. Both are kept, see kept.py. Other libraries are measured by `make bench-peers`: its
figures count for the ratio to the best peer, where they are of the same model and tokens.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bot.calibration.blocks import build_calibration_set, tokens_sha256
from bot.errors import BotError, QuantizationError
from bot.records import Calibration
from tests.benchmarks.kept import Calibrated, Measured, Model, is_kept, measured, quantized
from tests.benchmarks.methods import AUTOAWQ, OURS, ROUNDING, Method
from tests.benchmarks.run import store
from tests.benchmarks.tables import figures_of_real, last_line_of_real, peers_on, real_table, write_table
from tests.benchmarks.texts import BLOCKS, Text, calibration_sources, measured_texts
from tests.support.real_model import GROUP_SIZE, NAME, NotAvailableError, real_model

RESULTS = Path(__file__).parent / "results" / "real.json"
# Few, because AutoAWQ's time grows with them. Every method gets the same.
SAMPLES, SEQ_LEN = 16, 512
COMPARED = "builtin"  # what the methods that are compared are calibrated on
QUICK_BLOCKS = 8
AT_ONCE = 2  # processes that quantize
# As long a run of tokens that is in both texts is a copied passage, and not a phrase.
SHARED_TOKENS = 64


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="8 blocks of each text, nothing new by AutoAWQ")
    parser.add_argument("--processes", type=int, default=AT_ONCE, help="that quantize at once")
    asked = parser.parse_args()
    try:
        folder = real_model()
    except NotAvailableError as error:
        print(f"real: skipped, {NAME} is not available here: {error.message}")
        return
    torch.set_num_threads(1)
    compare_methods(folder, quick=asked.quick, processes=asked.processes)


def compare_methods(folder: Path, *, quick: bool, processes: int) -> None:
    calibrated, texts = subjects(folder, quick=quick)
    wanted = [(method, calibrated[COMPARED]) for method in (AUTOAWQ, ROUNDING)]
    if quick:
        wanted = [one for one in wanted if one[0] != AUTOAWQ or is_kept(*one)]
    wanted += [(OURS, one) for one in calibrated.values()]
    made = list(_measured(wanted, texts, processes=processes))
    described = {text.name: {"label": text.label} | described_tokens(text.tokens) for text in texts}
    calibration = {name: described_tokens(one.blocks) for name, one in calibrated.items()}
    compared = calibrated[COMPARED]
    peers = peers_on(compared.model.sha256, calibration[COMPARED]["sha256"], described)
    figures = figures_of_real(made, peers, calibration=COMPARED)
    results = {
        "model": NAME,
        "model_sha256": compared.model.sha256,
        "group_size": GROUP_SIZE,
        "calibration": calibration,
        "compared": COMPARED,
        "texts": described,
        "figures": figures,
        "measured": [asdict(one) for one in made],
    }
    store(RESULTS, "quick" if quick else "full", results)
    if not quick:
        write_table("bench-real", real_table(json.loads(RESULTS.read_text())["full"]))
    print(last_line_of_real(figures))


def subjects(folder: Path, *, quick: bool) -> tuple[dict[str, Calibrated], tuple[Text, ...]]:
    """The model with each calibration text, and what it is measured on; they share no passage."""
    model = Model(NAME, folder, GROUP_SIZE)
    texts = measured_texts(folder, blocks=QUICK_BLOCKS if quick else BLOCKS)
    blocks = calibration_blocks(folder)
    for name, tokens in blocks.items():
        check_disjoint(name, tokens, texts)
    return {name: Calibrated(model=model, text=name, blocks=tokens) for name, tokens in blocks.items()}, texts


def calibration_blocks(folder: Path) -> dict[str, Tensor]:
    """int64 [SAMPLES, SEQ_LEN] by the name of the text."""
    made = {}
    for name, sources in calibration_sources().items():
        asked = Calibration(samples=SAMPLES, seq_len=SEQ_LEN, sources=sources)
        made[name], _ = build_calibration_set(
            asked, tokenizer_folder=folder, folder=Path(), trust_remote_code=False
        )
    return made


def check_disjoint(name: str, calibration: Tensor, texts: Iterable[Text]) -> None:
    """Raises QuantizationError when a passage of SHARED_TOKENS calibration tokens is in a text too."""
    seen = set(_passages(calibration))
    for text in texts:
        shared = sum(passage in seen for passage in _passages(text.tokens))
        if shared:
            raise QuantizationError(
                f"{text.name} ({text.label}) shares {shared:,} passages of {SHARED_TOKENS} tokens with the "
                f"calibration text {name}"
            )


def _passages(tokens: Tensor) -> Iterator[tuple[int, ...]]:
    for block in tokens.tolist():
        yield from (tuple(block[start : start + SHARED_TOKENS]) for start in range(len(block) - SHARED_TOKENS + 1))


def _measured(
    wanted: list[tuple[Method, Calibrated]], texts: tuple[Text, ...], *, processes: int
) -> Iterator[Measured]:
    """In the given order; the next artifacts are made while one is measured."""
    with ThreadPoolExecutor(processes) as pool:
        running = [pool.submit(quantized, *one) for one in wanted]
        for done, (method, calibrated) in zip(running, wanted, strict=True):
            done.result()
            one = measured(method, calibrated, texts)
            print(one, flush=True)
            yield one


def described_tokens(tokens: Tensor) -> dict[str, Any]:
    return {"blocks": len(tokens), "seq_len": tokens.shape[1], "sha256": tokens_sha256(tokens)}


if __name__ == "__main__":
    try:
        main()
    except BotError as error:
        raise SystemExit(f"error: {error.message}" + (f"\n{error.hint}" if error.hint else "")) from error
