"""An Atom feed of the releases: https://www.rfc-editor.org/rfc/rfc4287"""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from bot.records import ModelStatus, PublishedRelease, StatusReport
from bot.text import percent, render, size

_TEMPLATE: Final = "status_feed.xml.jinja"
_MOST: Final = 50


@dataclass(frozen=True, slots=True)
class _Entry:
    """url: of the release, which is its id, too: a tag never moves."""

    url: str
    title: str
    updated: str
    author: str
    said: str


def feed(report: StatusReport, *, url: str) -> str:
    """The newest releases. url: of the page, or empty where that is not known."""
    entries = sorted(_entries(report), key=lambda entry: (entry.updated, entry.url), reverse=True)[:_MOST]
    return render(
        _TEMPLATE,
        report=report,
        feed_id=f"{url}feed.xml" if url else _id_of(report),
        url=url,
        updated=entries[0].updated if entries else report.made,
        entries=entries,
    )


def _id_of(report: StatusReport) -> str:
    """The same for the same accounts, wherever the page is served."""
    accounts = sorted({model.target.partition("/")[0] for model in report.models})
    return f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_URL, '/'.join([report.endpoint, *accounts]))}"


def _entries(report: StatusReport) -> Iterator[_Entry]:
    for model in report.models:
        for release in model.releases:
            if not release.date:
                continue
            what = "small files updated" if release.kind == "refresh" else "released"
            yield _Entry(
                url=f"{report.endpoint}/{model.target}/tree/{release.tag}",
                title=f"{model.target}: {what}",
                updated=release.date,
                author=model.target.partition("/")[0],
                said=_said(model, release),
            )


def _said(model: ModelStatus, release: PublishedRelease) -> str:
    return (
        f"{release.tag}, from {model.source} at {release.source_sha[:8]}. KL {release.kl_mean:.4f} nats, top-1 "
        f"{percent(release.top1_agreement)}, {release.bits_per_weight:.2f} bits per weight, "
        f"{size(release.size_bytes)}."
    )
