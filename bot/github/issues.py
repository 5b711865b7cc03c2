"""Issues for what needs a person: one per target, opened once, updated with every attempt, closed by success."""

from __future__ import annotations

from github.Issue import Issue

from bot.github.client import Forge, GitHubFailsError, answered
from bot.github.environment import redacted
from bot.github.marks import LABEL, body_of, label_of, mark, read_mark
from bot.records import Attempts


class Issues:
    """The open ones that this workflow wrote itself. Whoever else writes such a text is not believed."""

    def __init__(self, forge: Forge) -> None:
        self._forge = forge
        self._open: dict[str, list[tuple[Issue, Attempts]]] | None = None
        self._problem: GitHubFailsError | None = None

    def attempts(self) -> tuple[Attempts, ...]:
        """What the open issues say, one per target. Raises GitHubFailsError."""
        return tuple(found[0][1] for found in self._found().values())

    def about(self, target: str) -> Attempts | None:
        found = self._found().get(target)
        return found[0][1] if found else None

    def tell(self, attempts: Attempts, *, title: str, exit_code: int, text: str) -> int:
        """Open the target's issue or bring it up to date; its number. A comment says when nothing more is tried.

        Raises GitHubFailsError.
        """
        body = body_of(text, mark(attempts))
        labels = [LABEL, label_of(exit_code)]
        there = self._found().get(attempts.target)
        with answered(f"the issue about {attempts.target}"):
            if not there:
                return self._forge.repository.create_issue(redacted(title), body=body, labels=labels).number
            issue, before = there[0]
            kept = [item.name for item in issue.labels if not item.name.startswith(LABEL)]
            issue.edit(title=redacted(title), body=body, labels=[*kept, *labels])
            if attempts.waits_for_person and not before.waits_for_person:
                issue.create_comment("Nothing more is tried. Close this issue once the cause is gone, and it is.")
            return issue.number

    def close(self, target: str, comment: str) -> None:
        """Because it went well, and says how. Does nothing where none is open. Raises GitHubFailsError."""
        for issue, _ in self._found().get(target, []):
            with answered(f"closing the issue about {target}"):
                issue.create_comment(redacted(comment))
                issue.edit(state="closed", state_reason="completed")

    def _found(self) -> dict[str, list[tuple[Issue, Attempts]]]:
        if self._problem is not None:
            raise self._problem  # it was asked long enough
        if self._open is None:
            try:
                self._open = self._look()
            except GitHubFailsError as error:
                self._problem = error
                raise
        return self._open

    def _look(self) -> dict[str, list[tuple[Issue, Attempts]]]:
        found: dict[str, list[tuple[Issue, Attempts]]] = {}
        with answered("the open issues"):
            listed = list(self._forge.repository.get_issues(state="open", labels=[LABEL], direction="asc"))
        own = self._forge.login() if listed else ""
        for issue in listed:
            attempts = read_mark(issue.body or "", issue=issue.number)
            if attempts is not None and issue.user.login == own and issue.pull_request is None:
                found.setdefault(attempts.target, []).append((issue, attempts))
        return found
