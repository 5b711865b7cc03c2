"""What GitHub remembers for the watch: what failed before, as issues, and what other runs work on.

None of it stops a run. Where GitHub does not answer, a note says so and the run goes on with less knowledge.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from datetime import datetime, timedelta
from importlib.util import find_spec
from types import TracebackType
from typing import TYPE_CHECKING, TypeVar

from bot.errors import EnvironmentProblem, WatchlistError
from bot.github.attempts import (
    CAP_WITHOUT_ATTEMPTS,
    after_failure,
    needs_person,
    overdue,
    refusal_of,
    settled,
    shown,
    tried_content,
)
from bot.github.environment import Actions
from bot.github.results import Ending, Fate
from bot.github.summaries import failure_text, refusal_text, title_of, trouble_text
from bot.records import Attempts, Plan, RunningJob, sha256_of
from bot.watch.watchlist import Mistake

if TYPE_CHECKING:
    from bot.github.client import GitHubClient
    from bot.github.issues import Issues

Result = TypeVar("Result")

# Issues about the watch itself. No target has such a name: a target has a slash.
WATCHLIST = "watchlist"
WATCH = "watch"


class IssueTracker:
    """GitHub as this run may use it. Use as a context manager.

    notes: what it could not say. known: the attempts that it told of.
    """

    def __init__(self, actions: Actions) -> None:
        self.actions = actions
        self.notes: list[str] = []
        self._resources = ExitStack()
        self._client: GitHubClient | None = None
        self._issues: Issues | None = None
        self.known: tuple[Attempts, ...] = ()

    def __enter__(self) -> IssueTracker:
        if self.actions.token and self.actions.repository:
            if find_spec("github") is None:
                hint = "In a checkout of awq-bot: pip install -c constraints.txt '.[actions]'"
                raise EnvironmentProblem("PyGithub is not installed", hint=hint)
            from bot.github.client import GitHubClient
            from bot.github.issues import Issues

            self._client = self._resources.enter_context(GitHubClient(self.actions))
            self._issues = Issues(self._client)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._resources.close()

    # -- asking

    def attempts(self) -> tuple[Attempts, ...] | None:
        """What failed before; None when nobody can say, which is noted with what follows from it."""
        issues = self._issues
        if issues is None:
            self.notes.append(f"No GITHUB_TOKEN, so what failed before is not known: {_CAP}")
            return None
        found = self._try(issues.attempts, f"What failed before is not known: {_CAP}")
        self.known = found or ()
        return found

    def running_elsewhere(self) -> tuple[RunningJob, ...]:
        if self._client is None:
            return ()
        from bot.github.client import jobs_elsewhere

        client = self._client
        known = self._try(lambda: jobs_elsewhere(client), "What other runs work on is not known.")
        return known or ()

    def own_jobs(self) -> tuple[RunningJob, ...] | None:
        if self._client is None:
            return None
        from bot.github.client import jobs_of_this_run

        client = self._client
        return self._try(lambda: jobs_of_this_run(client), "What became of lost jobs is not known.")

    def overdue(self, workflow: str, *, now: datetime, limit: timedelta) -> str | None:
        """What is wrong when the last good plan is older than `limit`; an issue stands as long as it is."""
        if self._client is None:
            self.notes.append("No GITHUB_TOKEN, so nobody can say when the last plan was made.")
            return None
        from bot.github.client import plan_times

        client = self._client
        times = self._try(lambda: plan_times(client, workflow), "When the last plan was made is not known.")
        if times is None:
            return None
        problem = overdue(times, now=now, limit=limit)
        hint = f"Actions, {workflow}: is it switched on, do its runs fail, is there a runner?"
        headline = (
            f"New releases go unnoticed: {workflow} has made no plan for {limit / timedelta(hours=1):g} hours."
        )
        items = [(problem, hint)] if problem else []
        self._tell_trouble(WATCH, title_of(workflow, problem or ""), headline, items)
        return problem

    # -- telling

    def keep_enabled(self, workflow: str) -> bool:
        if self._client is None:
            self.notes.append("No GITHUB_TOKEN, so the schedule cannot be kept on.")
            return False
        from bot.github.client import keep_enabled

        client = self._client
        problem = self._try(lambda: keep_enabled(client, workflow), f"{workflow} could not be kept enabled.")
        if problem:
            self.notes.append(problem)
        return problem == ""

    def keep_comment(self, text: str) -> None:
        """On the pull request that started this run, where that is one of this repository."""
        number = self.actions.own_pull_request()
        if self._client is None or number is None:
            return
        from bot.github.issues import keep_comment

        client = self._client
        self._try(lambda: keep_comment(client, number, text), "The comment could not be written.")

    def tell_endings(self, endings: Sequence[Ending], *, endpoint: str, now: datetime) -> dict[str, str]:
        """Failures open or update their issue, success closes it. Target -> a line about its issue."""
        issues = self._issues
        if issues is None:
            return {}
        lines: dict[str, str] = {}
        for ending in endings:
            target = ending.job.entry.target
            if ending.fate is Fate.FAILED:
                line = self._try(lambda: self._tell_failure(issues, ending, endpoint, now), _NOT_TOLD)  # noqa: B023
                lines[target] = line or ""
            elif ending.fate in (Fate.PUBLISHED, Fate.UNCHANGED):
                self._close(issues, target, f"`{ending.job.tag}` is published.")
        return lines

    def settle(self, plan: Plan, *, whole: bool) -> None:
        """A plan was made, so the watchlist is well; and what it says of other issues closes them.

        whole: the plan is of the whole watchlist.
        """
        issues = self._issues
        if issues is None:
            return
        for item in self.known:
            if item.target == WATCHLIST:
                self._close(issues, WATCHLIST, "The watchlist has no mistakes.")
            elif why := settled(item.target, plan, whole=whole):
                self._close(issues, item.target, why)

    def tell_refusals(self, plan: Plan, *, endpoint: str) -> None:
        """An issue for each refusal that does not pass by itself, and no word more while its reason stays."""
        issues = self._issues
        if issues is None:
            return
        told = {(item.target, item.content) for item in self.known}
        for skip in plan.skipped:
            name, content = refusal_of(skip.entry.target), sha256_of([skip.reason, skip.hint])
            if needs_person(skip) and (name, content) not in told:
                refusal = Attempts(target=name, content=content, waits_for_person=True)
                title = title_of(skip.entry.target, skip.reason)
                text = refusal_text(skip, endpoint=endpoint, run_url=self.actions.run_url)
                self._tell(issues, refusal, title=title, exit_code=skip.exit_code, text=text)

    def tell_watchlist(self, mistakes: Sequence[Mistake]) -> None:
        """One issue while the watchlist is broken, whatever is wrong with it; the next good plan closes it."""
        headline = f"Nothing is watched while the watchlist cannot be read: {_count(len(mistakes), 'mistake')}."
        title = title_of(mistakes[0].file, mistakes[0].message)
        self._tell_trouble(WATCHLIST, title, headline, [(str(item), item.hint) for item in mistakes])

    def _tell_trouble(self, target: str, title: str, headline: str, items: Sequence[tuple[str, str]]) -> None:
        issues = self._issues
        if issues is None:
            return
        if not items:
            self._close(issues, target, "All is well again.")
            return
        trouble = Attempts(target=target, content=sha256_of(items), count=1, waits_for_person=True)
        text = trouble_text(headline, items, run_url=self.actions.run_url)
        code = WatchlistError.exit_code if target == WATCHLIST else EnvironmentProblem.exit_code
        self._tell(issues, trouble, title=title, exit_code=code, text=text)

    def _tell(self, issues: Issues, attempts: Attempts, *, title: str, exit_code: int, text: str) -> None:
        self._try(lambda: issues.tell(attempts, title=title, exit_code=exit_code, text=text), _NOT_TOLD)

    def _tell_failure(self, issues: Issues, ending: Ending, endpoint: str, now: datetime) -> str:
        job, actions = ending.job, self.actions
        target = job.entry.target
        before, content = issues.about(target), tried_content(job)
        attempts = after_failure(before, target=target, content=content, now=now, run=actions.run_name)
        reason = ending.message.removeprefix(f"{job.entry.repo_id}: ").removeprefix(f"{target}: ")
        number = issues.tell(
            attempts,
            title=title_of(target, reason),
            exit_code=ending.exit_code,
            text=failure_text(ending, attempts, endpoint=endpoint, run_url=actions.run_url),
        )
        link = f"[issue {number}]({actions.issues_url}/{number})"
        then = f"next try not before {shown(attempts.next_try)}" if attempts.next_try else "waits for a person"
        return f"**attempt** {attempts.count}, {then}: {link}"

    def _close(self, issues: Issues, target: str, what: str) -> None:
        run_url = self.actions.run_url
        comment = f"{what} [This run]({run_url}) found it so." if run_url else what
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
_NOT_TOLD = "An issue could not be written."


def _count(number: int, noun: str) -> str:
    return f"one {noun}" if number == 1 else f"{number} {noun}s"
