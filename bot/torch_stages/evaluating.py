"""Evaluate and draw."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from bot.calibration.blocks import evaluation_tokens
from bot.checkpoint.writer import writing
from bot.errors import WatchlistError
from bot.evaluate.metrics import evaluate as measure
from bot.evaluate.plots import draw_error_by_layer
from bot.jobdir import JobDir, evaluate_inputs
from bot.records import Progress, QuantizedModel, Report

PICTURE = "assets/error-by-layer.png"


def evaluate_job(jobdir: JobDir, progress: Progress) -> Report:
    """quantized/ against source/ -> the report and its pictures."""
    job, quantized = jobdir.job, jobdir.load(QuantizedModel)
    if quantized is None:
        raise WatchlistError(f"{jobdir.path}: nothing quantized yet", hint="Run `awq-bot quantize --job` first.")
    report = evaluate_folder(
        jobdir.source,
        jobdir.quantized,
        text=None,
        trust_remote_code=job.entry.trust_remote_code,
        progress=progress,
    )
    picture = jobdir.card / PICTURE
    with writing(picture):
        picture.parent.mkdir(parents=True, exist_ok=True)
        draw_error_by_layer(quantized, picture)
    report = replace(report, pictures=(PICTURE,))
    jobdir.store(report, inputs=evaluate_inputs(quantized))
    return report


def evaluate_folder(
    source: Path, quantized: Path, *, text: Path | None, trust_remote_code: bool, progress: Progress
) -> Report:
    """text: a file to measure on, instead of text that calibration never sees."""
    for folder in (source, quantized):
        if not folder.is_dir():
            raise WatchlistError(f"{folder}: no such folder", hint="Check --source and --quantized.")
    tokens, label = evaluation_tokens(tokenizer_folder=source, trust_remote_code=trust_remote_code, text=text)
    return measure(
        source,
        quantized,
        tokens=tokens,
        text_label=label,
        trust_remote_code=trust_remote_code,
        progress=progress,
    )
