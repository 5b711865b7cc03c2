"""What is sent to a webhook: new releases, failures that are not retried, proposed models. One request per run.

Its URL is a secret, as anyone who knows it can post there, and is never part of a message or an error.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from urllib.parse import urlsplit

import httpx2

from bot.records import Attempts, JobResult, Proposal, Status
from bot.redaction import redacted
from bot.text import escape_markdown, one_line, percent, rounded

WEBHOOK = "AWQ_BOT_NOTIFY_WEBHOOK"
_TIMEOUT_S = 10.0
_MOST_CHARACTERS = 1900  # Discord takes 2,000


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """kind: published, failed or proposed. url: of the model, the issue or the pull requests."""

    kind: str
    repo_id: str
    target: str
    said: str
    url: str


def events_of_results(
    results: Sequence[JobResult], attempts: Sequence[Attempts], *, issues_url: str
) -> tuple[Event, ...]:
    """What was published, and what failed for the last time. attempts: as they were counted with these results."""
    last = {item.target: item.issue for item in attempts if item.waits_for_person}
    found = []
    for result in results:
        if result.status is Status.PUBLISHED and result.publication is not None:
            made = Event(
                kind="published",
                repo_id=result.repo_id,
                target=result.target,
                said=_figures(result),
                url=result.publication.url,
            )
            found.append(made)
        elif result.status is Status.FAILED and result.target in last:
            url = f"{issues_url}/{last[result.target]}"
            said = one_line(redacted(result.message))
            found.append(Event(kind="failed", repo_id=result.repo_id, target=result.target, said=said, url=url))
    return tuple(found)


def events_of_proposals(proposals: Sequence[Proposal], *, pulls_url: str) -> tuple[Event, ...]:
    return tuple(
        Event(
            kind="proposed",
            repo_id=item.repo.repo_id,
            target=item.target,
            said=f"by the rule on line {item.line}",
            url=pulls_url,
        )
        for item in proposals
    )


def _figures(result: JobResult) -> str:
    report = result.report
    if report is None:
        return "small files, without quantizing again"
    return f"KL {rounded(report.kl_mean, 4)}, same most likely token {percent(report.top1_agreement)}"


def notify(events: Sequence[Event]) -> str:
    """Post the events to the webhook, if there is one. Returns what went wrong; empty if all is well.

    Not an error: nothing that was done depends on it.
    """
    url = os.environ.get(WEBHOOK, "").strip()
    if not url or not events:
        return ""
    host = _host(url)
    if not host:
        return f"{WEBHOOK} is no https:// URL, so nothing was sent."
    try:
        answer = httpx2.post(url, json=message(events, host=host), timeout=_TIMEOUT_S)
    except (httpx2.HTTPError, httpx2.InvalidURL) as error:
        return f"The webhook did not answer: {type(error).__name__}."
    return "" if answer.is_success else f"The webhook answered {answer.status_code}."


def _host(url: str) -> str:
    """Empty for a URL that would show a secret to the network."""
    try:
        place = urlsplit(url)
    except ValueError:
        return ""
    host = place.hostname or ""
    return host if place.scheme == "https" or host in ("127.0.0.1", "localhost") else ""


def message(events: Sequence[Event], *, host: str) -> dict[str, object]:
    """In the form of the service at this host: Slack's, Discord's, or plain JSON with a text and the events.

    https://docs.slack.dev/messaging/sending-messages-using-incoming-webhooks
    https://docs.discord.com/developers/resources/webhook#execute-webhook
    """
    if host == "hooks.slack.com":
        text = _text(events, one_line).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
        return {"text": text, "mrkdwn": False}
    if host in ("discord.com", "discordapp.com"):
        return {"content": _text(events, escape_markdown), "allowed_mentions": {"parse": []}}
    return {"text": _text(events, one_line), "events": [asdict(event) for event in events]}


def _text(events: Sequence[Event], escape: Callable[[object, int], str]) -> str:
    """One line for each event. escape: makes text of others harmless where this is shown."""
    words = {"published": "published", "failed": "failed for good", "proposed": "proposed"}
    lines: list[str] = []
    for event in events:
        line = f"{words[event.kind]}: {escape(event.target, 200)}: {escape(event.said, 200)} {event.url}"
        if sum(map(len, lines)) + len(line) > _MOST_CHARACTERS:
            return "\n".join([*lines, f"and {len(events) - len(lines)} more"])
        lines.append(line)
    return "\n".join(lines)
