"""One stage of a job each; `quantize` and `evaluate` also on plain folders."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from bot.checkpoint.constants import MAX_SAMPLES, MIN_SAMPLES, MIN_SEQ_LEN
from bot.cli import terminal
from bot.cli.children import in_child, is_child, loading_torch, recording_failures
from bot.cli.console import (
    DryRunOption,
    IsolationOption,
    JobOption,
    JsonOption,
    MaybeJobOption,
    WatchlistOption,
    err,
    job_context,
    needs_extra,
    out,
    print_json,
    print_raw,
)
from bot.cli.doctor import CpuOption, folder_on_cpu, jobs_on_cpu
from bot.cli.progress import Bars
from bot.errors import WatchlistError
from bot.github.environment import Actions
from bot.hub.publish import make_public_note
from bot.jobs import stages
from bot.jobs.folder import JobDir
from bot.jobs.plain import check_folder
from bot.jobs.worker import end_with_parent
from bot.records import (
    BUILTIN_TEXTS,
    Calibration,
    Evaluation,
    Publication,
    QuantizedModel,
    Recipe,
    Report,
    TensorInfo,
    TextSource,
    from_json,
    to_json,
)
from bot.records.config import Method
from bot.text import size

app = typer.Typer(rich_markup_mode="rich")


@app.command()
def pull(
    job: JobOption,
    watchlist: WatchlistOption = Path("watchlist.yaml"),
    require_isolation: IsolationOption = False,
) -> None:
    """Stage 1 of a job: fetch the source at its pinned commit, and the calibration files.

    Example: [bold]awq-bot pull --job work/JOB_ID[/]
    """
    with Bars(err) as bars:
        context = job_context(job.parent, watchlist.parent, bars, require_isolation=require_isolation)
        weights = stages.pull(context, JobDir(job))
    out.print(f"{len(weights.files)} files of {weights.sha[:8]} in {job / weights.folder}", markup=False)


@app.command()
def quantize(
    job: MaybeJobOption = None,
    source: Annotated[Path | None, typer.Option(help="A model folder, as downloaded from the Hub.")] = None,
    destination: Annotated[
        Path | None,
        typer.Option(
            "--out", help="The AWQ folder to write. Replaces an earlier one of the same model, and nothing else."
        ),
    ] = None,
    calibration: Annotated[
        Path | None,
        typer.Option(
            help="Text to calibrate on: txt, jsonl or parquet. Default: built-in prose, code and dialogue."
        ),
    ] = None,
    samples: Annotated[
        int, typer.Option(min=MIN_SAMPLES, max=MAX_SAMPLES, help="Blocks of calibration tokens.")
    ] = 128,
    seq_len: Annotated[int, typer.Option(min=MIN_SEQ_LEN, help="Tokens in a block.")] = 512,
    group_size: Annotated[int, typer.Option(help="Input channels that share a scale: 32, 64 or 128.")] = 128,
    seed: Annotated[int, typer.Option(min=0, help="Random seed of the calibration blocks.")] = 0,
    method: Annotated[
        Method, typer.Option(help="awq: AutoAWQ's own search, which is slower and less accurate.")
    ] = "awq+gptq",
    cpu: CpuOption = False,
    require_isolation: IsolationOption = False,
    as_json: JsonOption = False,
) -> None:
    """Stage 2 of a job: quantize it. Or quantize a local model folder, without a Hub or a watchlist.

    Example: [bold]awq-bot quantize --source ./Qwen3-4B --out ./Qwen3-4B-awq[/]
    """
    if job is None and (source is None or destination is None):
        raise WatchlistError("quantize needs --source and --out, or --job", hint="See `awq-bot quantize --help`.")
    if group_size not in (32, 64, 128):
        raise WatchlistError(f"--group-size {group_size} is not supported", hint="Use 32, 64 or 128.")
    recipe = Recipe(group_size=group_size, method=method)
    texts = BUILTIN_TEXTS if calibration is None else (TextSource(file=str(calibration.resolve())),)
    blocks = Calibration(samples=samples, seq_len=seq_len, seed=seed, sources=texts)
    if job is not None and not is_child():
        _say_without_gpu(job, source, recipe, blocks, allowed=cpu)
        quantized = in_child("quantize", JobDir(job), QuantizedModel, require_isolation=require_isolation)
    else:
        with recording_failures(job, "quantize"):
            if source is not None and destination is not None and job is None:
                _refuse_without_job(require_isolation)
                needs_extra("quantize")
                check_folder(source, destination, recipe)
            with loading_torch():
                _say_without_gpu(job, source, recipe, blocks, allowed=cpu)
                from bot.jobs import tasks
            with Bars(err) as bars:
                if job is not None:
                    quantized = tasks.quantize_job(JobDir(job), bars)
                else:
                    assert source is not None
                    assert destination is not None
                    quantized = tasks.quantize_folder(
                        source,
                        destination,
                        recipe=recipe,
                        calibration=blocks,
                        texts=Path(),
                        trust_remote_code=False,
                        progress=bars,
                    )
    if as_json:
        print_json(quantized)
    else:
        out.print(
            f"{quantized.quantized_parameters:,} weights at {quantized.bits_per_weight:.2f} bits each",
            markup=False,
        )
        for line in (terminal.experts_line(quantized.experts), *terminal.calibration_lines(quantized.calibration)):
            if line:
                out.print(line, markup=False, soft_wrap=True)
        if job is None:
            err.print(
                f"next: awq-bot evaluate --source {shlex.quote(str(source))} "
                f"--quantized {shlex.quote(str(destination))}",
                markup=False,
                soft_wrap=True,
            )


@app.command()
def evaluate(
    job: MaybeJobOption = None,
    source: Annotated[Path | None, typer.Option(help="The model folder that was quantized.")] = None,
    quantized: Annotated[Path | None, typer.Option(help="The AWQ folder.")] = None,
    text: Annotated[
        list[Path] | None,
        typer.Option(
            help="Text to measure on; given several times, each by itself too. "
            "Default: built-in prose, code and dialogue that calibration does not use."
        ),
    ] = None,
    require_isolation: IsolationOption = False,
    as_json: JsonOption = False,
) -> None:
    """Stage 3 of a job: measure what was lost. Or compare two local folders.

    Measures perplexity, KL divergence to the source, top-1 agreement and bits per weight.

    Example: [bold]awq-bot evaluate --source ./Qwen3-4B --quantized ./Qwen3-4B-awq --json[/]
    """
    if job is None and (source is None or quantized is None):
        raise WatchlistError(
            "evaluate needs --source and --quantized, or --job", hint="See `awq-bot evaluate --help`."
        )
    texts = tuple(TextSource(file=str(path)) for path in text or ())
    if job is not None and not is_child():
        report = in_child("evaluate", JobDir(job), Report, require_isolation=require_isolation)
    else:
        with recording_failures(job, "evaluate"):
            if job is None:
                _refuse_without_job(require_isolation)
            with loading_torch():
                from bot.jobs import tasks
            with Bars(err) as bars:
                if job is not None:
                    report = tasks.evaluate_job(JobDir(job), bars)
                else:
                    assert source is not None
                    assert quantized is not None
                    report = tasks.evaluate_folder(
                        source,
                        quantized,
                        evaluation=Evaluation(sources=texts or BUILTIN_TEXTS),
                        trust_remote_code=False,
                        progress=bars,
                    )
    if as_json:
        print_json(report)
    else:
        out.print(terminal.report_table(report))


@app.command()
def serve(job: JobOption, require_isolation: IsolationOption = False, as_json: JsonOption = False) -> None:
    """After stage 3 of a job: load the artifact in the inference engines that its entry names under `serve`.

    Each is installed once per machine. Compares log-probabilities with the evaluation's; a difference is a gate.

    Example: [bold]awq-bot serve --job work/JOB_ID[/]
    """
    with Bars(err) as bars:
        context = job_context(job.parent, Path(), bars, require_isolation=require_isolation)
        report = stages.serve(context, JobDir(job))
    if as_json:
        print_json(report.served)
    elif report.served:
        out.print(terminal.served_table(report))
    else:
        out.print("nothing: its entry names no engine under `serve`")


@app.command()
def card(job: JobOption) -> None:
    """Stage 4 of a job: write its model card and provenance.

    Example: [bold]awq-bot card --job work/JOB_ID[/]
    """
    stages.card(JobDir(job), Actions.from_environment().run)
    out.print(str(job / "card" / "README.md"), markup=False)


@app.command()
def publish(job: JobOption, dry_run: DryRunOption = False) -> None:
    """Stage 5 of a job: publish it. Does nothing if it is already published.

    Example: [bold]awq-bot publish --job work/JOB_ID --dry-run[/]
    """
    with Bars(err) as bars:
        context = job_context(job.parent, Path(), bars)
        if dry_run:
            files = stages.to_be_published(JobDir(job))
            for file in files:
                out.print(f"{size(file.size_bytes):>10}  {file.path}", markup=False)
            if not files:
                out.print("nothing: it is already published")
            return
        publication = stages.publish(context, JobDir(job))
    out.print(_published_line(publication), markup=False)
    if note := make_public_note(JobDir(job).job, publication):
        err.print(note, markup=False)


@app.command(hidden=True)
def trial(job: JobOption) -> None:
    """The child process of a pull: try the small files before the weights are pulled."""
    with recording_failures(job, "trial"):
        with loading_torch():
            from bot.jobs import tasks
        tasks.try_job(JobDir(job))


@app.command(hidden=True)
def layers() -> None:
    """The child process of a plan: from config.json and tensor headers on stdin to what the layers hold."""
    end_with_parent()
    with loading_torch():
        from bot.jobs.model import read_layers
    asked = json.load(sys.stdin)
    tensors = from_json(tuple[TensorInfo, ...], json.dumps(asked["tensors"]))
    recipe = from_json(Recipe, json.dumps(asked["recipe"]))
    print_raw(to_json(read_layers(asked["config"], tensors, recipe)))


def _refuse_without_job(require_isolation: bool) -> None:
    if require_isolation:
        hint = "Code in a plain folder never runs. To isolate what reads its other files, use a watchlist."
        raise WatchlistError("--require-isolation is for jobs", hint=hint)


def _say_without_gpu(
    job: Path | None, source: Path | None, recipe: Recipe, calibration: Calibration, *, allowed: bool
) -> None:
    """Before torch is imported. Not in a child process: `run` has said it, and on a GPU runner `doctor` checks."""
    if is_child():
        return
    if job is not None:
        notice = jobs_on_cpu([JobDir(job).job], allowed=allowed)
    else:
        assert source is not None
        notice = folder_on_cpu(source, recipe, calibration, allowed=allowed)
    if notice:
        err.print(notice)


def _published_line(publication: Publication) -> str:
    return f"{publication.url} at {publication.tag}" + ("" if publication.new else " (was there already)")
