"""The one comment that the bot keeps on a pull request, and brings up to date instead of writing another."""

from __future__ import annotations

from bot.github.client import Forge, answered
from bot.github.environment import redacted
from bot.github.marks import COMMENT_MARK

_LONGEST_BODY = 60_000  # characters; GitHub takes 65,536


def keep_comment(forge: Forge, number: int, text: str) -> None:
    """Raises GitHubFailsError."""
    body = redacted(f"{COMMENT_MARK}\n{text[:_LONGEST_BODY].rstrip()}\n")
    own = forge.login()
    with answered(f"the comment on pull request #{number}"):
        issue = forge.repository.get_issue(number)
        for comment in issue.get_comments():
            if comment.user.login == own and comment.body.startswith(COMMENT_MARK):
                if comment.body != body:
                    comment.edit(body)
                return
        issue.create_comment(body)
