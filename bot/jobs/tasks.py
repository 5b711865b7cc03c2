"""What runs in the child processes: calibrate and quantize, evaluate and plot, test a refresh's small files.

The only module that joins calibration, quantize and evaluate.
"""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

from bot.calibration.blocks import build, evaluation_tokens
from bot.calibration.encoding import try_tokenizer
from bot.checkpoint.repo_files import carry_small_files
from bot.errors import WatchlistError
from bot.evaluate.metrics import evaluate as measure
from bot.evaluate.plots import draw_error_by_layer
from bot.files import describe_file, disk_errors
from bot.jobs.folder import JobDir, evaluate_inputs, quantize_inputs
from bot.quantize.artifact import check_folders
from bot.quantize.artifact import quantize as make_artifact
from bot.records import Calibration, Progress, QuantizedModel, Recipe, Report, SmallFiles, Weights


def quantize_job(jobdir: JobDir, progress: Progress) -> QuantizedModel:
    """source/ -> quantized/ and its record."""
    job = jobdir.job
    weights = jobdir.load(Weights)
    if weights is None:
        raise WatchlistError(f"{jobdir.path}: nothing pulled yet", hint="Run `awq-bot pull --job` first.")
    quantized = quantize_folder(
        jobdir.source,
        jobdir.quantized,
        layers=jobdir.layers,
        recipe=job.entry.recipe,
        calibration=job.entry.calibration,
        texts=jobdir.calibration,
        trust_remote_code=job.entry.trust_remote_code,
        progress=progress,
    )
    jobdir.store(quantized, inputs=quantize_inputs(job, weights))
    return quantized


def quantize_folder(
    source: Path,
    out: Path,
    *,
    recipe: Recipe,
    calibration: Calibration,
    texts: Path,
    trust_remote_code: bool,
    progress: Progress,
    layers: Path | None = None,
) -> QuantizedModel:
    """A model folder in, a complete AWQ folder out.

    texts: the folder of the calibration files. layers: a folder for one file per layer. If None, they are written
    beside `out` and removed, and `out` is a person's folder: it is only replaced where nothing is lost.
    """
    own = layers is None
    # transformers would blame the tokenizer for a broken config.json, or look for the folder on the Hub.
    check_folders(source, out, recipe=recipe, trust_remote_code=trust_remote_code, on_record=own)
    blocks, used = build(calibration, tokenizer_folder=source, folder=texts, trust_remote_code=trust_remote_code)
    parts = layers or out.with_name(f".{out.name}.layers")
    made = make_artifact(
        source,
        out,
        layers=parts,
        recipe=recipe,
        blocks=blocks,
        calibration=used,
        trust_remote_code=trust_remote_code,
        progress=progress,
        on_record=own,
    )
    if own:
        shutil.rmtree(parts)
    return made


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
    with disk_errors(picture):
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


def refresh_job(jobdir: JobDir) -> SmallFiles:
    """Try upstream's changed small files, and put them as they are published into quantized/."""
    job = jobdir.job
    try_tokenizer(jobdir.source, trust_remote_code=job.entry.trust_remote_code)
    shutil.rmtree(jobdir.quantized, ignore_errors=True)
    with disk_errors(jobdir.quantized):
        jobdir.quantized.mkdir(parents=True)
    paths = carry_small_files(jobdir.source, jobdir.quantized, trust_remote_code=job.entry.trust_remote_code)
    files = SmallFiles(files=tuple(describe_file(jobdir.quantized, path) for path in paths))
    jobdir.store(files)
    return files
