"""Targets before and after a workflow publishes to them with nothing but its identity.

That identity can neither create a repo nor change who sees it. So an account's token creates the target, private;
once a complete release is there, it sets the gate as upstream's and then the visibility that was asked for.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial

from huggingface_hub import HfApi

from bot.errors import PublishError
from bot.hub.session import Hub
from bot.hub.settings import carry_gating, set_visibility, settings_of, stays_private
from bot.hub.target import allowed, target_state
from bot.records import Published, TargetState, Upstream, WatchEntry


@dataclass(frozen=True, slots=True, kw_only=True)
class PreparedTarget:
    """A target as it is now. done: what was changed; empty when it was as it should be. note: what comes next."""

    repo_id: str
    target: str
    url: str
    done: tuple[str, ...] = ()
    private: bool | None = None
    gated: str | None = None
    note: str = ""
    problem: str = ""
    hint: str = ""
    exit_code: int = 0


def create_target(hub: Hub, entry: WatchEntry, source: Upstream, *, barred: str) -> PreparedTarget:
    """barred: why nothing is to be made public now; empty when it may be. A refusal is part of the result.

    Raises EnvironmentProblem for what every further target would meet too.
    """
    target = PreparedTarget(repo_id=entry.repo_id, target=entry.target, url=f"{hub.endpoint}/{entry.target}")
    if entry.hold:
        return replace(target, note=f"left alone, on hold: {entry.hold}")
    try:
        done, note = _prepare(hub.creator, entry, source, barred)
        now = settings_of(hub.creator, entry.target)
    except PublishError as error:
        hint = error.hint.replace("HF_WRITE_TOKEN", "HF_CREATE_TOKEN")
        return replace(target, problem=error.message, hint=hint, exit_code=error.exit_code)
    gated = str(now.gated) if now.gated else None
    return replace(target, done=done, note=note, private=now.private, gated=gated)


def check_token(hub: Hub) -> None:
    if not (hub.create_token or hub.write_token):
        raise PublishError(
            "no token to create repos with",
            hint="Set HF_CREATE_TOKEN to one that may create repos and change their settings.",
        )


def _prepare(api: HfApi, entry: WatchEntry, source: Upstream, barred: str) -> tuple[tuple[str, ...], str]:
    """What was changed, and what comes next."""
    state = target_state(api, entry.target)
    publisher = f"to publish with the workflow's identity: {api.endpoint}/{entry.target}/settings"
    if state.state is TargetState.ABSENT:
        if source.problem:
            raise PublishError(
                f"{entry.repo_id}: {source.problem}, so no target was created for it",
                hint="Check its name on the watchlist, and whether HF_TOKEN may read it.",
            )
        _create(api, entry.target)
        return ("created, private",), publisher
    if state.state is TargetState.EMPTY:
        closed = set_visibility(api, entry.target, private=True, only_at=state.head)
        return ("made private",) if closed else (), publisher
    _check_origin(state, entry)
    if not state.complete:
        return (), "left as it is: no complete release on its head"
    if barred:
        return (), f"left as it is: {barred}"
    return _open(api, entry, source, state), ""


def _create(api: HfApi, target: str) -> None:
    allowed(target, "create the repo", partial(api.create_repo, target, private=True, exist_ok=True))
    if target_state(api, target).state is TargetState.ABSENT:
        raise PublishError(f"{target}: it exists, and the token may not read it", hint="Use another `target`.")


def _check_origin(state: Published, entry: WatchEntry) -> None:
    origin = state.provenance.source.repo_id if state.provenance is not None else entry.repo_id
    if origin.lower() != entry.repo_id.lower():
        raise PublishError(
            f"{entry.target}: it was made from {origin}, not from {entry.repo_id}", hint="Choose another `target`."
        )


def _open(api: HfApi, entry: WatchEntry, source: Upstream, state: Published) -> tuple[str, ...]:
    """The gate first: what is gated upstream is never open to everybody in between."""
    private = stays_private(entry, source)
    gate = carry_gating(api, entry.target, source, state.provenance, otherwise="It was left as it is.")
    seen = set_visibility(api, entry.target, private=private)
    gate_word = f"gated as upstream ({source.gated})" if source.gated else "gate opened, as upstream's"
    return (*([gate_word] if gate else []), *(["made private" if private else "made public"] if seen else []))
