"""Calls to GitHub's API: what is retried, errors with hints, and the runs and jobs of workflows."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import islice

import github
import requests
from github.GithubException import BadCredentialsException, GithubException, RateLimitExceededException
from github.GithubRetry import GithubRetry
from github.Repository import Repository
from github.WorkflowJob import WorkflowJob

from bot.errors import EnvironmentProblem
from bot.github.environment import Actions
from bot.records import PlanTimes, RunningJob

TIMEOUT_S = 20
TRIES = 4
LONGEST_WAIT_S = 90  # for a rate limit; after that it is left to the next run
# https://docs.github.com/en/rest/using-the-rest-api/best-practices-for-using-the-rest-api
WRITE_PAUSE_S = 1.0
ACTIONS_LOGIN = "github-actions[bot]"  # the author of what is written with the token of a workflow job

# Retried after a server error: all but POST, which may have taken effect.
_REPEATABLE = frozenset({"GET", "HEAD", "PUT", "PATCH", "DELETE"})


class GitHubFailsError(EnvironmentProblem):
    """GitHub does not answer, or refuses to."""


class GitHubClient:
    """The repository that a workflow runs in, as its API shows it. Use as a context manager."""

    def __init__(self, actions: Actions) -> None:
        self.actions = actions
        retry = GithubRetry(
            total=TRIES - 1,
            backoff_factor=0.3,
            status_forcelist=[500, 502, 503, 504],
            allowed_methods=_REPEATABLE,
            max_rate_limit_wait=LONGEST_WAIT_S,
            retry_after_max=LONGEST_WAIT_S,
        )
        self._api = github.Github(
            auth=github.Auth.Token(actions.token or ""),
            base_url=actions.api_url,
            timeout=TIMEOUT_S,
            user_agent="awq-bot",
            per_page=100,
            retry=retry,
            seconds_between_requests=None,
            seconds_between_writes=WRITE_PAUSE_S,
            lazy=True,
        )
        self._login: str | None = None

    def __enter__(self) -> GitHubClient:
        return self

    def __exit__(self, *ended: object) -> None:
        self._api.close()

    @property
    def repository(self) -> Repository:
        return self._api.get_repo(self.actions.repository)

    def login(self) -> str:
        """The account of this token. For apps only GraphQL reports it, not the REST API."""
        if self._login is None:
            self._login = self._ask_login()
        return self._login

    def _ask_login(self) -> str:
        with answered("the account of the token"):
            try:
                _, answer = self._api.requester.graphql_query("query { viewer { login } }", {})
            except BadCredentialsException:
                raise
            except GithubException:
                return ACTIONS_LOGIN
        return str(((answer.get("data") or {}).get("viewer") or {}).get("login") or ACTIONS_LOGIN)


@contextmanager
def answered(what: str) -> Iterator[None]:
    """Raises GitHubFailsError for any error of the API inside. what: what was requested, for the message."""
    try:
        yield
    except RateLimitExceededException:
        raise GitHubFailsError(f"GitHub limits our requests: {what}", hint=_LATER) from None
    except BadCredentialsException:
        raise GitHubFailsError(
            f"GitHub refuses the token: {what}", hint="Pass GITHUB_TOKEN: ${{ github.token }} in the step's env."
        ) from None
    except GithubException as error:
        raise GitHubFailsError(f"GitHub answers {error.status}: {what}", hint=_hint(error.status)) from None
    except requests.exceptions.RetryError:
        raise GitHubFailsError(f"GitHub keeps failing, after {TRIES} attempts: {what}", hint=_LATER) from None
    except requests.RequestException as error:
        raise GitHubFailsError(
            f"GitHub cannot be reached: {what}: {type(error).__name__}",
            hint="Check GITHUB_API_URL, the network and https://www.githubstatus.com.",
        ) from None


_LATER = "Nothing was lost. The next run retries."


def _hint(status: int) -> str:
    if status in (401, 403, 404):
        return "Check `permissions:` of this job in the workflow."
    if status == 410:
        return "Enable issues: repository settings, Features, Issues."
    return _LATER


# Jobs are named `VERB TARGET`. A job that calls another workflow is named `TARGET`; GitHub puts that name and a
# slash before the names of the called workflow's jobs.
_JOB_NAME = re.compile(r"(?:.* / )?(?:(quantize|publish|refresh) )?([\w.-]+/[\w.-]+)", re.ASCII)
_UNDER_WAY = ("in_progress", "queued", "waiting", "pending")
_PLAN = re.compile(r"(?:.* / )?plan")
_RUNS_LOOKED_AT = 50
_OURS_TO_ENABLE = ("active", "disabled_inactivity")  # not `disabled_manually`


def jobs_of_other_runs(client: GitHubClient) -> tuple[RunningJob, ...]:
    """The jobs of other runs of this workflow that are in progress."""
    if not client.actions.workflow:
        return ()
    with answered("the runs in progress"):
        workflow = client.repository.get_workflow(client.actions.workflow)
        runs = {run.id: run for status in _UNDER_WAY for run in workflow.get_runs(status=status)}
        others = [run for number, run in runs.items() if str(number) != client.actions.run_id]
        return tuple(job for run in others for job in _running_jobs(run.jobs("latest")))


def jobs_of_this_run(client: GitHubClient) -> tuple[RunningJob, ...]:
    """The jobs of this run, each at its latest attempt."""
    if not client.actions.run_id.isdigit():
        return ()
    with answered("the jobs of this run"):
        return tuple(_running_jobs(client.repository.get_workflow_run(int(client.actions.run_id)).jobs("latest")))


def on_default_branch(client: GitHubClient) -> bool:
    """Whether this run is of the repository's default branch. Raises GitHubFailsError."""
    with answered("the default branch"):
        return client.actions.ref == f"refs/heads/{client.repository.default_branch}"


def plan_times(client: GitHubClient, workflow: str) -> PlanTimes:
    """Searches from the newest run back, so that a healthy workflow costs two requests."""
    oldest = None
    with answered(f"the runs of {workflow}"):
        runs = client.repository.get_workflow(workflow).get_runs()
        for run in islice(runs, _RUNS_LOOKED_AT):
            oldest = run.created_at
            for job in run.jobs("latest"):
                if _PLAN.fullmatch(job.name) and job.conclusion == "success" and job.completed_at:
                    return PlanTimes(last_success=job.completed_at)
    return PlanTimes(oldest_run=oldest)


def keep_enabled(client: GitHubClient, workflow: str) -> str:
    """Enable the workflow: that restarts the 60 days after which GitHub disables schedules.

    Returns why it is not enabled; empty when it is. A workflow that a person disabled stays disabled.
    https://docs.github.com/en/actions/managing-workflow-runs/disabling-and-enabling-a-workflow
    """
    with answered(f"enabling {workflow}"):
        found = client.repository.get_workflow(workflow)
        if found.state not in _OURS_TO_ENABLE:
            return f"{workflow} was disabled by a person ({found.state}), and stays disabled."
        done = found.enable()
    return "" if done else f"GitHub did not enable {workflow}. Check that the job has `actions: write`."


def _running_jobs(jobs: Iterable[WorkflowJob]) -> Iterator[RunningJob]:
    for job in jobs:
        name = _JOB_NAME.fullmatch(job.name)
        if name is not None:
            yield RunningJob(
                stage=name[1] or "",
                target=name[2],
                status=job.status,
                conclusion=job.conclusion,
                url=job.html_url or "",
                runner=job.runner_name or "",
                created=job.created_at,
                started=job.started_at,
                completed=job.completed_at,
            )
