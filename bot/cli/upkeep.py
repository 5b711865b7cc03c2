"""The verbs that keep the watch running, and tell a pull request what it would do. One per step, as in verbs."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated

import typer

from bot.cli.steps import Step, causes, out
from bot.github.planning import switched_on
from bot.github.summaries import error_page, plan_page
from bot.github.tracker import IssueTracker
from bot.hub.session import Hub
from bot.jobs import pipeline
from bot.watch import watchlist as watchlists
from bot.watch.watchlist import InvalidWatchlistError

WatchlistOption = Annotated[Path, typer.Option("--watchlist", help="The list of models to watch.")]
WorkflowOption = Annotated[str, typer.Option("--workflow", help="The workflow's file name.")]


def keepalive(workflow: WorkflowOption = "watch.yml") -> None:
    """Keep GitHub from switching the schedule off, as it does after 60 quiet days. Makes no commit.

    Needs `actions: write`. When GitHub does not answer that is a warning: there is time until the next run. What a
    person switched off stays off.

    Example: [bold]awq-bot actions keepalive --workflow watch.yml[/]
    """
    with Step("Keeping alive failed") as step, IssueTracker(step.actions) as tracker:
        if tracker.keep_enabled(workflow):
            out.print(f"{workflow} stays enabled", markup=False)
        for note in tracker.notes:
            step.annotate("warning", note)


def deadman(
    workflow: WorkflowOption = "watch.yml",
    hours: Annotated[float, typer.Option(min=0.1, help="How old the last good plan may be.")] = 6.0,
    paused: Annotated[
        bool, typer.Option("--paused", help="The watch is switched off on purpose. Or `AWQ_BOT_PAUSED`: true.")
    ] = False,
) -> None:
    """Open an issue when nobody watches any more, and close it when somebody does. Run by another workflow.

    Example: [bold]awq-bot actions deadman --workflow watch.yml --hours 6[/]
    """
    with Step("The dead-man check failed") as step, IssueTracker(step.actions) as tracker:
        if paused or switched_on("AWQ_BOT_PAUSED"):
            out.print("paused, so nobody has to watch")
            return
        problem = tracker.overdue(workflow, now=datetime.now(UTC), limit=timedelta(hours=hours))
        for note in tracker.notes:
            step.annotate("warning", note)
        if problem:
            step.annotate("warning", problem, title="Nobody watches")
        out.print(problem or f"{workflow} is well", markup=False)


def comment(watchlist: WatchlistOption = Path("watchlist.yaml")) -> None:
    """What a pull request's watchlist would do: the step's page, and one comment where the token may write.

    Every mistake is annotated on its line, with exit code 2. Downloads no weights and needs no secret; a fork's
    pull request gets the page and the annotations.

    Example: [bold]awq-bot actions comment --watchlist watchlist.yaml[/]
    """
    with Step("The watchlist has mistakes") as step, IssueTracker(step.actions) as tracker:
        hub = Hub.from_environment()
        try:
            entries = watchlists.load(watchlist)
        except InvalidWatchlistError as error:
            tracker.keep_comment(error_page("This watchlist has mistakes", causes(error)))
            raise
        found = pipeline.plan(hub, entries)
        page = plan_page(found, endpoint=hub.endpoint, title="This watchlist", heading="Once it is merged")
        tracker.keep_comment(page)
        step.page(page)
        for note in tracker.notes:
            step.annotate("warning", note)
