"""Calibrate and quantize."""

from __future__ import annotations

import shutil
from pathlib import Path

from bot.calibration.blocks import build
from bot.errors import WatchlistError
from bot.jobdir import JobDir, quantize_inputs
from bot.quantize.artifact import check_folders
from bot.quantize.artifact import quantize as make_artifact
from bot.records import Calibration, Progress, QuantizedModel, Recipe, Weights


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

    texts: where the calibration's files lie. layers: keeps one file per layer. If None, they lie beside `out` and
    are removed, and `out` is a person's own: replaced only where nothing is lost.
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
