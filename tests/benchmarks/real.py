"""A real model, SmolLM2-135M-Instruct, quantized by each method and measured on prose, code and chat.

    make bench-real                    all of it: AutoAWQ takes an hour of CPU time, ours some minutes
    make bench-real BENCH=--quick      8 blocks of each text, and AutoAWQ only where its artifact is there

Every method runs in a separate process with one thread, on the same calibration tokens. Its artifact is read back
from disk to be measured. Artifacts and losses are kept in $XDG_CACHE_HOME/awq-bot/bench-real and not made again: a
run that was cut short goes on from there.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from bot.calibration.blocks import build_calibration_set, tokens_sha256
from bot.checkpoint.constants import tool_versions
from bot.errors import BotError, QuantizationError
from bot.evaluate.metrics import evaluate
from bot.files import file_sha256, write_atomic
from bot.records import Calibration, TextSource, canonical_json, no_progress, sha256_of
from tests.benchmarks.real_table import OURS, PEERS, Loss, Measured, figures_of, last_line, write_table
from tests.benchmarks.run import ROOT, Run, run_apart, store
from tests.benchmarks.texts import BLOCKS, Text, chat_file, measured_texts, pydoc_file
from tests.support.real_model import GROUP_SIZE, NAME, NotAvailableError, cache_folder, real_model

RESULTS = Path(__file__).parent / "results" / "real.json"
# Few, because AutoAWQ's time grows with them. Every method gets the same.
SAMPLES, SEQ_LEN = 16, 512
QUICK_BLOCKS = 8
AT_ONCE = 2  # processes that quantize
# As long a run of tokens that is in both texts is a copied passage, and not a phrase.
SHARED_TOKENS = 64
# What an artifact of ours, and what the losses of any artifact, depend on.
OUR_CODE = ("bot/quantize", "bot/checkpoint")
MEASURING_CODE = ("bot/evaluate", "bot/checkpoint")


@dataclass(frozen=True)
class Bench:
    """model: the source's folder; folder: for everything that is kept."""

    model: Path
    folder: Path

    @cached_property
    def model_sha256(self) -> str:
        return file_sha256(self.model / "model.safetensors")


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """An artifact that was made, by this or an earlier run."""

    method: str
    calibration: str
    folder: Path
    run: Run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="8 blocks of each text, nothing by AutoAWQ")
    quick = parser.parse_args().quick
    try:
        model = real_model()
    except NotAvailableError as error:
        print(f"real: skipped, {NAME} is not available here: {error.message}")
        return
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    compare_methods(Bench(model, cache_folder() / "bench-real"), quick=quick)


def compare_methods(bench: Bench, *, quick: bool) -> None:
    bench.folder.mkdir(parents=True, exist_ok=True)
    chat = chat_file(bench.model, bench.folder)
    texts = measured_texts(bench.model, bench.folder, chat=chat, blocks=QUICK_BLOCKS if quick else BLOCKS)
    blocks = calibration_blocks(bench)
    for name, tokens in blocks.items():
        check_disjoint(name, tokens, texts)
    measured = []
    for kept in _quantized(bench, blocks, quick=quick):
        losses = tuple(_loss(bench, kept, text) for text in texts)
        measured.append(Measured(method=kept.method, calibration=kept.calibration, run=kept.run, losses=losses))
        print(measured[-1], flush=True)
    measured.sort(key=lambda one: (one.method == OURS, one.method, one.calibration))
    results = {
        "model": NAME,
        "model_sha256": bench.model_sha256,
        "group_size": GROUP_SIZE,
        "calibration": {name: _described(tokens) for name, tokens in blocks.items()},
        "texts": {text.name: {"label": text.label} | _described(text.tokens) for text in texts},
        "figures": figures_of(measured),
        "measured": [asdict(one) for one in measured],
    }
    store(RESULTS, "quick" if quick else "full", results)
    if not quick:
        write_table(json.loads(RESULTS.read_text())["full"])
    print(last_line(figures_of(measured)))


