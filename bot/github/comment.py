"""The one comment that the bot keeps on a pull request, and brings up to date instead of writing another."""

from __future__ import annotations

from bot.github.client import Forge, answered
from bot.github.marks import COMMENT_MARK, body_of


def keep_comment(forge: Forge, number: int, text: str) -> None:
    """Raises GitHubFailsError."""
    body = body_of(text, COMMENT_MARK)
    own = forge.login()
    with answered(f"the comment on pull request #{number}"):
        issue = forge.repository.get_issue(number)
        for comment in issue.get_comments():
            if comment.user.login == own and comment.body.rstrip().endswith(COMMENT_MARK):
                if comment.body != body:
                    comment.edit(body)
                return
        issue.create_comment(body)
