"""`awq-bot actions …`: the verbs that workflows call, one per step. Like cli, it prints and exits.

Each says what happened in the log, on the step's summary page, and in outputs or files for later jobs.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from bot.cli import terminal
from bot.cli.steps import Step, err, out, run_leg
from bot.cli.upkeep import WatchlistOption, comment, deadman, keepalive
from bot.errors import WatchlistError
from bot.github.attempts import all_refused
from bot.github.planning import (
    MOST_RELEASES,
    beat,
    outputs,
    plan_run,
    publishing_place,
    switched_on,
    watched,
    with_originals,
)
from bot.github.results import endings, originals_of, read_job, read_plan, read_results, store_plan
from bot.github.summaries import plan_page, report_page
from bot.github.tracker import IssueTracker
from bot.hub.session import Hub
from bot.jobs import pipeline
from bot.jobs.pipeline import Outcome
from bot.jobs.stages import JobContext
from bot.records import Job, JobKind, Plan
from bot.watch import watchlist as watchlists

app = typer.Typer(
    name="actions",
    rich_markup_mode="rich",
    help="What the workflows call: plan, quantize, publish, refresh, report, and what keeps the watch alive.\n\n"
    "Read HF_ENDPOINT, HF_TOKEN, HF_WRITE_TOKEN, and what GitHub Actions says of the run (GITHUB_OUTPUT,"
    " GITHUB_STEP_SUMMARY, GITHUB_TOKEN where issues are written). A person can run a whole watch by hand:\n\n"
    "[bold]awq-bot actions plan --out plan[/], then [bold]quantize[/] and [bold]publish[/] with"
    " [bold]--plan plan --job-id ID[/], then [bold]report[/].",
)

PlanOption = Annotated[Path, typer.Option("--plan", help="The folder that `plan` wrote.")]
JobIdOption = Annotated[str, typer.Option("--job-id", help="Which of the plan's jobs.")]
WorkOption = Annotated[Path, typer.Option("--work", help="Where jobs keep their files; a disk with room.")]
ResultsOption = Annotated[Path, typer.Option("--results", help="Where legs write how they ended.")]


# --- the legs of a watch ------------------------------------------------------------------------------------


@app.command()
def plan(
    watchlist: WatchlistOption = Path("watchlist.yaml"),
    folder: Annotated[Path, typer.Option("--out", help="The folder to write the plan to.")] = Path("plan"),
    only: Annotated[
        str, typer.Option("--only", metavar="REPO_ID", envvar="AWQ_BOT_ONLY", help="One model of the list.")
    ] = "",
    force: Annotated[
        bool, typer.Option("--force", envvar="AWQ_BOT_FORCE", help="Also what failed and should wait.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", envvar="AWQ_BOT_DRY_RUN", help="Say what would be done; start nothing.")
    ] = False,
    publish_on: Annotated[
        str,
        typer.Option(
            envvar="AWQ_BOT_PUBLISH_ON",
            help="hosted, or runner: on the GPU runner itself, for artifacts too large to pass on.",
        ),
    ] = "hosted",
    oidc: Annotated[
        bool, typer.Option("--oidc", help="Publishing uses Trusted Publishers. Or `AWQ_BOT_OIDC`: true.")
    ] = False,
    most_jobs: Annotated[
        int,
        typer.Option(
            min=1, envvar="AWQ_BOT_MOST_JOBS", help="Releases under way at once, those of other runs among them."
        ),
    ] = MOST_RELEASES,
    heartbeat_url: Annotated[
        str, typer.Option(envvar="AWQ_BOT_HEARTBEAT_URL", help="Asked for after a good plan, if given.")
    ] = "",
) -> None:
    """What a run will do: writes OUT/plan.json, OUT/JOB_ID.json for each job, and the matrices of its legs.

    Leaves out what another run works on and, unless forced, what failed and must wait.

    AWQ_BOT_PAUSED: true makes no plan at all.

    Outputs: quantize, refresh (matrices of job_id, target, runs_on, timeout_minutes), quantize_count,
    refresh_count. A broken watchlist is exit code 2, with an annotation on each line.

    Example: [bold]awq-bot actions plan --watchlist watchlist.yaml --out plan[/]
    """
    with Step("The plan failed") as step, IssueTracker(step.actions) as tracker:
        if switched_on("AWQ_BOT_PAUSED"):
            out.print("paused, so nothing is planned")
            return
        oidc = oidc or switched_on("AWQ_BOT_OIDC")
        where, hub = publishing_place(publish_on, oidc=oidc), Hub.from_environment()
        entries = watchlists.select(watched(watchlist, tracker), only or None, path=watchlist)
        made = plan_run(
            hub,
            entries,
            tracker,
            now=_now(),
            force=force,
            by_identity=oidc,
            publish_on=where,
            most_releases=most_jobs,
        )
        if not dry_run:
            made = with_originals(hub, made, folder)
        store_plan(folder, made)
        step.outputs(outputs(replace(made, jobs=()) if dry_run else made))
        tracker.settle(made, whole=not only)
        if not dry_run:
            tracker.tell_refusals(made, endpoint=hub.endpoint)
        page = plan_page(
            made,
            endpoint=hub.endpoint,
            dry_run=dry_run,
            notes=tracker.notes,
            attempts=tracker.known,
            issues_url=step.actions.issues_url,
        )
        step.page(page)
        out.print(terminal.plan_table(made))
        _beat(step, heartbeat_url, made)


@app.command()
def quantize(
    context: typer.Context,
    job_id: JobIdOption,
    folder: PlanOption = Path("plan"),
    work: WorkOption = Path("work"),
    results: ResultsOption = Path("results"),
    watchlist: WatchlistOption = Path("watchlist.yaml"),
) -> None:
    """All of a release job but publishing: pull, quantize, evaluate, card. Needs the GPU, and no write token.

    Ends well when somebody has published it already. The exit code is the error's; its result is
    written below RESULTS either way.

    Outputs: publish (true or false), artifact (the folder to pass on to `publish`).

    Example: [bold]awq-bot actions quantize --plan plan --job-id ID --work /mnt/big-disk --results results[/]
    """
    with Step("Quantizing failed") as step:
        job, made = _job(folder, job_id, release=True), work / job_id

        def prepare() -> Outcome:
            return pipeline.prepare_job(_job_context(context, work, watchlist.parent), job)

        outcome = run_leg(step, "quantize", job, prepare, results=results, folder=made)
        step.outputs({"publish": outcome.publication is None, "artifact": str(made)})


@app.command()
def publish(
    context: typer.Context,
    job_id: JobIdOption,
    artifact: Annotated[Path, typer.Option("--artifact", help="The folder that `quantize` made.")],
    folder: PlanOption = Path("plan"),
    results: ResultsOption = Path("results"),
) -> None:
    """Publish what `quantize` made, where it is just what the plan asks for. Needs a write token, and no GPU.

    Whatever the artifact says of itself is checked against the plan; exit code 7 when it does not fit. Ends well,
    and writes no result, where there is no artifact. Publishing again what is published does nothing.

    Example: [bold]awq-bot actions publish --plan plan --job-id ID --artifact artifact --results results[/]
    """
    with Step("Publishing failed") as step:
        job = _job(folder, job_id, release=True)
        if not artifact.is_dir() or not any(artifact.iterdir()):
            out.print("nothing was handed over, so there is nothing to publish")
            return

        def send() -> Outcome:
            originals = originals_of(folder, job.job_id)
            return pipeline.publish_job(
                _job_context(context, artifact, artifact), job, artifact, originals=originals
            )

        run_leg(step, "publish", job, send, results=results, folder=artifact)


@app.command()
def refresh(
    context: typer.Context,
    job_id: JobIdOption,
    folder: PlanOption = Path("plan"),
    work: WorkOption = Path("work"),
    results: ResultsOption = Path("results"),
) -> None:
    """A whole job that needs no GPU: upstream's changed small files, or a publication that was cut short.

    Needs a write token. Like the other legs it writes its result below RESULTS, however it ends.

    Example: [bold]awq-bot actions refresh --plan plan --job-id ID --work work --results results[/]
    """
    with Step("Refreshing failed") as step:
        job = _job(folder, job_id, release=False)

        def whole() -> Outcome:
            return pipeline.run_job(_job_context(context, work, work), job)

        run_leg(step, "refresh", job, whole, results=results, folder=work / job_id)


@app.command()
def report(
    folder: PlanOption = Path("plan"),
    results: ResultsOption = Path("results"),
) -> None:
    """How the run ended: one page, and the issues about what failed. Exits with 0, for the failed legs are red.

    A leg that left no result is looked up at GitHub: a runner that died, none that took the job, and a job that
    took too long are failures; what a person cancelled is not.

    Example: [bold]awq-bot actions report --plan plan --results results[/]
    """
    with Step("The report failed") as step:
        made = read_plan(folder)
        if made is None:
            out.print("no plan was made, so there is nothing to report")
            return
        believed, forged = read_results(results, made)
        endpoint = Hub.from_environment().endpoint
        with IssueTracker(step.actions) as tracker:
            ended = endings(made.jobs, believed, tracker.own_jobs() if made.jobs else ())
            lines = tracker.tell_endings(ended, endpoint=endpoint, now=_now())
        for line in forged:
            step.annotate("warning", line, title="A result was not believed")
        step.page(report_page(ended, endpoint=endpoint, issues=lines, forged=forged, notes=tracker.notes))
        out.print(terminal.endings_table(ended))


for verb in (keepalive, deadman, comment):
    app.command()(verb)


# --- what the verbs share -----------------------------------------------------------------------------------


def _job(folder: Path, job_id: str, *, release: bool) -> Job:
    job = read_job(folder, job_id)
    if (job.kind is JobKind.RELEASE) is not release:
        verbs = "`refresh`" if release else "`quantize` and `publish`"
        raise WatchlistError(f"{job_id} is a {job.kind.value} job", hint=f"That is for {verbs}.")
    return job


def _beat(step: Step, url: str, made: Plan) -> None:
    if not url:
        return
    if all_refused(made):
        step.annotate("warning", "every model was refused, so the heartbeat URL is not asked for")
    elif not beat(url):
        step.annotate("warning", "the heartbeat URL did not answer")


def _job_context(context: typer.Context, work: Path, files: Path) -> JobContext:
    options = tuple(context.obj or ())
    return JobContext(
        hub=Hub.from_environment(), work=work, files=files, progress=terminal.Bars(err), child_options=options
    )


def _now() -> datetime:
    return datetime.now(UTC)
