"""The watch's state on GitHub: issues for earlier failures, and jobs of other runs.

Nothing here stops a run. If GitHub does not answer, a note says so and the run goes on with less information.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from datetime import datetime, timedelta
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, TypeVar

from bot.errors import EnvironmentProblem, WatchlistError
from bot.github.attempts import (
    CAP_WITHOUT_ATTEMPTS,
    after_failure,
    closing_comment,
    format_utc,
    overdue,
)
from bot.github.dashboard import Ticks, dashboard_text, read_ticks
from bot.github.environment import Actions
from bot.github.proposals import out_of_date, without_declined
from bot.github.summaries import failure_text, title_of, trouble_text
from bot.records import Attempts, DiscoverRule, Job, JobResult, Plan, Proposal, RunningJob, Status, sha256_of
from bot.watch.watchlist import Mistake

if TYPE_CHECKING:
    from bot.github.client import GitHubClient
    from bot.github.issues import Dashboard, Issues

Result = TypeVar("Result")

# Issues that are not about a target. A target has a slash in its name.
WATCHLIST = "watchlist"
WATCH = "watch"


class IssueTracker:
    """GitHub, as far as this run has access to it. Use as a context manager.

    notes: what could not be done or found out. open_attempts: what `attempts()` found and `report_results()`
    wrote.
    """

    def __init__(self, actions: Actions) -> None:
        self.actions = actions
        self.notes: list[str] = []
        self._resources = ExitStack()
        self._client: GitHubClient | None = None
        self._issues: Issues | None = None
        self._dashboard: Dashboard | None = None
        self._is_default: bool | None = None
        self.open_attempts: tuple[Attempts, ...] = ()

    def __enter__(self) -> IssueTracker:
        if self.actions.token and self.actions.repository:
            if find_spec("github") is None:
                hint = "In a checkout of awq-bot: pip install -c constraints.txt '.[actions]'"
                raise EnvironmentProblem("PyGithub is not installed", hint=hint)
            from bot.github.client import GitHubClient
            from bot.github.issues import Dashboard, Issues

            self._client = self._resources.enter_context(GitHubClient(self.actions))
            self._issues, self._dashboard = Issues(self._client), Dashboard(self._client)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._resources.close()

    # -- reading

    def attempts(self) -> tuple[Attempts, ...] | None:
        """What failed before; None if that is not known, which is noted with its consequence."""
        issues = self._issues
        if issues is None:
            self.notes.append(f"No GITHUB_TOKEN, so what failed before is not known: {_CAP}")
            return None
        found = self._try(issues.attempts, f"What failed before is not known: {_CAP}")
        self.open_attempts = found or ()
        return found

    def ticks(self) -> Ticks:
        """The boxes that people ticked on the dashboard; none without one."""
        dashboard = self._dashboard
        body = self._try(dashboard.body, "What is ticked on it is not known.") if dashboard else None
        return read_ticks(body or "")

    def jobs_of_other_runs(self) -> tuple[RunningJob, ...]:
        if self._client is None:
            return ()
        from bot.github.client import jobs_of_other_runs

        client = self._client
        known = self._try(lambda: jobs_of_other_runs(client), "What other runs work on is not known.")
        return known or ()

    def jobs_of_this_run(self) -> tuple[RunningJob, ...] | None:
        if self._client is None:
            return None
        from bot.github.client import jobs_of_this_run

        client = self._client
        return self._try(lambda: jobs_of_this_run(client), "How jobs without a result ended is not known.")

    def with_proposals(self, plan: Plan, rules: Sequence[DiscoverRule], *, base: str) -> Plan:
        """The plan without what pull requests show to be declined, and with whose pull request has to be written.

        base: the git id of the watchlist. Only on the default branch.
        """
        authors = [rule.author for rule in rules if rule.mode == "propose" and rule.entry.hold is None]
        if self._client is None or not authors:
            return plan
        from bot.github.pulls import proposal_pulls

        client = self._client
        named = tuple(dict.fromkeys(author.lower() for author in authors))
        if not self._on_default_branch(_NOT_PROPOSED):
            return plan
        pulls = self._try(lambda: proposal_pulls(client, named), _NOT_PROPOSED)
        if pulls is None:
            return plan
        plan = without_declined(plan, pulls)
        return replace(plan, proposing=out_of_date(plan, pulls, named, base=base))

    def report_overdue(self, workflow: str, *, now: datetime, limit: timedelta) -> str | None:
        """Open an issue while the last successful plan is older than `limit`, else close it.

        Returns the problem, or None.
        """
        if self._client is None:
            self.notes.append("No GITHUB_TOKEN, so when the last plan was made is not known.")
            return None
        from bot.github.client import plan_times

        client = self._client
        times = self._try(lambda: plan_times(client, workflow), "When the last plan was made is not known.")
        if times is None:
            return None
        problem = overdue(times, now=now, limit=limit)
        hint = f"Look at {workflow} under Actions: is it enabled, do its runs fail, is a runner connected?"
        hours = f"{limit / timedelta(hours=1):g} hours"
        headline = f"New releases are not noticed: {workflow} has made no plan for {hours}."
        items = [(problem, hint)] if problem else []
        self._update_trouble(WATCH, title_of(workflow, problem or ""), headline, items)
        return problem

    # -- writing

    def keep_enabled(self, workflow: str) -> bool:
        if self._client is None:
            self.notes.append("No GITHUB_TOKEN, so the schedule cannot be kept enabled.")
            return False
        from bot.github.client import keep_enabled

        client = self._client
        problem = self._try(lambda: keep_enabled(client, workflow), f"{workflow} could not be kept enabled.")
        if problem:
            self.notes.append(problem)
        return problem == ""

    def create_or_update_comment(self, text: str) -> None:
        """Create or update a comment on the pull request that started this run, if it is in this repository."""
        number = self.actions.own_pull_request()
        if self._client is None or number is None:
            return
        from bot.github.issues import create_or_update_comment

        client = self._client
        self._try(lambda: create_or_update_comment(client, number, text), "The comment could not be written.")

    def write_proposals(
        self, plan: Plan, *, watchlist: Path, endpoint: str
    ) -> Iterator[tuple[str, tuple[Proposal, ...]]]:
        """Write the pull requests that the plan says are out of date; a line about each, and what is new in it.

        Raises the first problem, after all were tried.
        """
        if self._client is None:
            raise EnvironmentProblem("no GITHUB_TOKEN, so no pull request can be written")
        from bot.github.pulls import write_pulls

        yield from write_pulls(self._client, plan, path=watchlist, endpoint=endpoint)

    def report_results(
        self, jobs: Sequence[Job], results: Sequence[JobResult], *, endpoint: str, now: datetime
    ) -> dict[str, str]:
        """Failures open or update their issue, success closes it. Target -> a line about its issue.

        results: one for each of the jobs, in the same order.
        """
        issues = self._issues
        if issues is None:
            return {}
        lines: dict[str, str] = {}
        for job, result in zip(jobs, results, strict=True):
            if result.status is Status.FAILED:
                write = partial(self._report_failure, issues, job, result, endpoint, now)
                lines[job.entry.target] = self._try(write, _NOT_WRITTEN) or ""
            elif result.status in (Status.PUBLISHED, Status.UNCHANGED):
                self._close(issues, job.entry.target, f"`{job.tag}` is published.")
        return lines

    def close_resolved(self, plan: Plan, *, full_watchlist: bool) -> None:
        """Close the issues that a new plan makes obsolete, first of all the one about a broken watchlist.

        full_watchlist: the plan is of the full watchlist, not of some of its models.
        """
        issues = self._issues
        if issues is None:
            return
        for item in self.open_attempts:
            if item.target == WATCHLIST:
                self._close(issues, WATCHLIST, "The watchlist has no mistakes.")
            elif why := closing_comment(item.target, plan, full_watchlist=full_watchlist):
                self._close(issues, item.target, why)

    def write_dashboard(self, plan: Plan, *, endpoint: str, create: bool = True) -> None:
        """What was ticked meanwhile stays ticked. A plan of one model changes nothing.

        create: also where there is none.
        """
        dashboard, actions = self._dashboard, self.actions
        if dashboard is None or plan.only or not self._on_default_branch(_NO_DASHBOARD):
            return
        text = dashboard_text(
            plan,
            self.ticks(),
            self.open_attempts,
            endpoint=endpoint,
            issues_url=actions.issues_url,
            runs_url=actions.runs_url,
        )
        if text is None:
            self.notes.append(
                "The dashboard was not written: too many models are on hold. Hold them in the watchlist."
            )
            return
        self._try(lambda: dashboard.write(text, create=create), _NO_DASHBOARD)

    def report_watchlist(self, mistakes: Sequence[Mistake]) -> None:
        """One issue while the watchlist has mistakes, however many; the next successful plan closes it."""
        headline = f"Nothing is watched while the watchlist cannot be read: {_count(len(mistakes), 'mistake')}."
        title = title_of(mistakes[0].file, mistakes[0].message)
        self._update_trouble(WATCHLIST, title, headline, [(str(item), item.hint) for item in mistakes])

    def _update_trouble(self, target: str, title: str, headline: str, items: Sequence[tuple[str, str]]) -> None:
        """The issue about the watch itself; closed if there are no items."""
        issues = self._issues
        if issues is None:
            return
        if not items:
            self._close(issues, target, "The problem is gone.")
            return
        trouble = Attempts(target=target, content=sha256_of(items), count=1, waits_for_person=True)
        text = trouble_text(headline, items, run_url=self.actions.run_url)
        code = WatchlistError.exit_code if target == WATCHLIST else EnvironmentProblem.exit_code
        self._write(issues, trouble, title=title, exit_code=code, text=text)

    def _write(self, issues: Issues, attempts: Attempts, *, title: str, exit_code: int, text: str) -> None:
        self._try(
            lambda: issues.open_or_update(attempts, title=title, exit_code=exit_code, text=text), _NOT_WRITTEN
        )

    def _report_failure(self, issues: Issues, job: Job, result: JobResult, endpoint: str, now: datetime) -> str:
        actions, target = self.actions, job.entry.target
        before, content = issues.about(target), job.attempt_digest
        attempts = after_failure(before, target=target, content=content, now=now, run=actions.run_name)
        reason = result.message.removeprefix(f"{job.entry.repo_id}: ").removeprefix(f"{target}: ")
        number = issues.open_or_update(
            attempts,
            title=title_of(target, reason),
            exit_code=result.exit_code,
            text=failure_text(job, result, attempts, endpoint=endpoint, run_url=actions.run_url),
        )
        self.open_attempts = (*self.open_attempts, replace(attempts, issue=number))
        link = f"[issue {number}]({actions.issues_url}/{number})"
        then = (
            f"next attempt not before {format_utc(attempts.next_try)}"
            if attempts.next_try
            else "no more automatic retries"
        )
        return f"**attempt** {attempts.count}, {then}: {link}"

    def _on_default_branch(self, otherwise: str) -> bool:
        """Of another branch's watchlist nothing is written that people read as the repository's."""
        client = self._client
        if client is None:
            return False
        from bot.github.client import on_default_branch

        if self._is_default is None:
            self._is_default = self._try(lambda: on_default_branch(client), otherwise)
        return self._is_default is True

    def _close(self, issues: Issues, target: str, what: str) -> None:
        run_url = self.actions.run_url
        comment = f"{what} Closed by [this run]({run_url})." if run_url else what
        self._try(lambda: issues.close(target, comment), "An issue could not be closed.")

    def _try(self, ask: Callable[[], Result], otherwise: str) -> Result | None:
        try:
            return ask()
        except EnvironmentProblem as error:
            note = f"{error.message}. {otherwise}"
            if note not in self.notes:
                self.notes.append(note)
            return None


_CAP = f"no more than {CAP_WITHOUT_ATTEMPTS} jobs are started."
_NO_DASHBOARD = "The dashboard could not be written."
_NOT_PROPOSED = "No pull request proposes models this time."
_NOT_WRITTEN = "An issue could not be written."


def _count(number: int, noun: str) -> str:
    return f"one {noun}" if number == 1 else f"{number} {noun}s"
