"""The target repo: its state, its tags, and requests that the token is not permitted to make."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TypeVar

from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError

from bot.errors import PublishError
from bot.hub.access import is_exchange, not_trusted
from bot.hub.client import published_state
from bot.hub.session import call, status_of
from bot.records import Job, Published, Tag, TargetState

Result = TypeVar("Result")


def target_state(api: HfApi, target: str) -> Published:
    state = published_state(api, target)
    if state.problem:
        raise PublishError(f"{target}: {state.problem}", hint="Check it on the Hub, or choose another `target`.")
    if state.state is TargetState.FOREIGN:
        raise PublishError(
            f"{target}: it has content that awq-bot did not publish",
            hint="Choose another `target`, or empty it by hand.",
        )
    return state


def has_release_of(state: Published, job: Job) -> bool:
    return state.provenance is not None and state.provenance.tag == job.tag


def check_not_superseded(state: Published, job: Job) -> None:
    """Raises PublishError when the target has changed since the plan, other than by this job.

    A job may take days, and may end after a job that was planned later: it would replace the newer release.
    """
    if state.provenance is None or has_release_of(state, job):
        return
    seen, found = job.replaces, state.provenance.tag
    # After a failed update, restore_previous published the planned state again with another tag.
    if seen is None or (found != seen and not found.startswith(f"{seen}-restored-")):
        raise superseded(job.entry.target)


def check_tag(state: Published, job: Job) -> None:
    """A tag is never moved, so a release whose tag is on another commit could never be completed."""
    taken = next((tag.sha for tag in state.tags if tag.name == job.tag), None)
    if taken is not None and not (has_release_of(state, job) and taken == state.head):
        raise PublishError(
            f"{state.repo_id}: the tag {job.tag} is already on {taken[:8]}: this release was published before",
            hint="Delete that tag on the Hub, then run it again.",
        )


def set_tag(api: HfApi, job: Job, sha: str) -> None:
    try:
        call(partial(api.create_tag, job.entry.target, tag=job.tag, revision=sha))
    except HfHubHTTPError as error:
        # The answer was lost, or another run completed the same release.
        state = target_state(api, job.entry.target)
        if Tag(name=job.tag, sha=sha) in state.tags:
            return
        check_tag(state, job)
        raise request_error(job.entry.target, f"create the tag {job.tag}", error) from None


def superseded(target: str) -> PublishError:
    return PublishError(f"{target}: another run has published to it since the plan was made", hint="Run it again.")


def request_or_raise(target: str, what: str, request: Callable[[], Result]) -> Result:
    try:
        return call(request)
    except HfHubHTTPError as error:
        raise request_error(target, what, error) from None


def request_error(target: str, what: str, error: HfHubHTTPError) -> PublishError:
    status = status_of(error)
    if is_exchange(error) and status == 400:
        return not_trusted(target, "its settings")
    said = " ".join((error.server_message or "").split())
    answer = f"{status}: {said}" if said else f"{status}"
    if status in (401, 403, 404):
        return PublishError(f"{target}: the token is not permitted to {what} ({answer})", hint=write_hint(target))
    return PublishError(f"{target}: cannot {what} ({answer})", hint="Run it again: it resumes.")


def write_hint(target: str) -> str:
    return f"HF_WRITE_TOKEN needs write access to {target.split('/', maxsplit=1)[0]!r}."
