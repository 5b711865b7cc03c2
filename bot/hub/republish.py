"""Publish a complete release again: signed, or with a notice on its card. A new commit with a new tag.

The other files stay, and the release before stays under its tag.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

from huggingface_hub import CommitOperationAdd, HfApi

from bot.checkpoint.repo_files import CARD, SIGNATURE
from bot.errors import EnvironmentProblem, PublishError
from bot.hub.access import demand_write_token, exchange, request_or_raise
from bot.hub.fetch import files_at, read_small_file
from bot.hub.release_log import next_entry
from bot.hub.session import Hub
from bot.hub.signatures import sealed
from bot.hub.signing import KEY, KEYLESS
from bot.hub.targets import target_state
from bot.hub.verify import verify
from bot.records import Progress, Provenance, Published, PublishedFile


def sign_release(hub: Hub, repo_id: str, *, progress: Progress) -> str:
    """Sign what was published when there was no key. Returns the tag of the signed release.

    Every file is downloaded and compared first. Raises PublishError when the release is incomplete, or something
    about it differs, and EnvironmentProblem without a key.
    """
    if hub.signing is None:
        raise EnvironmentProblem(
            f"{repo_id}: there is nothing to sign with",
            hint=f"Set {KEY} to a private EC key, or {KEYLESS} to true.",
        )
    state, made = _complete_release(hub, repo_id)
    failed = [
        check for check in verify(hub, repo_id, revision=state.head, progress=progress) if check.status == "failed"
    ]
    if failed:
        raise PublishError(
            f"{repo_id}: {failed[0].name}: {failed[0].found}", hint="Nothing was signed. See `awq-bot verify`."
        )
    return _republish(hub, state, made, [], added="signed", summary=f"Sign {made.tag}")


def publish_notice(hub: Hub, repo_id: str, notice: str, *, edited: Callable[[str, str, str], str]) -> str:
    """Say on the card what readers should know, or take that away with an empty notice. Returns the new tag.

    edited: the card with the second notice in place of the first. Raises PublishError when the release is
    incomplete or its card was changed, EnvironmentProblem when it is signed and there is no key.
    """
    state, made = _complete_release(hub, repo_id)
    api = hub.writer
    listed = {file.path for file in request_or_raise(repo_id, "list its files", partial(files_at, api, repo_id))}
    if SIGNATURE in listed and hub.signing is None:
        raise EnvironmentProblem(
            f"{repo_id}: it is signed, and there is nothing to sign with", hint=f"Set {KEY}, or {KEYLESS} to true."
        )
    card = request_or_raise(
        repo_id, f"read {CARD}", partial(read_small_file, api, repo_id, CARD, revision=state.head)
    )
    before = next((file for file in made.files if file.path == CARD), None)
    if before is None or hashlib.sha256(card).hexdigest() != before.sha256:
        raise PublishError(f"{repo_id}: {CARD} is not as it was published", hint="See `awq-bot verify`.")
    content = edited(card.decode(), made.notice, notice).encode()
    after = PublishedFile(path=CARD, size_bytes=len(content), sha256=hashlib.sha256(content).hexdigest())
    made = replace(made, notice=notice, files=tuple(after if file is before else file for file in made.files))
    summary = f"Notice on {made.tag}" if notice else f"Take the notice on {made.tag} away"
    return _republish(hub, state, made, [CommitOperationAdd(CARD, content)], added="noticed", summary=summary)


def _complete_release(hub: Hub, repo_id: str) -> tuple[Published, Provenance]:
    exchange(hub, repo_id)
    demand_write_token(hub)
    state = target_state(hub.writer, repo_id)
    if state.provenance is None or not state.complete:
        raise PublishError(
            f"{repo_id}: no complete release is on its head", hint="Complete it with `awq-bot run`."
        )
    return state, state.provenance


def _republish(
    hub: Hub,
    state: Published,
    made: Provenance,
    changes: Sequence[CommitOperationAdd],
    *,
    added: str,
    summary: str,
) -> str:
    """added: to the tag, with the commit that is followed."""
    api: HfApi = hub.writer
    repo_id, tag = state.repo_id, f"{made.tag}-{added}-{state.head[:8]}"
    made = replace(made, tag=tag, log=next_entry(api, state), published_by=hub.run)
    seals = sealed(hub.signing, made, target=repo_id, wanted=None)
    commit = request_or_raise(
        repo_id,
        "commit",
        partial(
            api.create_commit,
            repo_id,
            [*changes, *seals],
            commit_message=summary,
            parent_commit=state.head,
            revision="main",
        ),
    )
    request_or_raise(
        repo_id, f"create the tag {tag}", partial(api.create_tag, repo_id, tag=tag, revision=commit.oid)
    )
    return tag
