"""What runs in the child processes: try small files, calibrate and quantize, evaluate and plot.

The only module that joins calibration, quantize and evaluate; it is imported where it runs, and nowhere else.
AutoAWQ takes seconds to import, and only quantizing needs it, so each function imports its stage.
"""

from __future__ import annotations

import datetime
import shutil
from collections.abc import Callable, Collection
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bot.calibration.blocks import build_calibration_set
from bot.calibration.encoding import UNKNOWN_DATE, load_encoder
from bot.calibration.evaluation import evaluation_tokens
from bot.calibration.overlap import UsedText
from bot.calibration.overlap import load as load_used_text
from bot.calibration.sources import local_path
from bot.calibration.trial import try_small_files
from bot.checkpoint.config_values import most_tokens
from bot.errors import WatchlistError
from bot.files import disk_errors
from bot.jobs.folder import JobDir, evaluate_inputs, quantize_inputs
from bot.records import (
    ERROR_BY_LAYER,
    KL_BY_POSITION,
    Calibration,
    Evaluation,
    Headers,
    Job,
    Progress,
    QuantizedModel,
    Recipe,
    Reference,
    Report,
    Weights,
)
from bot.watch.stock_tasks import lm_eval_version, stock_file, stock_problem

if TYPE_CHECKING:
    from bot.evaluate.models import FinalStates

_QUESTIONS = (
    "What is the capital of Japan?",
    "Write a Python function that adds two numbers.",
    "Explain in one sentence why the sky is blue.",
)


def quantize_job(jobdir: JobDir, progress: Progress) -> QuantizedModel:
    """Quantize source/ into quantized/."""
    job = jobdir.job
    weights = jobdir.load(Weights)
    if weights is None:
        raise WatchlistError(
            f"{jobdir.path}: nothing pulled yet", hint=f"Run `awq-bot pull --job {jobdir.path}` first."
        )
    quantized = quantize_folder(
        jobdir.source,
        jobdir.quantized,
        layers=jobdir.layers,
        recipe=job.entry.recipe,
        calibration=job.entry.calibration,
        texts=jobdir.calibration,
        used_text=jobdir.used_text,
        trust_remote_code=job.entry.trust_remote_code,
        planned=[file.path for file in job.refresh_files],
        progress=progress,
        date=_date_of(job),
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
    used_text: Path | None = None,
    layers: Path | None = None,
    planned: Collection[str] = (),
    date: datetime.date = UNKNOWN_DATE,
) -> QuantizedModel:
    """A model folder in, a complete AWQ folder out.

    texts: the folder of the calibration's files. used_text: see build_calibration_set. layers: the folder for one
    file per layer. If None, these lie beside `out` and are removed, and `out` is a user's folder: replaced only if
    nothing would be lost. planned: see `carry_small_files`. date: what chat templates take for today.
    """
    from bot.quantize.artifact import check_folders
    from bot.quantize.artifact import quantize as make_artifact

    own = layers is None
    # First, because transformers reports a broken config.json as one of the tokenizer, or looks for it on the Hub.
    check_folders(
        source, out, recipe=recipe, trust_remote_code=trust_remote_code, progress=progress, with_record=own
    )
    blocks, used = build_calibration_set(
        calibration,
        tokenizer_folder=source,
        folder=texts,
        trust_remote_code=trust_remote_code,
        date=date,
        used_text=used_text,
        progress=progress,
    )
    parts = layers or out.with_name(f".{out.name}.layers")
    quantized = make_artifact(
        source,
        out,
        layers=parts,
        recipe=recipe,
        blocks=blocks,
        calibration=used,
        trust_remote_code=trust_remote_code,
        progress=progress,
        planned=planned,
        with_record=own,
    )
    if own:
        shutil.rmtree(parts)
    return quantized


def _date_of(job: Job) -> datetime.date:
    """Of the source, so that a job which goes on tomorrow calibrates on the same tokens."""
    known = job.upstream.last_modified
    return datetime.date.fromisoformat(known) if known else UNKNOWN_DATE


def evaluate_job(jobdir: JobDir, progress: Progress) -> Report:
    """Measure quantized/ against source/: the report and its pictures."""
    from bot.evaluate.reference import make_reference

    job, quantized = jobdir.job, jobdir.load(QuantizedModel)
    if quantized is None:
        raise WatchlistError(
            f"{jobdir.path}: nothing quantized yet", hint=f"Run `awq-bot quantize --job {jobdir.path}` first."
        )
    references: list[Reference] = []
    prompts = _prompts(jobdir)
    report = evaluate_folder(
        jobdir.source,
        jobdir.quantized,
        evaluation=job.entry.evaluation,
        texts=jobdir.calibration,
        used=_used_text(jobdir, progress),
        trust_remote_code=job.entry.trust_remote_code,
        progress=progress,
        date=_date_of(job),
        on_artifact=None if prompts is None else lambda states: references.append(make_reference(states, prompts)),
    )
    report = replace(report, pictures=_draw(quantized, report, jobdir.card), experts=quantized.experts)
    if job.tasks:
        report = _with_tasks(jobdir, report, progress)
    for reference in references:
        jobdir.store(reference, inputs=evaluate_inputs(job, quantized))
    jobdir.store(report, inputs=evaluate_inputs(job, quantized))
    return report


def _prompts(jobdir: JobDir) -> list[list[int]] | None:
    """What engines are asked to answer, as the chat template renders it; None where nothing will be served."""
    if not jobdir.job.engines:
        return None
    encoder = load_encoder(
        jobdir.source,
        trust_remote_code=jobdir.job.entry.trust_remote_code,
        date=_date_of(jobdir.job),
    )
    return [encoder.encode_question(question) for question in _QUESTIONS]


