"""The hidden lines by which the bot knows its own issues and comments, and what they say to people."""

from __future__ import annotations

import re

from bot.errors import (
    EnvironmentProblem,
    PublishError,
    QualityGateError,
    QuantizationError,
    UnsupportedModelError,
    UpstreamError,
    WatchlistError,
)
from bot.github.environment import redacted
from bot.records import Attempts
from bot.text import one_line

LABEL = "awq-bot"
COMMENT_MARK = "<!-- awq-bot plan -->"
_LONGEST_TITLE = 120
_LONGEST_TEXT = 60_000  # characters; GitHub takes 65,536

_NAMES = {
    WatchlistError.exit_code: "configuration",
    UpstreamError.exit_code: "upstream",
    UnsupportedModelError.exit_code: "unsupported",
    QuantizationError.exit_code: "quantization",
    QualityGateError.exit_code: "quality gate",
    PublishError.exit_code: "publishing",
    EnvironmentProblem.exit_code: "environment",
}
_MARK = re.compile(
    r"^<!-- awq-bot target=(?P<target>\S+) content=(?P<content>\S+) attempts=(?P<count>\d{1,4})"
    r" next=(?P<next>-|\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ)(?: run=(?P<run>\S+))? -->$",
    re.MULTILINE,
)


def code_name(exit_code: int) -> str:
    return _NAMES.get(exit_code, "unexpected")


def label_of(exit_code: int) -> str:
    return f"{LABEL}: {code_name(exit_code)}"


def title_of(target: str, reason: str) -> str:
    return one_line(f"awq-bot: {target}: {reason}", _LONGEST_TITLE)


def body_of(text: str, hidden: str) -> str:
    """What an issue or a comment holds: a text, cut where GitHub would refuse it, and a hidden line. No token."""
    return redacted(f"{text[:_LONGEST_TEXT].rstrip()}\n\n{hidden}\n")


def mark(attempts: Attempts) -> str:
    run = f" run={attempts.run}" if attempts.run else ""
    return (
        f"<!-- awq-bot target={attempts.target} content={attempts.content} attempts={attempts.count}"
        f" next={attempts.next_try or '-'}{run} -->"
    )


def read_mark(body: str, *, issue: int) -> Attempts | None:
    """None when the text carries no mark, or one that was tampered with."""
    # GitHub ends lines with CR LF where somebody edited the text on its pages.
    found = next(reversed(list(_MARK.finditer(body.replace("\r\n", "\n")))), None)
    if found is None:
        return None
    next_try = None if found["next"] == "-" else found["next"]
    return Attempts(
        target=found["target"],
        content=found["content"],
        count=int(found["count"]),
        next_try=next_try,
        waits_for_person=next_try is None,
        issue=issue,
        run=found["run"] or "",
    )