def calibration_blocks(bench: Bench) -> dict[str, Tensor]:
    """int64 [SAMPLES, SEQ_LEN] by the name of the text."""
    sources = {
        "stdlib": TextSource(builtin="stdlib"),
        "pydoc": TextSource(file=str(pydoc_file(bench.folder))),
    }
    made = {}
    for name, source in sources.items():
        asked = Calibration(samples=SAMPLES, seq_len=SEQ_LEN, sources=(source,))
        made[name], _ = build_calibration_set(
            asked, tokenizer_folder=bench.model, folder=Path(), trust_remote_code=False
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


def _quantized(bench: Bench, blocks: dict[str, Tensor], *, quick: bool) -> Iterator[Kept]:
    """The artifact of each method, as soon as it is there; that of rounding depends on no text."""
    wanted = [*((peer, "stdlib") for peer in PEERS), *((OURS, name) for name in blocks)]
    if quick:
        wanted = [
            (method, name)
            for method, name in wanted
            if method != "autoawq" or _is_kept(bench, method, blocks[name])
        ]
    with ThreadPoolExecutor(AT_ONCE) as pool:
        running = [pool.submit(_quantize, bench, method, name, blocks[name]) for method, name in wanted]
        yield from (done.result() for done in as_completed(running))


def _is_kept(bench: Bench, method: str, tokens: Tensor) -> bool:
    return (_place(bench, method, tokens) / "run.json").exists()


def _place(bench: Bench, method: str, tokens: Tensor) -> Path:
    code = _code_sha256(OUR_CODE) if method != "autoawq" else ""
    made_of = [bench.model_sha256, tokens_sha256(tokens), GROUP_SIZE, tool_versions(), code]
    return bench.folder / f"{method}-{sha256_of(made_of)[:12]}"


def _quantize(bench: Bench, method: str, calibration: str, tokens: Tensor) -> Kept:
    folder = _place(bench, method, tokens)
    record = folder / "run.json"
    if not record.exists():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        save_file({"blocks": tokens}, folder / "tokens.safetensors")
        arguments = [method, str(bench.model), str(folder / "tokens.safetensors")]
        run = run_apart([*arguments, "--group", str(GROUP_SIZE), "--keep", str(folder / "artifact")])
        write_atomic(record, canonical_json(asdict(run)))
    return Kept(method=method, calibration=calibration, folder=folder, run=Run(**json.loads(record.read_text())))


def _loss(bench: Bench, kept: Kept, text: Text) -> Loss:
    made_of = [text.sha256, _code_sha256(MEASURING_CODE), tool_versions()]
    record = kept.folder / f"loss-{text.name}-{sha256_of(made_of)[:12]}.json"
    if not record.exists():
        report = evaluate(
            bench.model,
            kept.folder / "artifact",
            tokens=text.tokens,
            text_label=text.label,
            trust_remote_code=False,
            progress=no_progress,
            device="cpu",
        )
        loss = Loss(
            text=text.name,
            kl=report.kl_mean,
            top1=report.top1_agreement,
            perplexity=report.perplexity_quantized,
            perplexity_source=report.perplexity_source,
        )
        write_atomic(record, canonical_json(asdict(loss)))
    return Loss(**json.loads(record.read_text()))


def _code_sha256(folders: Sequence[str]) -> str:
    files = sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))
    return sha256_of([(str(path.relative_to(ROOT)), file_sha256(path)) for path in files])


def _described(tokens: Tensor) -> dict[str, object]:
    return {"blocks": len(tokens), "seq_len": tokens.shape[1], "sha256": tokens_sha256(tokens)}


if __name__ == "__main__":
    try:
        main()
    except BotError as error:
        raise SystemExit(f"error: {error.message}" + (f"\n{error.hint}" if error.hint else "")) from error