def _with_tasks(jobdir: JobDir, report: Report, progress: Progress) -> Report:
    """The report with the figures of lm-eval's tasks."""
    from bot.evaluate.models import open_models
    from bot.evaluate.tasks import TextReader, measure_tasks

    entry = jobdir.job.entry
    encoder = load_encoder(jobdir.source, trust_remote_code=entry.trust_remote_code, date=_date_of(jobdir.job))
    prefix = encoder.prefix_id
    models = open_models(jobdir.source, jobdir.quantized, trust_remote_code=entry.trust_remote_code)
    figures = measure_tasks(
        models,
        _open_tasks(jobdir),
        {task.name: task.limit for task in entry.tasks},
        reader=TextReader(
            encode=encoder.encode_text,
            prefix=prefix,
            prefix_text=encoder.tokenizer.decode(prefix),
            longest=most_tokens(encoder.config),
        ),
        # Of one model at a time, as evaluation holds the states of two.
        tokens_at_once=2 * entry.evaluation.tokens,
        progress=progress,
    )
    return replace(report, tasks=figures, versions=report.versions | lm_eval_version())


def _open_tasks(jobdir: JobDir) -> dict[str, Any]:
    """Of the entry, by name. Raises EnvironmentProblem where lm-eval is not installed."""
    lm_eval_version()
    from bot.evaluate.tasks import open_task

    opened = {}
    for task in jobdir.job.entry.tasks:
        places = [jobdir.calibration / str(local_path(source)) for source in task.sources]
        if task.file is None:
            data, description = {str(task.dataset): places[0]}, stock_file(task.name)
            # The plan may have been made where lm-eval is not installed.
            problem = stock_problem(task.name, str(task.dataset))
            if problem or description is None:
                raise WatchlistError(str(problem), hint="See `lm_eval ls tasks`.")
        else:
            data, description = dict(zip((file.path for file in task.data), places[1:], strict=True)), places[0]
        opened[task.name] = open_task(task, description, data, jobdir.hf_home / "datasets")
    return opened


def _draw(quantized: QuantizedModel, report: Report, card: Path) -> tuple[str, ...]:
    """The paths of the pictures, in the card's folder."""
    from bot.evaluate.plots import draw_error_by_layer
    from bot.evaluate.positions import draw_kl_by_position

    with disk_errors(card):
        for path in (ERROR_BY_LAYER, KL_BY_POSITION):
            (card / path).parent.mkdir(parents=True, exist_ok=True)
        draw_kl_by_position(report, card / KL_BY_POSITION)
        draw_error_by_layer(quantized, card / ERROR_BY_LAYER)
    return KL_BY_POSITION, ERROR_BY_LAYER


def _used_text(jobdir: JobDir, progress: Progress) -> UsedText:
    """What calibration used. It is drawn again where its file was deleted since."""
    job = jobdir.job
    if not jobdir.used_text.is_file():
        build_calibration_set(
            job.entry.calibration,
            tokenizer_folder=jobdir.source,
            folder=jobdir.calibration,
            trust_remote_code=job.entry.trust_remote_code,
            date=_date_of(job),
            used_text=jobdir.used_text,
            progress=progress,
        )
    return load_used_text(jobdir.used_text)


def evaluate_folder(
    source: Path,
    quantized: Path,
    *,
    evaluation: Evaluation,
    trust_remote_code: bool,
    progress: Progress,
    texts: Path = Path(),
    used: UsedText = UsedText(),  # noqa: B008 - frozen
    date: datetime.date = UNKNOWN_DATE,
    on_artifact: Callable[[FinalStates], None] | None = None,
) -> Report:
    """Compare an AWQ folder with its source. texts, date: as for quantize_folder, of the evaluation's files.

    used: what calibration used, which is left out. on_artifact: see bot.evaluate.metrics.evaluate.
    """
    from bot.evaluate.metrics import evaluate as measure

    for folder in (source, quantized):
        if not folder.is_dir():
            raise WatchlistError(f"{folder}: no such folder", hint="Check --source and --quantized.")
    tokens, measured = evaluation_tokens(
        evaluation,
        tokenizer_folder=source,
        folder=texts,
        used=used,
        trust_remote_code=trust_remote_code,
        date=date,
        progress=progress,
    )
    return measure(
        source,
        quantized,
        tokens=tokens,
        text_label=evaluation.label,
        texts=measured,
        trust_remote_code=trust_remote_code,
        progress=progress,
        on_artifact=on_artifact,
    )


def try_job(jobdir: JobDir) -> None:
    """Try the small files, the text to measure on, and the model if its headers are there: before the weights."""
    from bot.jobs.model import try_model

    job, entry = jobdir.job, jobdir.job.entry
    try_small_files(jobdir.source, trust_remote_code=entry.trust_remote_code)
    # A refresh has none, and built-in text is known to be enough.
    if any(not source.builtin for source in job.texts if source in entry.evaluation.sources):
        evaluation_tokens(
            entry.evaluation,
            tokenizer_folder=jobdir.source,
            folder=jobdir.calibration,
            trust_remote_code=entry.trust_remote_code,
            date=_date_of(job),
        )
    if job.tasks:
        _open_tasks(jobdir)
    if (headers := jobdir.load(Headers)) is not None:
        try_model(jobdir.source, headers.tensors, entry)
