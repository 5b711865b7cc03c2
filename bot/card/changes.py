"""Releases -> the changelog of a card: what each changed of the one before it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from bot.records import EarlierRelease

_SHOWN = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class ChangeRow:
    tag: str
    change: str
    source_sha: str
    kl_mean: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Changelog:
    """rows: the newest first. more: releases that are known and not shown, in words."""

    rows: tuple[ChangeRow, ...]
    more: str = ""


def changelog(releases: Sequence[EarlierRelease]) -> Changelog:
    """releases: the newest first."""
    before = [*releases[1:], None]
    rows = tuple(_row(one, earlier) for one, earlier in zip(releases, before, strict=True))
    hidden = len(rows) - _SHOWN
    more = "" if hidden <= 0 else "1 release" if hidden == 1 else f"{hidden} releases"
    return Changelog(rows=rows[:_SHOWN], more=more)


def _row(release: EarlierRelease, before: EarlierRelease | None) -> ChangeRow:
    return ChangeRow(
        tag=release.tag,
        change=_change(release, before),
        source_sha=release.source_sha,
        kl_mean=release.kl_mean,
    )


def _change(release: EarlierRelease, before: EarlierRelease | None) -> str:
    """Nothing is said of the first release that is known: the log may begin after it."""
    if before is None:
        return ""
    changed = (
        ("weights, config or vocabulary of the source", release.source_digest != before.source_digest),
        ("small files of the source", release.refresh_digest != before.refresh_digest),
        ("another recipe, or a newer quantizer", release.recipe_digest != before.recipe_digest),
    )
    return "; ".join(words for words, is_so in changed if is_so) or "the same content again"
