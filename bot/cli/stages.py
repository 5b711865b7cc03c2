"""One stage of a job each; `quantize` and `evaluate` also on plain folders."""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from bot.checkpoint.constants import MAX_SAMPLES, MIN_SAMPLES, MIN_SEQ_LEN
from bot.cli import terminal
from bot.cli.console import (
    DryRunOption,
    JobOption,
    JsonOption,
    MaybeJobOption,
    WatchlistOption,
    bug,
    err,
    job_context,
    log,
    needs_extra,
    out,
    print_json,
    print_raw,
    problem_of,
)
from bot.cli.doctor import CpuOption, folder_on_cpu, jobs_on_cpu
from bot.cli.interrupts import ended_by_ctrl_c
from bot.cli.progress import Bars
from bot.errors import BotError, EnvironmentProblem, WatchlistError
from bot.hub.publish import make_public_note
from bot.jobs import stages
from bot.jobs.confined import PARENT
from bot.jobs.folder import JobDir
from bot.jobs.plain import check_folder, hint_for_folders
from bot.jobs.worker import end_with_parent
from bot.records import (
    BUILTIN_TEXTS,
    Calibration,
    Evaluation,
    Job,
    Publication,
    Recipe,
    Status,
    TensorInfo,
    TextSource,
    from_json,
    job_result,
    to_json,
)
from bot.records.config import Method
from bot.text import size

app = typer.Typer(rich_markup_mode="rich")


@app.command()
def pull(job: JobOption, watchlist: WatchlistOption = Path("watchlist.yaml")) -> None:
    """Stage 1 of a job: fetch the source at its pinned commit, and the calibration files.

    Example: [bold]awq-bot pull --job work/JOB_ID[/]
    """
    with Bars(err) as bars:
        weights = stages.pull(job_context(job.parent, watchlist.parent, bars), JobDir(job))
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
    with _child(job, "quantize"):
        if source is not None and destination is not None and job is None:
            needs_extra("quantize")
            check_folder(source, destination, recipe)
        with _loading_torch():
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
    with _child(job, "evaluate"):
        with _loading_torch():
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
def card(job: JobOption) -> None:
    """Stage 4 of a job: write its model card and provenance.

    Example: [bold]awq-bot card --job work/JOB_ID[/]
    """
    stages.card(JobDir(job))
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
    with _child(job, "trial"):
        with _loading_torch():
            from bot.jobs import tasks
        tasks.try_job(JobDir(job))


@app.command(hidden=True)
def layers() -> None:
    """The child process of a plan: from config.json and tensor headers on stdin to what the layers hold."""
    end_with_parent()
    with _loading_torch():
        from bot.jobs.model import read_layers
    asked = json.load(sys.stdin)
    tensors = from_json(tuple[TensorInfo, ...], json.dumps(asked["tensors"]))
    recipe = from_json(Recipe, json.dumps(asked["recipe"]))
    print_raw(to_json(read_layers(asked["config"], tensors, recipe)))


def _say_without_gpu(
    job: Path | None, source: Path | None, recipe: Recipe, calibration: Calibration, *, allowed: bool
) -> None:
    """Before torch is imported. Not in a child process: `run` has said it, and on a GPU runner `doctor` checks."""
    if os.environ.get(PARENT):
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


class _child:  # noqa: N801 - used as a with statement's verb
    """Records a failure of a child process for its parent. On plain folders nothing is recorded."""

    def __init__(self, job: Path | None, stage: str) -> None:
        self._job, self._stage = job, stage

    def __enter__(self) -> None:
        end_with_parent()

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        job = self._readable_job()
        problem = _problem_of(error, job)
        if problem is None:
            return
        if self._job is None:
            problem.hint = hint_for_folders(problem.hint)
        if job is not None and self._job is not None:
            failed = job_result(job, stage=self._stage, status=Status.FAILED, error=problem)
            JobDir(self._job).store(failed)
            if PARENT in os.environ:
                # The parent process prints it, once.
                raise typer.Exit(problem.exit_code) from None
        raise problem from None

    def _readable_job(self) -> Job | None:
        if self._job is None:
            return None
        try:
            return JobDir(self._job).load(Job)
        except BotError:
            return None


def _problem_of(error: BaseException | None, job: Job | None) -> BotError | None:
    """What to report; None for what the command line itself reacts to."""
    # After a broken pipe no one reads an error message.
    if error is None or isinstance(error, (BrokenPipeError, typer.Exit, KeyboardInterrupt, SystemExit)):
        return None
    if isinstance(error, BotError):
        return error
    if isinstance(error, OSError):
        return problem_of(error)
    if isinstance(error, MemoryError):
        return EnvironmentProblem("out of memory", hint="Run it on a machine with more memory: it resumes.")
    log.error("unexpected %s", type(error).__name__, exc_info=error)
    return bug(error, job)


@contextmanager
def _loading_torch() -> Iterator[None]:
    """Around the import of what needs torch. Raises EnvironmentProblem where it is not installed."""
    # transformers asks the Hub for files that a folder lacks.
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    needs_extra("quantize")
    with ended_by_ctrl_c():
        yield
