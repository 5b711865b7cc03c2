"""Commands `check`, `plan` and `run`: from the watchlist to published repos."""

from __future__ import annotations

from pathlib import Path

import typer

from bot.cli import terminal
from bot.cli.console import (
    DryRunOption,
    FreshOption,
    IsolationOption,
    JsonOption,
    OnlyOption,
    Panel,
    WatchlistOption,
    WorkOption,
    bug,
    err,
    job_context,
    log,
    model_reference,
    needs_extra,
    out,
    print_json,
)
from bot.cli.doctor import CpuOption, jobs_on_cpu, own_code_notice
from bot.cli.progress import Bars
from bot.errors import BotError
from bot.hub.seen import seen_file
from bot.hub.session import Hub
from bot.jobs import pipeline
from bot.jobs.isolation import require
from bot.jobs.stages import JobContext
from bot.records import Job, JobKind, JobResult, Plan, Status, job_result
from bot.watch import watchlist as watchlists

app = typer.Typer(rich_markup_mode="rich")


@app.command(rich_help_panel=Panel.WATCHLIST)
def check(watchlist: WatchlistOption = Path("watchlist.yaml")) -> None:
    """Check the watchlist and name every mistake, with its line. Needs no network.

    Example: [bold]awq-bot check --watchlist watchlist.yaml[/]
    """
    read = watchlists.read(watchlist)
    count = "1 model" if len(read.entries) == 1 else f"{len(read.entries)} models"
    rules = f", {len(read.rules)} under discover" if read.rules else ""
    out.print(f"{watchlist}: {count}{rules}, no mistakes", markup=False)
    for entry in read.entries:
        out.print(f"  {entry.repo_id} → {entry.target}", markup=False)
    for rule in read.rules:
        names = ", ".join(f"{rule.author}/{pattern}" for pattern in rule.match)
        out.print(f"  {names} → {rule.publish_to} ({rule.mode})", markup=False)


@app.command(rich_help_panel=Panel.RUN)
def plan(
    watchlist: WatchlistOption = Path("watchlist.yaml"),
    only: OnlyOption = None,
    fresh: FreshOption = False,
    as_json: JsonOption = False,
) -> None:
    """Show what is new, what each job needs, and why the rest is skipped. Downloads no weights.

    Remembered in ~/.cache/awq-bot/seen, or $XDG_CACHE_HOME/awq-bot/seen: which models
    were up to date, and at which commits. While the lists of their authors show the
    same commits, nothing more is asked about them. Tags are looked at once a day,
    everything else within four weeks. Nothing is kept of private repos, and what has
    `signed_by` is always read. The file may be deleted; --fresh does without.

    Example: [bold]awq-bot plan --json | jq '.jobs[].reason'[/]
    """
    planned = _plan(watchlist, only=only, fresh=fresh)
    if as_json:
        print_json(planned)
    else:
        out.print(terminal.plan_table(planned))


@app.command(rich_help_panel=Panel.RUN)
def run(
    watchlist: WatchlistOption = Path("watchlist.yaml"),
    only: OnlyOption = None,
    work: WorkOption = Path("work"),
    dry_run: DryRunOption = False,
    cpu: CpuOption = False,
    require_isolation: IsolationOption = False,
    fresh: FreshOption = False,
) -> None:
    """Plan, then pull, quantize, evaluate and publish each new release.

    A model that fails does not stop the others; the exit code is that of the first failure. Run it again to
    resume.

    Example: [bold]awq-bot run --only Qwen/Qwen3-4B --dry-run[/]
    """
    if require_isolation:
        require()
    planned = _plan(watchlist, only=only, fresh=fresh)
    err.print(terminal.plan_table(planned))
    if any(job.kind is not JobKind.FINISH for job in planned.jobs):
        # Before gigabytes of weights are pulled for it.
        needs_extra("quantize")
    for notice in (jobs_on_cpu(planned.jobs, allowed=cpu), own_code_notice(planned.jobs)):
        if notice:
            err.print(notice)
    results = [
        _run_job(
            planned,
            number,
            work=work,
            files=watchlist.parent,
            dry_run=dry_run,
            require_isolation=require_isolation,
        )
        for number in range(len(planned.jobs))
    ]
    for skip in planned.skipped:
        if skip.exit_code:
            refusal = BotError(f"{skip.entry.repo_id}: {skip.reason}", hint=skip.hint)
            err.print(terminal.error_text(refusal), soft_wrap=True)
    if results:
        out.print(terminal.results_table(results))
    else:
        out.print("nothing to do")
    raise typer.Exit(_first_failure(planned, results))


def _run_job(
    planned: Plan, number: int, *, work: Path, files: Path, dry_run: bool, require_isolation: bool
) -> JobResult:
    """Run one job under its title, and print its error. files: the folder of the calibration files."""
    job = planned.jobs[number]
    title = f"{number + 1} of {len(planned.jobs)}"
    err.rule(f"[bold]{title}[/]  {job.entry.repo_id} → {job.entry.target}", align="left")
    with Bars(err) as bars:
        context = job_context(work, files, bars, require_isolation=require_isolation)
        result = _result(context, job, dry_run=dry_run)
    if result.error is not None:
        err.print(terminal.error_text(result.error), soft_wrap=True)
    return result


def _result(context: JobContext, job: Job, *, dry_run: bool) -> JobResult:
    """As `pipeline.run_job`, but an unexpected error is a result, too, so that the other models are still done."""
    try:
        return pipeline.run_job(context, job, dry_run=dry_run)
    except BrokenPipeError:
        raise
    # The traceback is logged; the result, and the exit code, say that it failed.
    except Exception as error:  # noqa: BLE001 - one model's failure must not stop the others
        log.exception("%s: unexpected %s", job.entry.repo_id, type(error).__name__)
        return job_result(job, stage="run", status=Status.FAILED, error=bug(error, job))


def _first_failure(planned: Plan, results: list[JobResult]) -> int:
    refused = [skip.exit_code for skip in planned.skipped if skip.exit_code]
    failed = [result.exit_code for result in results if result.status is Status.FAILED]
    return next(iter([*failed, *refused]), 0)


def _plan(watchlist: Path, *, only: str | None, fresh: bool) -> Plan:
    repo_id = model_reference(only).repo_id if only else None
    chosen = watchlists.select(watchlists.read(watchlist), repo_id, path=watchlist)
    hub = Hub.from_environment()
    memory = seen_file(hub.endpoint)
    return pipeline.plan(hub, chosen.entries, chosen.rules, only=repo_id, memory=memory, fresh=fresh)
