"""Issues and comments that the bot maintains, and the hidden marks by which it finds them again."""

from __future__ import annotations

import re

from github.Issue import Issue

from bot.github.client import GitHubClient, GitHubFailsError, answered
from bot.github.summaries import code_name
from bot.records import Attempts
from bot.redaction import redacted

LABEL = "awq-bot"
DASHBOARD_LABEL = f"{LABEL}: dashboard"
DASHBOARD_TITLE = "awq-bot: dashboard"
DASHBOARD_MARK = "<!-- awq-bot dashboard -->"
COMMENT_MARK = "<!-- awq-bot plan -->"
_LONGEST_TEXT = 60_000  # characters; GitHub takes 65,536

_MARK = re.compile(
    r"^<!-- awq-bot target=(?P<target>\S+) content=(?P<content>\S+) attempts=(?P<count>\d{1,4})"
    r" next=(?P<next>-|\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ)(?: run=(?P<run>\S+))? -->$",
    re.MULTILINE,
)


def label_of(exit_code: int) -> str:
    return f"{LABEL}: {code_name(exit_code)}"


def body_of(text: str, hidden: str) -> str:
    """The body of an issue or comment: a text, cut at GitHub's limit, and a hidden line. Tokens are redacted."""
    return redacted(f"{redacted(text)[:_LONGEST_TEXT].rstrip()}\n\n{hidden}\n")


def mark(attempts: Attempts) -> str:
    run = f" run={attempts.run}" if attempts.run else ""
    return (
        f"<!-- awq-bot target={attempts.target} content={attempts.content} attempts={attempts.count}"
        f" next={attempts.next_try or '-'}{run} -->"
    )


def read_mark(body: str, *, issue: int) -> Attempts | None:
    """None when there is no mark, or one that is not as `mark` writes it."""
    # GitHub ends lines with CR LF after an edit in the browser.
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


class Issues:
    """The open issues that this workflow wrote itself. Marks in other people's issues are ignored."""

    def __init__(self, client: GitHubClient) -> None:
        self._client = client
        self._open: dict[str, list[tuple[Issue, Attempts]]] | None = None
        self._problem: GitHubFailsError | None = None

    def attempts(self) -> tuple[Attempts, ...]:
        """The attempts that the open issues record, one per target. Raises GitHubFailsError."""
        return tuple(found[0][1] for found in self._found().values())

    def about(self, target: str) -> Attempts | None:
        found = self._found().get(target)
        return found[0][1] if found else None

    def open_or_update(self, attempts: Attempts, *, title: str, exit_code: int, text: str) -> int:
        """Returns the number of the target's issue. Adds a comment when there will be no further attempts.

        Raises GitHubFailsError.
        """
        body = body_of(text, mark(attempts))
        labels = [LABEL, label_of(exit_code)]
        existing = self._found().get(attempts.target)
        with answered(f"the issue about {attempts.target}"):
            if not existing:
                return self._client.repository.create_issue(redacted(title), body=body, labels=labels).number
            issue, before = existing[0]
            kept = [item.name for item in issue.labels if not item.name.startswith(LABEL)]
            issue.edit(title=redacted(title), body=body, labels=[*kept, *labels])
            if attempts.waits_for_person and not before.waits_for_person:
                issue.create_comment(
                    "No more attempts are made. Close this issue to retry once the cause is fixed."
                )
            return issue.number

    def close(self, target: str, comment: str) -> None:
        """Close it as completed, with a comment that says why, if it is open. Raises GitHubFailsError."""
        for issue, _ in self._found().get(target, []):
            with answered(f"closing the issue about {target}"):
                issue.create_comment(redacted(comment))
                issue.edit(state="closed", state_reason="completed")

    def _found(self) -> dict[str, list[tuple[Issue, Attempts]]]:
        if self._problem is not None:
            raise self._problem  # GitHub was asked often enough
        if self._open is None:
            try:
                self._open = self._list()
            except GitHubFailsError as error:
                self._problem = error
                raise
        return self._open

    def _list(self) -> dict[str, list[tuple[Issue, Attempts]]]:
        found: dict[str, list[tuple[Issue, Attempts]]] = {}
        with answered("the open issues"):
            listed = list(self._client.repository.get_issues(state="open", labels=[LABEL], direction="asc"))
        own = self._client.login() if listed else ""
        for issue in listed:
            attempts = read_mark(issue.body or "", issue=issue.number)
            if attempts is not None and issue.user.login == own and issue.pull_request is None:
                found.setdefault(attempts.target, []).append((issue, attempts))
        return found


class Dashboard:
    """The newest dashboard that this workflow wrote itself, open or closed, or none."""

    def __init__(self, client: GitHubClient) -> None:
        self._client = client

    def body(self) -> str | None:
        """None without a dashboard, or with a closed one, which is no longer used. Raises GitHubFailsError."""
        found = self._find()
        return found.body or "" if found is not None and found.state == "open" else None

    def write(self, text: str, *, create: bool) -> None:
        """create: one that is not there. A closed one stays as it is. Raises GitHubFailsError."""
        body, found = body_of(text, DASHBOARD_MARK), self._find()
        with answered("the dashboard"):
            if found is None:
                if create:
                    labels = [LABEL, DASHBOARD_LABEL]
                    self._client.repository.create_issue(DASHBOARD_TITLE, body=body, labels=labels)
            elif found.state == "open" and _lines(found.body) != _lines(body):
                found.edit(body=body)

    def _find(self) -> Issue | None:
        with answered("the dashboard"):
            listed = list(self._client.repository.get_issues(state="all", labels=[DASHBOARD_LABEL]))
        own = self._client.login() if listed else ""
        for issue in listed:
            is_ours = issue.user.login == own and issue.pull_request is None
            if is_ours and _lines(issue.body)[-1:] == [DASHBOARD_MARK]:
                return issue
        return None


def _lines(body: str | None) -> list[str]:
    """GitHub ends lines with CR LF after an edit in the browser."""
    return (body or "").rstrip().splitlines()


def create_or_update_comment(client: GitHubClient, number: int, text: str) -> None:
    """Raises GitHubFailsError."""
    body = body_of(text, COMMENT_MARK)
    own = client.login()
    with answered(f"the comment on pull request #{number}"):
        issue = client.repository.get_issue(number)
        for comment in issue.get_comments():
            if comment.user.login == own and comment.body.rstrip().endswith(COMMENT_MARK):
                if comment.body != body:
                    comment.edit(body)
                return
        issue.create_comment(body)
