"""Who may see a target: its visibility and its gate, set by an account's token or only checked by a workflow's.

A token that a workflow's identity was exchanged for may change content and nothing else. So a first release that
was published with one stays private, and `create-target` opens it once it is complete.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Literal

from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.hf_api import ModelInfo

from bot.errors import PublishError
from bot.hub.client import side_by_side
from bot.hub.session import Hub, HubFailsError, call, status_of
from bot.hub.target import allowed
from bot.records import Job, Provenance, Published, Upstream, WatchEntry

Gate = Literal["auto", "manual", False]


def stays_private(entry: WatchEntry, upstream: Upstream) -> bool:
    """A private upstream is never made public by way of its quantized copy."""
    return entry.private or upstream.private


def with_visibility(
    hub: Hub, entries: Sequence[WatchEntry], sources: Sequence[Upstream], targets: Sequence[Published]
) -> tuple[Published, ...]:
    """The targets, and of those that should be private whether they are: one API call for each of these."""

    def look(item: tuple[WatchEntry, Upstream, Published]) -> Published:
        entry, source, target = item
        if target.provenance is None or not stays_private(entry, source):
            return target
        try:
            return replace(target, private=bool(settings_of(hub.reader, target.repo_id).private))
        except (PublishError, HubFailsError) as error:
            return replace(target, problem=error.message)

    return side_by_side(look, zip(entries, sources, targets, strict=True))


def settings_of(api: HfApi, target: str) -> ModelInfo:
    return allowed(
        target, "read its settings", partial(api.model_info, target, expand=["private", "gated", "sha"])
    )


def set_visibility(api: HfApi, target: str, *, private: bool, only_at: str | None = None) -> bool:
    """Whether it had to be changed. only_at: leave the repo as it is when its head is another commit by now."""
    info = settings_of(api, target)
    if info.private == private or only_at not in (None, info.sha):
        return False
    what = "make it private" if private else "make it public"
    allowed(target, what, partial(api.update_repo_settings, target, private=private))
    return True


def wanted_gate(upstream: Upstream, before: Provenance | None) -> Gate | None:
    """The gate as upstream's; None where it is not ours to say: a person may have put one there on their own.

    before: what is published, made from an upstream that may have been gated.
    """
    if upstream.gated:
        return "manual" if upstream.gated == "manual" else "auto"
    return False if before is not None and before.source.gated else None


def carry_gating(
    api: HfApi, target: str, upstream: Upstream, before: Provenance | None, *, otherwise: str
) -> bool:
    """Whether the gate had to be changed. otherwise: what a failure leaves behind, for its hint."""
    gated = wanted_gate(upstream, before)
    if gated is None or (settings_of(api, target).gated or False) == gated:
        return False
    try:
        call(partial(api.update_repo_settings, target, gated=gated))
    except HfHubHTTPError as error:
        raise PublishError(
            f"{target}: its gate could not be set as upstream's, {gated or 'open'} ({status_of(error)})",
            hint=f"{otherwise} Use a token that may change settings, or set the gate by hand, and run it again.",
        ) from None
    return True


def check_settings(api: HfApi, job: Job, before: Provenance | None, *, filling: bool) -> bool:
    """Whether the target is private, for a token that cannot change that.

    filling: nothing is published there yet. Raises PublishError when people could see what they should not.
    """
    target, info = job.entry.target, settings_of(api, job.entry.target)
    if info.private:
        return True
    if filling:
        raise _needs_account(target, "it is public before anything is published there")
    if stays_private(job.entry, job.upstream):
        raise _needs_account(target, "it is public, and should be private")
    gated = wanted_gate(job.upstream, before)
    if gated is not None and (info.gated or False) != gated:
        raise _needs_account(target, f"its gate is not upstream's, {gated or 'open'}")
    return False


def _needs_account(target: str, what: str) -> PublishError:
    return PublishError(
        f"{target}: {what}, and a workflow's identity may not change settings",
        hint=f"Run `awq-bot create-target {target}`, then this again.",
    )
