"""`awq-bot actions keepalive`, `deadman` and `comment`: around the watch, and for pull requests."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated

import typer

from bot.cli.console import WatchlistOption, out
from bot.cli.steps import Step, causes
from bot.github.notify import events_of_proposals, notify
from bot.github.planning import switched_on
from bot.github.results import read_plan
from bot.github.summaries import error_page, plan_page
from bot.github.tracker import IssueTracker
from bot.hub.session import Hub
from bot.jobs import pipeline
from bot.records import Proposal
from bot.watch import watchlist as watchlists
from bot.watch.watchlist import InvalidWatchlistError

WorkflowOption = Annotated[str, typer.Option("--workflow", help="The file name of the workflow.")]


def keepalive(workflow: WorkflowOption = "watch.yml") -> None:
    """Keep GitHub from disabling the schedule after 60 days without activity. Makes no commit.

    Needs `actions: write`. If GitHub does not answer, that is only a warning. A
    workflow that a person disabled stays disabled.

    Example: [bold]awq-bot actions keepalive --workflow watch.yml[/]
    """
    with Step("Keeping the schedule enabled failed") as step, IssueTracker(step.actions) as tracker:
        if tracker.keep_enabled(workflow):
            out.print(f"{workflow} stays enabled", markup=False)
        for note in tracker.notes:
            step.annotate("warning", note)


def deadman(
    workflow: WorkflowOption = "watch.yml",
    hours: Annotated[float, typer.Option(min=0.1, help="Largest age of the last successful plan.")] = 6.0,
    paused: Annotated[
        bool, typer.Option("--paused", help="The watch is paused on purpose. Same as AWQ_BOT_PAUSED=true.")
    ] = False,
) -> None:
    """Open an issue while the last successful plan is too old. To be run by another workflow than the watch.

    Example: [bold]awq-bot actions deadman --workflow watch.yml --hours 6[/]
    """
    with Step("The dead-man check failed") as step, IssueTracker(step.actions) as tracker:
        if paused or switched_on("AWQ_BOT_PAUSED"):
            out.print("paused: no plan is expected")
            return
        problem = tracker.report_overdue(workflow, now=datetime.now(UTC), limit=timedelta(hours=hours))
        for note in tracker.notes:
            step.annotate("warning", note)
        if problem:
            step.annotate("warning", problem, title="No recent plan")
        out.print(problem or f"{workflow} is well", markup=False)


def propose(
    folder: Annotated[Path, typer.Option("--plan", help="The folder that `plan` wrote.")] = Path("plan"),
    watchlist: WatchlistOption = Path("watchlist.yaml"),
) -> None:
    """Open, update or close the pull requests that add found models to the watchlist, one for each author.

    Needs `contents: write` and `pull-requests: write`. Nothing in the checkout is changed. A repo of a pull
    request that was closed is never proposed again.

    Example: [bold]awq-bot actions propose --plan plan --watchlist watchlist.yaml[/]
    """
    with Step("Proposing new models failed") as step, IssueTracker(step.actions) as tracker:
        planned = read_plan(folder)
        if planned is None or not planned.proposing:
            out.print("nothing to propose")
            return
        endpoint = Hub.from_environment().endpoint
        proposed: list[Proposal] = []
        for line, new in tracker.write_proposals(planned, watchlist=watchlist, endpoint=endpoint):
            out.print(line, markup=False)
            proposed += new
        if problem := notify(events_of_proposals(proposed, pulls_url=step.actions.pulls_url)):
            step.annotate("warning", problem)


def comment(watchlist: WatchlistOption = Path("watchlist.yaml")) -> None:
    """Show what a pull request's watchlist would do: in the step's summary, and in one comment.

    Exit code 2 if the watchlist has mistakes; each is annotated on its line.
    Downloads no weights and needs no secret. A pull request from a fork gets no
    comment, because its token cannot write.

    Example: [bold]awq-bot actions comment --watchlist watchlist.yaml[/]
    """
    with Step("The watchlist has mistakes") as step, IssueTracker(step.actions) as tracker:
        hub = Hub.from_environment()
        try:
            read = watchlists.read(watchlist)
        except InvalidWatchlistError as error:
            tracker.create_or_update_comment(error_page("This watchlist has mistakes", causes(error)))
            raise
        found = pipeline.plan(hub, read.entries, read.rules)
        page = plan_page(found, endpoint=hub.endpoint, title="This watchlist", heading="After merging")
        tracker.create_or_update_comment(page)
        step.page(page)
        for note in tracker.notes:
            step.annotate("warning", note)
