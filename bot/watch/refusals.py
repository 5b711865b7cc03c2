"""Why nothing is done with a model, in words for the one who put it on the watchlist."""

from __future__ import annotations

from bot.checkpoint.repo_files import (
    CONFIG,
    SINGLE_WEIGHTS,
    VOCABULARY,
    is_pickle,
    is_safe_path,
    is_vocabulary,
)
from bot.errors import BotError, PublishError, UpstreamError
from bot.records import Details, HubFile, Published, Skip, TargetState, Upstream, WatchEntry

UNSTATED_LICENSE = "unknown"  # the Hub's own id for it
OTHER_LICENSE = "other"  # likewise: see its name


def refuse(entry: WatchEntry, reason: str, error: type[BotError], hint: str = "") -> Skip:
    return Skip(entry=entry, reason=reason, hint=hint, blocked=True, exit_code=error.exit_code)


def refused_at_sight(entry: WatchEntry, upstream: Upstream, published: Published) -> Skip | None:
    if upstream.problem:
        return refuse(entry, upstream.problem, UpstreamError, f"Look at {entry.repo_id} on the Hub.")
    if published.problem:
        return refuse(entry, published.problem, PublishError, f"Look at {entry.target} on the Hub.")
    if published.state is TargetState.FOREIGN:
        hint = "Choose another `target`, or empty that repo by hand."
        return refuse(entry, f"{entry.target} is someone else's: it has no provenance of ours", PublishError, hint)
    provenance = published.provenance
    if provenance is not None and provenance.source.repo_id.lower() != entry.repo_id.lower():
        reason = f"{entry.target} was made from {provenance.source.repo_id}, not from {entry.repo_id}"
        return refuse(entry, reason, PublishError, "Choose another `target`.")
    return None


def exposed(entry: WatchEntry, upstream: Upstream, published: Published) -> Skip | None:
    """What was published for everybody, by an entry or from an upstream that became private since."""
    if published.private is not False or not (entry.private or upstream.private):
        return None
    hint = f"Make it private in its settings on the Hub, or run `awq-bot create-target {entry.target}`."
    return refuse(entry, f"{entry.target} is public, and should be private", PublishError, hint)


def missing_target(entry: WatchEntry) -> Skip:
    """For publishing with a workflow's identity: hours of GPU for what could not be published are not spent."""
    reason = f"{entry.target} is not there, or HF_TOKEN may not see it; a workflow's identity cannot create it"
    return refuse(entry, reason, PublishError, f"Run `awq-bot create-target {entry.target}` first.")


def license_refusal(entry: WatchEntry, upstream: Upstream) -> Skip | None:
    """None where the entry's `licenses` permit what the repo states of itself."""
    license_id = (upstream.license or UNSTATED_LICENSE).lower()
    name = (upstream.license_name or "").lower()
    stated = {license_id, name} - {"", UNSTATED_LICENSE}
    # Anybody may call a licence anything: a name allows nothing beside an id that says something else.
    counting = {license_id, name} if license_id in (UNSTATED_LICENSE, OTHER_LICENSE) else {license_id}
    allow, deny = set(entry.licenses.allow), set(entry.licenses.deny)
    shown = " / ".join(sorted(stated)) or UNSTATED_LICENSE
    if {license_id, name} & deny:
        hint = "Take it off `licenses: deny` if you may redistribute it."
        return refuse(entry, f"licence refused: {shown} is denied", UpstreamError, hint)
    if not stated and UNSTATED_LICENSE not in allow:
        hint = f"If you know that it may be redistributed, {_allowing(UNSTATED_LICENSE)}"
        return refuse(entry, "licence absent: the repo states none", UpstreamError, hint)
    if allow and not counting & allow:
        hint = f"If you may redistribute it, {_allowing(license_id)}"
        return refuse(entry, f"licence refused: {shown} is not allowed", UpstreamError, hint)
    return None


def _allowing(license_id: str) -> str:
    """Under `defaults` it would refuse every other model, for nothing is allowed then but what is named."""
    return f"add `licenses: {{allow: [{license_id}]}}` to this entry, not to `defaults`."


def weights_refusal(entry: WatchEntry, upstream: Upstream, details: Details) -> Skip | None:
    if upstream.file(CONFIG) is None:
        return refuse(entry, "no config.json upstream", UpstreamError, "Is it a transformers model?")
    if details.problem:
        return refuse(entry, details.problem, UpstreamError, f"Look at {entry.repo_id} on the Hub.")
    missing = [path for path in details.weight_files if upstream.file(path) is None]
    if missing:
        reason = f"upload incomplete: {missing[0]} is named in the index and not there"
        return refuse(entry, reason, UpstreamError, "It is looked at again next time.")
    if not details.weight_files:
        return _no_weights(entry, upstream)
    if not any(is_vocabulary(file.path) for file in upstream.files):
        hint = f"It is looked at again next time; tokenizers are read from {', '.join(VOCABULARY)}."
        return refuse(entry, "upload incomplete: no tokenizer", UpstreamError, hint)
    return None


def _no_weights(entry: WatchEntry, upstream: Upstream) -> Skip:
    paths = [file.path for file in upstream.files]
    if other := [path for path in paths if path.endswith(".safetensors")]:
        reason = f"no {SINGLE_WEIGHTS} and no index of shards, only {other[0]}"
        return refuse(entry, reason, UpstreamError, "Is it a transformers model?")
    if any(is_pickle(path) for path in paths):
        hint = "Convert them to safetensors upstream; pickles run code when read."
        return refuse(entry, "pickle-only weights, no safetensors", UpstreamError, hint)
    return refuse(entry, "no weights upstream", UpstreamError, "It is looked at again next time.")


def refusal_of_names(entry: WatchEntry, files: tuple[HubFile, ...]) -> Skip | None:
    if unsafe := [file.path for file in files if not is_safe_path(file.path)]:
        return refuse(entry, f"unsafe file name upstream: {unsafe[0]!r}", UpstreamError)
    return None
