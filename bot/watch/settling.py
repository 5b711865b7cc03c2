"""Whether the weights of a new release are as old as its entry wants them, or may still be followed by others."""

from __future__ import annotations

from datetime import UTC, date, datetime, time, timedelta

from bot.checkpoint.repo_files import WEIGHT_INDEX
from bot.errors import UpstreamError
from bot.records import Skip, Upstream
from bot.text import duration
from bot.watch.release import Candidate


def weight_paths(upstream: Upstream) -> tuple[str, ...]:
    return tuple(
        file.path for file in upstream.files if file.path.endswith(".safetensors") or file.path == WEIGHT_INDEX
    )


def may_be_too_young(candidate: Candidate, now: datetime) -> bool:
    """Judged by the day of the repo's latest commit, which is known from the listing."""
    latest = _latest(candidate.upstream)
    return _wait(candidate) > timedelta() and (latest is None or latest + _wait(candidate) > now)


def settling_skip(candidate: Candidate, changed: datetime | str, now: datetime) -> Skip | None:
    """None where the weights are old enough.

    changed: the time of the latest commit of a weight file, or why it is not known.
    """
    if isinstance(changed, str):
        reason = f"when its weights changed is not known: {changed}"
        hint = "Nothing is wrong with the watchlist. The next run checks it again."
        return Skip(entry=candidate.entry, reason=reason, hint=hint, exit_code=UpstreamError.exit_code)
    # The date of a commit that was pushed is that of its author's clock, which may be ahead.
    changed = min(changed, _latest(candidate.upstream) or changed, now)
    ready = changed + _wait(candidate)
    if ready <= now:
        return None
    age, when = duration((now - changed).total_seconds()), f"{ready.astimezone(UTC):%Y-%m-%d %H:%M} UTC"
    reason = f"settling: its weights changed {age} ago, taken after {when}"
    hint = "Remove `settle` from its settings to take it now."
    return Skip(entry=candidate.entry, reason=reason, hint=hint, blocked=True)


def _wait(candidate: Candidate) -> timedelta:
    return timedelta(seconds=candidate.entry.settle_s)


def _latest(upstream: Upstream) -> datetime | None:
    """The end of the day of the repo's latest commit."""
    if upstream.last_modified is None:
        return None
    return datetime.combine(date.fromisoformat(upstream.last_modified), time.max, tzinfo=UTC)
