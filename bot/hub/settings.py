"""A target's visibility and gating, and creating targets for Trusted Publishers.

A Trusted Publisher can neither create a repo nor change its settings. So an account's token creates the target,
private; after the first complete release it sets the gating of upstream and then the configured visibility.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.hf_api import ModelInfo

from bot.errors import PublishError
from bot.hub.access import request_or_raise
from bot.hub.fetch import side_by_side
from bot.hub.session import Hub, HubFailsError, call, status_of
from bot.hub.targets import target_state, with_origin
from bot.records import Job, Provenance, Published, TargetState, Upstream, WatchEntry

Gating = Literal["auto", "manual", False]


def stays_private(entry: WatchEntry, upstream: Upstream) -> bool:
    """A quantized copy of a private upstream is never public."""
    return entry.private or upstream.private


def with_visibility(
    hub: Hub, entries: Sequence[WatchEntry], sources: Sequence[Upstream], targets: Sequence[Published]
) -> tuple[Published, ...]:
    """The targets, with the visibility of those that should be private: one API call for each of these."""

    def with_private(item: tuple[WatchEntry, Upstream, Published]) -> Published:
        entry, source, target = item
        if target.provenance is None or not stays_private(entry, source):
            return target
        try:
            return replace(target, private=bool(settings_of(hub.reader, target.repo_id).private))
        except (PublishError, HubFailsError) as error:
            return replace(target, problem=error.message)

    return side_by_side(with_private, zip(entries, sources, targets, strict=True))


def settings_of(api: HfApi, target: str) -> ModelInfo:
    return request_or_raise(
        target, "read its settings", partial(api.model_info, target, expand=["private", "gated", "sha"])
    )


def set_visibility(api: HfApi, target: str, *, private: bool, only_at: str | None = None) -> bool:
    """Returns whether it was changed. only_at: change nothing when the head is another commit by now."""
    info = settings_of(api, target)
    if info.private == private or only_at not in (None, info.sha):
        return False
    what = "make it private" if private else "make it public"
    request_or_raise(target, what, partial(api.update_repo_settings, target, private=private))
    return True


def wanted_gating(upstream: Upstream, before: Provenance | None) -> Gating | None:
    """The gating of upstream, or None to leave the target's gating alone: a person may have set it.

    before: the published release, whose upstream may have been gated. See
    https://huggingface.co/docs/hub/models-gated
    """
    if upstream.gated:
        return "manual" if upstream.gated == "manual" else "auto"
    return False if before is not None and before.source.gated else None


def set_gating(api: HfApi, target: str, upstream: Upstream, before: Provenance | None, *, otherwise: str) -> bool:
    """Returns whether the gating was changed. otherwise: what a failure leaves behind, for its hint."""
    gated = wanted_gating(upstream, before)
    if gated is None or (settings_of(api, target).gated or False) == gated:
        return False
    try:
        call(partial(api.update_repo_settings, target, gated=gated))
    except HfHubHTTPError as error:
        raise PublishError(
            f"{target}: its gating could not be set to upstream's, {gated or 'open'} ({status_of(error)})",
            hint=f"{otherwise} Use a token that can change settings, or set the gating by hand, and run it again.",
        ) from None
    return True


def check_settings(api: HfApi, job: Job, before: Provenance | None, *, is_empty: bool) -> bool:
    """Returns whether the target is private, for a token that cannot change that.

    is_empty: nothing is published to it yet. Raises PublishError when the target is more visible than it should
    be.
    """
    target, info = job.entry.target, settings_of(api, job.entry.target)
    if info.private:
        return True
    if is_empty:
        raise _needs_account(target, "it is public before anything is published to it")
    if stays_private(job.entry, job.upstream):
        raise _needs_account(target, "it is public, and should be private")
    gated = wanted_gating(job.upstream, before)
    if gated is not None and (info.gated or False) != gated:
        raise _needs_account(target, f"its gating is not upstream's, {gated or 'open'}")
    return False


def _needs_account(target: str, what: str) -> PublishError:
    return PublishError(
        f"{target}: {what}, and Trusted Publishers cannot change settings",
        hint=f"Run `awq-bot create-target {target}`, then run this again.",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class PreparedTarget:
    """A target and its current settings. done: what was changed. note: what comes next."""

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


def create_target(hub: Hub, entry: WatchEntry, source: Upstream, *, blocked: str) -> PreparedTarget:
    """blocked: why the target must not be made public now, or empty. A refusal is part of the result.

    Raises EnvironmentProblem for problems that every further target would have too.
    """
    target = PreparedTarget(repo_id=entry.repo_id, target=entry.target, url=f"{hub.endpoint}/{entry.target}")
    if entry.hold:
        return replace(target, note=f"left alone, on hold: {entry.hold}")
    try:
        done, note = _prepare(hub.creator, entry, source, blocked)
        now = settings_of(hub.creator, entry.target)
    except PublishError as error:
        hint = error.hint.replace("HF_WRITE_TOKEN", "HF_CREATE_TOKEN")
        return replace(target, problem=error.message, hint=hint, exit_code=error.exit_code)
    gated = str(now.gated) if now.gated else None
    return replace(target, done=done, note=note, private=now.private, gated=gated)


def check_token(hub: Hub) -> None:
    if not (hub.create_token or hub.write_token):
        raise PublishError(
            "no token that can create repos",
            hint="Set HF_CREATE_TOKEN to one that can create repos and change their settings.",
        )


def _prepare(api: HfApi, entry: WatchEntry, source: Upstream, blocked: str) -> tuple[tuple[str, ...], str]:
    """What was changed, and what comes next."""
    state = target_state(api, entry.target)
    publisher = f"next: add a Trusted Publisher at {api.endpoint}/{entry.target}/settings"
    if state.state is TargetState.ABSENT:
        if source.problem:
            raise PublishError(
                f"{entry.repo_id}: {source.problem}, so no target was created for it",
                hint="Check its name in the watchlist, and whether HF_TOKEN can read it.",
            )
        _create(api, entry.target)
        return ("created, private",), publisher
    if state.state is TargetState.EMPTY:
        closed = set_visibility(api, entry.target, private=True, only_at=state.head)
        return ("made private",) if closed else (), publisher
    _check_origin(with_origin(api, entry, source, state), entry, source)
    if not state.complete:
        return (), "unchanged: no complete release on its head"
    if blocked:
        return (), f"unchanged: {blocked}"
    return _apply_settings(api, entry, source, state), ""


def _create(api: HfApi, target: str) -> None:
    request_or_raise(target, "create the repo", partial(api.create_repo, target, private=True, exist_ok=True))
    if target_state(api, target).state is TargetState.ABSENT:
        raise PublishError(f"{target}: it exists, but the token cannot read it", hint="Use another `target`.")


def _check_origin(state: Published, entry: WatchEntry, source: Upstream) -> None:
    if not state.is_made_from(entry.repo_id, source.repo_id):
        raise PublishError(
            f"{entry.target}: it was made from {state.made_from}, not from {source.repo_id}",
            hint="Choose another `target`.",
        )


def _apply_settings(api: HfApi, entry: WatchEntry, source: Upstream, state: Published) -> tuple[str, ...]:
    """Set gating and visibility. Gating comes first, so that a gated model is never public in between."""
    private = stays_private(entry, source)
    gating_changed = set_gating(api, entry.target, source, state.provenance, otherwise="Nothing was changed.")
    visibility_changed = set_visibility(api, entry.target, private=private)
    gating = f"gated as upstream ({source.gated})" if source.gated else "gating removed, as upstream"
    done = ((gating_changed, gating), (visibility_changed, "made private" if private else "made public"))
    return tuple(what for changed, what in done if changed)
