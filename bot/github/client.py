"""One way to call GitHub's API: what is retried, errors to act on, and which runs and jobs there are."""

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
LONGEST_WAIT_S = 90  # for a limit to be lifted; a run that waits longer is better done by the next one
WRITE_PAUSE_S = 1.0  # as GitHub asks of those who write much
ACTIONS_LOGIN = "github-actions[bot]"  # whoever acts with the token that Actions gives to a job

# Sent again when the answer was an error of the server: all but POST, which may have been done.
_REPEATABLE = frozenset({"GET", "HEAD", "PUT", "PATCH", "DELETE"})


class GitHubFailsError(EnvironmentProblem):
    """GitHub does not answer, or not to us. What it would have said is not known."""


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
        """Who this token acts as. The REST API does not tell it to apps; GraphQL does."""
        if self._login is None:
            self._login = self._ask_login()
        return self._login

    def _ask_login(self) -> str:
        with answered("who we are"):
            try:
                _, said = self._api.requester.graphql_query("query { viewer { login } }", {})
            except BadCredentialsException:
                raise
            except GithubException:
                return ACTIONS_LOGIN
        return str(((said.get("data") or {}).get("viewer") or {}).get("login") or ACTIONS_LOGIN)


@contextmanager
def answered(what: str) -> Iterator[None]:
    """Raises GitHubFailsError for whatever goes wrong inside. what: was asked for, in words."""
    try:
        yield
    except RateLimitExceededException:
        raise GitHubFailsError(
            f"GitHub limits our requests: {what}", hint="Nothing was lost. The next run asks again."
        ) from None
    except BadCredentialsException:
        raise GitHubFailsError(
            f"GitHub refuses the token: {what}", hint="Pass GITHUB_TOKEN: ${{ github.token }} in the step's env."
        ) from None
    except GithubException as error:
        raise GitHubFailsError(f"GitHub answers {error.status}: {what}", hint=_hint(error.status)) from None
    except requests.exceptions.RetryError:
        raise GitHubFailsError(
            f"GitHub keeps failing, after {TRIES} tries: {what}", hint="Nothing was lost. The next run asks again."
        ) from None
    except requests.RequestException as error:
        raise GitHubFailsError(
            f"GitHub cannot be reached: {what}: {type(error).__name__}",
            hint="Check GITHUB_API_URL, the network and https://www.githubstatus.com.",
        ) from None


def _hint(status: int) -> str:
    if status in (401, 403, 404):
        return "Does the job have the permission? See `permissions:` in the workflow."
    if status == 410:
        return "Are issues switched on? Repository settings, Features, Issues."
    return "Nothing was lost. The next run asks again."


# The name of a leg is its verb and its target. A job that calls another workflow is named for the target, which
# stands alone until that workflow's jobs are there, and then before theirs.
_LEG = re.compile(r"(?:.* / )?(?:(quantize|publish|refresh) )?([\w.-]+/[\w.-]+)", re.ASCII)
_UNDER_WAY = ("in_progress", "queued", "waiting", "pending")
_PLAN = re.compile(r"(?:.* / )?plan")
_RUNS_LOOKED_AT = 50
_OURS_TO_ENABLE = ("active", "disabled_inactivity")  # a person's `disabled_manually` is not


def jobs_elsewhere(client: GitHubClient) -> tuple[RunningJob, ...]:
    """Every leg of the other runs of this workflow that are not over."""
    if not client.actions.workflow:
        return ()
    with answered("which runs are under way"):
        workflow = client.repository.get_workflow(client.actions.workflow)
        runs = {run.id: run for status in _UNDER_WAY for run in workflow.get_runs(status=status)}
        others = [run for number, run in runs.items() if str(number) != client.actions.run_id]
        return tuple(leg for run in others for leg in _legs(run.jobs("latest")))


def jobs_of_this_run(client: GitHubClient) -> tuple[RunningJob, ...]:
    """The legs of this run, each at its latest attempt."""
    if not client.actions.run_id.isdigit():
        return ()
    with answered("the jobs of this run"):
        return tuple(_legs(client.repository.get_workflow_run(int(client.actions.run_id)).jobs("latest")))


def plan_times(client: GitHubClient, workflow: str) -> PlanTimes:
    """Looked for from the newest run back, so that a workflow that is well costs two requests."""
    oldest = None
    with answered(f"the runs of {workflow}"):
        runs = client.repository.get_workflow(workflow).get_runs()
        for run in islice(runs, _RUNS_LOOKED_AT):
            oldest = run.created_at
            for job in run.jobs("latest"):
                if _PLAN.fullmatch(job.name) and job.conclusion == "success" and job.completed_at:
                    return PlanTimes(last_good=job.completed_at)
    return PlanTimes(oldest_run=oldest)


def keep_enabled(client: GitHubClient, workflow: str) -> str:
    """Enabling what is enabled already sets back the clock by which GitHub stops quiet repositories' schedules.

    What else it was, which is left so, or what GitHub did not do; nothing when it is enabled.
    """
    with answered(f"enabling {workflow}"):
        found = client.repository.get_workflow(workflow)
        if found.state not in _OURS_TO_ENABLE:
            return f"{workflow} was switched off by somebody ({found.state}), and is left so."
        done = found.enable()
    return "" if done else f"GitHub did not enable {workflow}. Does the job have `actions: write`?"


def _legs(jobs: Iterable[WorkflowJob]) -> Iterator[RunningJob]:
    for job in jobs:
        name = _LEG.fullmatch(job.name)
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
