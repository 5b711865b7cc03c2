"""One way to call GitHub's API: what is tried again, errors that a person can act on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import github
import requests
from github.GithubException import BadCredentialsException, GithubException, RateLimitExceededException
from github.GithubRetry import GithubRetry
from github.Repository import Repository

from bot.errors import EnvironmentProblem
from bot.github.environment import Actions

TIMEOUT_S = 20
TRIES = 4
LONGEST_WAIT_S = 90  # for a limit to be lifted; a run that waits longer is better done by the next one
WRITE_PAUSE_S = 1.0  # as GitHub asks of those who write much
ACTIONS_LOGIN = "github-actions[bot]"  # whoever acts with the token that Actions gives to a job

# Sent again when the answer was an error of the server: all but POST, which may have been done.
_REPEATABLE = frozenset({"GET", "HEAD", "PUT", "PATCH", "DELETE"})


class GitHubFailsError(EnvironmentProblem):
    """GitHub does not answer, or not to us. What it would have said is not known."""


class Forge:
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

    def __enter__(self) -> Forge:
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
