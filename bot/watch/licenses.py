"""Whether the licences that a repo states permit a job, and where its licence link leads nowhere."""

from __future__ import annotations

import json
import re

from bot.errors import UpstreamError
from bot.records import Skip, Upstream, WatchEntry
from bot.records.licenses import OTHER_LICENSE, UNSTATED_LICENSE
from bot.text import one_line
from bot.watch.refusals import refuse

_PLAIN = re.compile(r"[a-z0-9][a-z0-9.+-]*")  # needs no quotes in YAML


def license_refusal(entry: WatchEntry, upstream: Upstream) -> Skip | None:
    """None where the entry's `licenses` permit every licence that the repo states."""
    stated = tuple(dict.fromkeys(item.lower() for item in upstream.licenses)) or (UNSTATED_LICENSE,)
    name = (upstream.license_name or "").lower()
    if denied := {*stated, name} & set(entry.licenses.deny):
        hint = "Remove it from `licenses: deny` if you may redistribute it."
        shown = _shown(denied if len(stated) > 1 else {*stated, name})
        return refuse(entry, f"licence refused: {shown} is denied", UpstreamError, hint)
    refusals = (_one_refused(entry, license_id, name, stated) for license_id in stated)
    return next(filter(None, refusals), None)


def _one_refused(entry: WatchEntry, license_id: str, name: str, stated: tuple[str, ...]) -> Skip | None:
    """stated: all ids, for the message."""
    # `license_name` is free text: it counts only where the id says nothing.
    counting = {license_id, name} if license_id in (UNSTATED_LICENSE, OTHER_LICENSE) else {license_id}
    allow = set(entry.licenses.allow)
    if counting <= {UNSTATED_LICENSE, ""} and UNSTATED_LICENSE not in allow:
        hint = f"If you know that it may be redistributed, {_allowing(stated)}"
        return refuse(entry, "no licence: the repo does not state one", UpstreamError, hint)
    if allow and not counting & allow:
        hint = f"If you may redistribute it, {_allowing(stated)}"
        shown = _shown(counting if len(stated) > 1 else {license_id, name})
        return refuse(entry, f"licence refused: {shown} is not allowed", UpstreamError, hint)
    return None


def link_warnings(upstream: Upstream) -> tuple[str, ...]:
    if not upstream.license_link or upstream.license_url:
        return ()
    link = one_line(upstream.license_link, 80)
    return (f"license_link {link!r} is neither a file of the repo nor an http(s) address: the card has no link",)


def _shown(words: set[str]) -> str:
    return " / ".join(one_line(word) for word in sorted(words - {UNSTATED_LICENSE, ""})) or UNSTATED_LICENSE


def _allowing(license_ids: tuple[str, ...]) -> str:
    """A hint to change this entry: under `defaults` the list would refuse every other licence for all models."""
    plain = (one_line(item) for item in license_ids)
    quoted = ", ".join(item if _PLAIN.fullmatch(item) else json.dumps(item, ensure_ascii=False) for item in plain)
    return f"add `licenses: {{allow: [{quoted}]}}` to this entry, not to `defaults`."
