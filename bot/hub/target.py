"""The target repo: what stands there, its tags, and what it says when we may not."""

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
        raise PublishError(f"{target}: {state.problem}", hint="Look at it on the Hub, or choose another `target`.")
    if state.state is TargetState.FOREIGN:
        raise PublishError(
            f"{target}: it has content that is not ours", hint="Choose another `target`, or empty it by hand."
        )
    return state


def is_this(state: Published, job: Job) -> bool:
    return state.provenance is not None and state.provenance.tag == job.tag


def check_not_overtaken(state: Published, job: Job) -> None:
    """What stands there is what the plan saw, or this job's own work; raises PublishError otherwise.

    A job may take days, and end after another one that was planned later: it would put the older release on top.
    """
    if state.provenance is None or is_this(state, job):
        return
    seen, found = job.replaces, state.provenance.tag
    # Where an update of ours did not read back, what the plan saw is there again under a tag of its own.
    if seen is None or (found != seen and not found.startswith(f"{seen}-restored-")):
        raise overtaken(job.entry.target)


def check_tag(state: Published, job: Job) -> None:
    """A tag is never moved, so one that is somewhere else already would leave us unfinished for ever."""
    taken = next((tag.sha for tag in state.tags if tag.name == job.tag), None)
    if taken is not None and not (is_this(state, job) and taken == state.head):
        raise PublishError(
            f"{state.repo_id}: the tag {job.tag} is on {taken[:8]} already: this was published there before",
            hint="Delete that tag on the Hub, then run it again.",
        )


def set_tag(api: HfApi, job: Job, sha: str) -> None:
    try:
        call(partial(api.create_tag, job.entry.target, tag=job.tag, revision=sha))
    except HfHubHTTPError as error:
        # Its answer was lost, or somebody else completes the same release.
        state = target_state(api, job.entry.target)
        if Tag(name=job.tag, sha=sha) in state.tags:
            return
        check_tag(state, job)
        raise no_permission(job.entry.target, f"create the tag {job.tag}", error) from None


# --- refusals -----------------------------------------------------------------------------------------------


def overtaken(target: str) -> PublishError:
    return PublishError(f"{target}: somebody else published there meanwhile", hint="Run it again to look anew.")


def allowed(target: str, what: str, request: Callable[[], Result]) -> Result:
    try:
        return call(request)
    except HfHubHTTPError as error:
        raise no_permission(target, what, error) from None


def no_permission(target: str, what: str, error: HfHubHTTPError) -> PublishError:
    status = status_of(error)
    if is_exchange(error) and status == 400:
        return not_trusted(target, "its settings")
    said = " ".join((error.server_message or "").split())
    answer = f"{status}: {said}" if said else f"{status}"
    if status in (401, 403, 404):
        return PublishError(f"{target}: the token may not {what} ({answer})", hint=write_hint(target))
    return PublishError(f"{target}: cannot {what} ({answer})", hint="Run it again; it goes on from here.")


def write_hint(target: str) -> str:
    return f"HF_WRITE_TOKEN needs write access to {target.split('/', maxsplit=1)[0]!r}."
