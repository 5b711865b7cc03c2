"""Sign what is published already, from when there was no key: the same files, in a new commit with a new tag."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from bot.errors import EnvironmentProblem, PublishError
from bot.hub.access import demand_write_token, exchange, request_or_raise
from bot.hub.release_log import next_entry
from bot.hub.session import Hub
from bot.hub.signatures import sealed
from bot.hub.signing import KEY, KEYLESS
from bot.hub.targets import target_state
from bot.hub.verify import verify
from bot.records import Progress


def sign_release(hub: Hub, repo_id: str, *, progress: Progress) -> str:
    """The tag of the signed release. Every file is downloaded and compared first.

    Raises PublishError when the release is incomplete, or something about it differs, and EnvironmentProblem
    without a key.
    """
    if hub.signing is None:
        raise EnvironmentProblem(
            f"{repo_id}: there is nothing to sign with",
            hint=f"Set {KEY} to a private EC key, or {KEYLESS} to true.",
        )
    exchange(hub, repo_id)
    demand_write_token(hub)
    api = hub.writer
    state = target_state(api, repo_id)
    made = state.provenance
    if made is None or not state.complete:
        raise PublishError(
            f"{repo_id}: no complete release is on its head", hint="Complete it with `awq-bot run`."
        )
    failed = [
        check for check in verify(hub, repo_id, revision=state.head, progress=progress) if check.status == "failed"
    ]
    if failed:
        raise PublishError(
            f"{repo_id}: {failed[0].name}: {failed[0].found}", hint="Nothing was signed. See `awq-bot verify`."
        )
    signed, tag = made.tag, f"{made.tag}-signed-{state.head[:8]}"
    made = replace(made, tag=tag, log=next_entry(api, state), published_by=hub.run)
    seals = sealed(hub.signing, made, target=repo_id, wanted=None)
    commit = request_or_raise(
        repo_id,
        "commit",
        partial(
            api.create_commit,
            repo_id,
            seals,
            commit_message=f"Sign {signed}",
            parent_commit=state.head,
            revision="main",
        ),
    )
    request_or_raise(
        repo_id, f"create the tag {tag}", partial(api.create_tag, repo_id, tag=tag, revision=commit.oid)
    )
    return tag
