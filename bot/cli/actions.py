"""`awq-bot actions …`: the commands that the workflows run, one per step.

Each reports in the log, in the step's summary, and in outputs or files for later jobs.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from bot.cli import terminal
from bot.cli.console import IsolationOption, WatchlistOption, WorkOption, err, help_without_verb, job_context, out
from bot.cli.progress import Bars
from bot.cli.steps import Step, run_stage
from bot.cli.upkeep import comment, deadman, keepalive, propose
from bot.errors import WatchlistError
from bot.github.attempts import after_results, all_refused
from bot.github.notify import events_of_results, notify
from bot.github.planning import (
    MAX_RELEASES,
    beat,
    outputs,
    plan_run,
    publishing_place,
    switched_on,
    watched,
    with_originals,
)
from bot.github.results import attested, final_results, originals_of, read_job, read_plan, read_results, store_plan
from bot.github.summaries import plan_page, report_page
from bot.github.tracker import IssueTracker
from bot.hub.fetch import git_blob_id
from bot.hub.seen import seen_file
from bot.hub.session import Hub
from bot.jobs import pipeline
from bot.jobs.stages import JobContext
from bot.records import Job, JobKind, JobResult, Plan
from bot.watch import watchlist as watchlists

app = typer.Typer(name="actions", invoke_without_command=True, rich_markup_mode="rich")

PlanOption = Annotated[Path, typer.Option("--plan", help="The folder that `plan` wrote.")]
JobIdOption = Annotated[str, typer.Option("--job-id", help="A job of the plan.")]
ResultsOption = Annotated[Path, typer.Option("--results", help="Folder for the results of jobs.")]


@app.callback()
def commands(context: typer.Context) -> None:
    """The commands that the GitHub workflows run.

    They read HF_ENDPOINT, HF_TOKEN and HF_WRITE_TOKEN; GITHUB_TOKEN, to read and
    write issues; and the variables that GitHub Actions sets.

    To go through a run by hand, run [bold]awq-bot actions plan --out plan[/], then
    [bold]quantize[/] and [bold]publish[/] with [bold]--plan plan --job-id ID[/], then [bold]report[/].
    """
    help_without_verb(context)


# --- the jobs of watch.yml -----------------------------------------------------------------------------------


@app.command()
def plan(
    watchlist: WatchlistOption = Path("watchlist.yaml"),
    folder: Annotated[Path, typer.Option("--out", help="Folder to write the plan to.")] = Path("plan"),
    only: Annotated[
        str, typer.Option("--only", metavar="REPO_ID", envvar="AWQ_BOT_ONLY", help="Only this model.")
    ] = "",
    force: Annotated[
        bool,
        typer.Option(
            "--force", envvar="AWQ_BOT_FORCE", help="Also retry what failed and waits; read everything again."
        ),
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", envvar="AWQ_BOT_DRY_RUN", help="Show the plan; start nothing.")
    ] = False,
    publish_on: Annotated[
        str,
        typer.Option(
            envvar="AWQ_BOT_PUBLISH_ON",
            help="`hosted`, or `runner`: publish from the GPU runner, for artifacts too large to pass on.",
        ),
    ] = "hosted",
    oidc: Annotated[
        bool, typer.Option("--oidc", help="Publish with Trusted Publishers. Same as AWQ_BOT_OIDC=true.")
    ] = False,
    most_jobs: Annotated[
        int,
        typer.Option(
            min=1, envvar="AWQ_BOT_MOST_JOBS", help="Releases in progress at once, including those of other runs."
        ),
    ] = MAX_RELEASES,
    heartbeat_url: Annotated[
        str, typer.Option(envvar="AWQ_BOT_HEARTBEAT_URL", help="URL to request after a successful plan.")
    ] = "",
) -> None:
    """Plan a run: write OUT/plan.json and OUT/JOB_ID.json for each job, and set the matrices of the jobs to start.

    Leaves out what another run works on and, without --force, what failed and
    waits. With AWQ_BOT_PAUSED=true no plan is made.

    Outputs: quantize and refresh (matrices of job_id, target, runs_on,
    timeout_minutes), quantize_count, refresh_count, propose_count. Exit code 2 if the watchlist
    has mistakes; each is annotated on its line.

    Example: [bold]awq-bot actions plan --watchlist watchlist.yaml --out plan[/]
    """
    with Step("The plan failed") as step, IssueTracker(step.actions) as tracker:
        if switched_on("AWQ_BOT_PAUSED"):
            out.print("paused: nothing is planned")
            return
        oidc = oidc or switched_on("AWQ_BOT_OIDC")
        publishing_place(publish_on, oidc=oidc)
        hub = Hub.from_environment()
        chosen = watchlists.select(watched(watchlist, tracker), only or None, path=watchlist)
        where = publishing_place(publish_on, oidc=oidc, watchlist=chosen)
        planned = plan_run(
            hub,
            chosen,
            tracker,
            now=_now(),
            only=only or None,
            force=force,
            trusted_publishing=oidc,
            publish_on=where,
            max_releases=most_jobs,
            memory=seen_file(hub.endpoint),
        )
        if not only:
            planned = tracker.with_proposals(planned, chosen.rules, base=git_blob_id(watchlist.read_bytes()))
        if not dry_run:
            planned = with_originals(hub, planned, folder)
        store_plan(folder, planned)
        step.outputs(outputs(replace(planned, jobs=(), proposing=()) if dry_run else planned))
        # What an author's repos are is not known where they could not be listed.
        tracker.close_resolved(planned, full_watchlist=not only and not planned.unlisted)
        if not dry_run:
            tracker.write_dashboard(planned, endpoint=hub.endpoint)
        page = plan_page(
            planned,
            endpoint=hub.endpoint,
            dry_run=dry_run,
            notes=tracker.notes,
            attempts=tracker.open_attempts,
            issues_url=step.actions.issues_url,
        )
        step.page(page)
        out.print(terminal.plan_table(planned))
        _beat(step, heartbeat_url, planned)


@app.command()
def quantize(
    job_id: JobIdOption,
    folder: PlanOption = Path("plan"),
    work: WorkOption = Path("work"),
    results: ResultsOption = Path("results"),
    watchlist: WatchlistOption = Path("watchlist.yaml"),
    require_isolation: IsolationOption = False,
) -> None:
    """Run a release job up to publishing: pull, quantize, evaluate, card. Needs a GPU, and no write token.

    Succeeds if another run has published it already. The result is written to
    RESULTS, also after a failure. A model's own code always needs isolation.

    Outputs: publish (true or false), artifact (the folder for `publish`).

    Example: [bold]awq-bot actions quantize --plan plan --job-id ID --work /mnt/big-disk --results results[/]
    """
    with Step("Quantizing failed") as step:
        job, jobdir = _job(folder, job_id, release=True), work / job_id

        def prepare() -> JobResult:
            context = _isolated_context(work, watchlist.parent, job, require_isolation)
            return pipeline.prepare_job(context, job)

        result = run_stage(step, "quantize", job, prepare, results=results, folder=jobdir)
        step.outputs({"publish": result.publication is None, "artifact": str(jobdir)})


@app.command()
def publish(
    job_id: JobIdOption,
    artifact: Annotated[Path, typer.Option("--artifact", help="The folder that `quantize` wrote.")],
    folder: PlanOption = Path("plan"),
    results: ResultsOption = Path("results"),
) -> None:
    """Check what `quantize` wrote against the plan, and publish it. Needs a write token, and no GPU.

    Exit code 7 if the artifact is not what the plan asks for. Without an artifact
    it succeeds and writes no result. Does nothing if it is published already.

    Outputs: provenance (REPO_ID@TAG/provenance.json) and provenance_digest (sha256:…) of a new publication, for
    actions/attest.

    Example: [bold]awq-bot actions publish --plan plan --job-id ID --artifact artifact --results results[/]
    """
    with Step("Publishing failed") as step:
        job = _job(folder, job_id, release=True)
        if not artifact.is_dir() or not any(artifact.iterdir()):
            out.print("no artifact, so there is nothing to publish")
            return

        def send() -> JobResult:
            context = job_context(artifact, artifact, Bars(err))
            return pipeline.publish_job(context, job, artifact, originals=originals_of(folder, job.job_id))

        step.outputs(attested(run_stage(step, "publish", job, send, results=results, folder=artifact)))


@app.command()
def refresh(
    job_id: JobIdOption,
    folder: PlanOption = Path("plan"),
    work: WorkOption = Path("work"),
    results: ResultsOption = Path("results"),
    require_isolation: IsolationOption = False,
) -> None:
    """Run a job that needs no GPU: republish changed small files, or complete an interrupted publication.

    Needs a write token. The result is written to RESULTS, also after a failure. A model's own code always needs
    isolation.

    Outputs: as those of `publish`.

    Example: [bold]awq-bot actions refresh --plan plan --job-id ID --work work --results results[/]
    """
    with Step("Refreshing failed") as step:
        job = _job(folder, job_id, release=False)

        def whole() -> JobResult:
            return pipeline.run_job(
                _isolated_context(work, work, job, require_isolation), job, reported_stage="refresh"
            )

        step.outputs(attested(run_stage(step, "refresh", job, whole, results=results, folder=work / job_id)))


@app.command()
def report(
    folder: PlanOption = Path("plan"),
    results: ResultsOption = Path("results"),
) -> None:
    """Summarize how the run ended, and open, update or close the issues about failures. Always exits with 0.

    For a job without a result GitHub's API is asked: a lost runner, a missing
    runner and a timeout are failures; a job that a person cancelled is not.

    Example: [bold]awq-bot actions report --plan plan --results results[/]
    """
    with Step("The report failed") as step:
        planned = read_plan(folder)
        if planned is None:
            out.print("no plan was made, so there is nothing to report")
            return
        found, rejected = read_results(results, planned)
        endpoint = Hub.from_environment().endpoint
        with IssueTracker(step.actions) as tracker:
            ended = final_results(planned.jobs, found, tracker.jobs_of_this_run() if planned.jobs else ())
            lines = tracker.report_results(planned.jobs, ended, endpoint=endpoint, now=_now())
            after = after_results(planned, ended, tracker.open_attempts, now=_now())
            tracker.write_dashboard(after, endpoint=endpoint, create=False)
        events = events_of_results(ended, tracker.open_attempts, issues_url=step.actions.issues_url)
        if problem := notify(events):
            step.annotate("warning", problem)
        for line in rejected:
            step.annotate("warning", line, title="A result was rejected")
        step.page(report_page(ended, endpoint=endpoint, issues=lines, rejected=rejected, notes=tracker.notes))
        out.print(terminal.results_table(ended))


for verb in (propose, keepalive, deadman, comment):
    app.command()(verb)


# --- shared by the commands ---------------------------------------------------------------------------------


def _job(folder: Path, job_id: str, *, release: bool) -> Job:
    job = read_job(folder, job_id)
    if (job.kind is JobKind.RELEASE) is not release:
        verbs = "`refresh`" if release else "`quantize` and `publish`"
        raise WatchlistError(f"{job_id} is a {job.kind.value} job", hint=f"Run it with {verbs}.")
    return job


def _isolated_context(work: Path, files: Path, job: Job, required: bool) -> JobContext:
    """A model's own code never runs where it could reach a credential, or the runner's account."""
    return job_context(work, files, Bars(err), require_isolation=required or job.entry.trust_remote_code)


def _beat(step: Step, url: str, planned: Plan) -> None:
    if not url:
        return
    if all_refused(planned):
        step.annotate("warning", "every model was refused, so the heartbeat URL is not requested")
    elif not beat(url):
        step.annotate("warning", "the heartbeat URL did not answer")


def _now() -> datetime:
    return datetime.now(UTC)
