"""Reads and writes the pull requests that propose models, through GitHub's API, and not in the checkout."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from github import InputGitTreeElement
from github.ContentFile import ContentFile
from github.GithubException import GithubException, UnknownObjectException
from github.GitRef import GitRef
from github.Repository import Repository

from bot.errors import BotError, WatchlistError
from bot.github.client import GitHubClient, GitHubFailsError, answered
from bot.github.issues import body_of
from bot.github.proposals import (
    ProposalPull,
    branch_of,
    open_pull,
    proposed_now,
    pull_mark,
    pull_text,
    pull_title,
    read_pull_mark,
    without_declined,
)
from bot.records import Plan, Proposal
from bot.redaction import redacted
from bot.watch import watchlist as watchlists
from bot.watch.document import with_items

_FORBIDDEN = "not permitted to create or approve pull requests"
_SWITCH_ON = (
    "In the repository's Settings, Actions, General, Workflow permissions: tick `Allow GitHub Actions to create "
    "and approve pull requests`. An organisation may have to allow it first."
)


def proposal_pulls(client: GitHubClient, authors: Iterable[str]) -> tuple[ProposalPull, ...]:
    """The pull requests that this workflow opened for these authors, open and closed, the newest first."""
    owner, own = client.actions.repository.partition("/")[0], client.login()
    found = []
    for author in authors:
        with answered(f"the pull requests for {author}"):
            for pull in client.repository.get_pulls(state="all", head=f"{owner}:{branch_of(author)}"):
                read = read_pull_mark(pull.body or "", number=pull.number, is_open=pull.state == "open")
                if read is not None and pull.user.login == own and read.author == author.lower():
                    found.append(read)
    return tuple(found)


def write_pulls(
    client: GitHubClient, plan: Plan, *, path: Path, endpoint: str
) -> Iterator[tuple[str, tuple[Proposal, ...]]]:
    """Of each pull request that was out of date: what was done, and what it proposes that it did not before.

    Raises the first problem after all were tried.
    """
    problems: list[BotError] = []
    pulls = proposal_pulls(client, plan.proposing)
    current = without_declined(plan, pulls)
    for author in plan.proposing:
        now, pull = proposed_now(current, author), open_pull(pulls, author)
        try:
            if now or pull:
                done = write_pull(client, author, now, pull, path=path, endpoint=endpoint)
                before = pull.repos if pull else ()
                yield done, tuple(item for item in now if item.repo.repo_id.lower() not in before)
        except BotError as error:
            problems.append(error)
    if problems:
        raise problems[0]


def write_pull(
    client: GitHubClient,
    author: str,
    proposals: Sequence[Proposal],
    pull: ProposalPull | None,
    *,
    path: Path,
    endpoint: str,
) -> str:
    """Open the author's pull request, update it, or close it where nothing is left to propose.

    pull: the open one, if any. path: the watchlist in the checkout, whose files the entries name. Returns what was
    done. Raises GitHubFailsError, and WatchlistError where the watchlist cannot be edited.
    """
    repository = client.repository
    if pull is not None and not proposals:
        return _close(repository, pull)
    with answered(f"the watchlist on GitHub for the pull request of {author}"):
        base_branch = repository.default_branch
        tip = repository.get_git_ref(f"heads/{base_branch}").object.sha
        main_text, base = _content(repository, path, tip)
        branch = _branch(repository, author)
        at_head = branch.object.sha if branch else None
    # A branch that only we wrote is made again from the default branch; what others pushed stays.
    edited = pull is not None and at_head is not None and at_head != pull.head
    parent, text = (at_head, _content(repository, path, at_head)[0]) if edited and at_head else (tip, main_text)
    before = set(pull.repos) if edited and pull is not None else set()
    added = [item for item in proposals if item.repo.repo_id.lower() not in before]
    new_text = _edited(text, added, path)
    if new_text == main_text:
        return _close(repository, pull) if pull else f"{author}: all of it is on the watchlist by now"
    with answered(f"the branch of the pull request for {author}"):
        title = pull_title(author, len(proposals))
        head = _commit(repository, parent, path, new_text, title) if new_text != text else parent
        if branch is None:
            repository.create_git_ref(f"refs/heads/{branch_of(author)}", head)
        else:
            # At once, in one step: GitHub closes a pull request whose branch has no commit of its own.
            branch.edit(head, force=True)
    ours = head if not edited else (pull.head if pull else head)
    mark = pull_mark(author, [item.repo.repo_id for item in proposals], base=base, head=ours)
    shown = pull_text(proposals, endpoint=endpoint, run_url=client.actions.run_url, edited=edited)
    return _open_or_update(client, author, pull, title=title, body=body_of(shown, mark), base=base_branch)


def _open_or_update(
    client: GitHubClient, author: str, pull: ProposalPull | None, *, title: str, body: str, base: str
) -> str:
    repository = client.repository
    with answered(f"the pull request for {author}"):
        if pull is not None:
            repository.get_pull(pull.number).edit(title=redacted(title), body=body)
            return f"pull request #{pull.number} is updated"
        try:
            made = repository.create_pull(base, branch_of(author), title=redacted(title), body=body)
        except GithubException as error:
            if error.status != 403 or _FORBIDDEN not in str(error.data):
                raise
            if branch := _branch(repository, author):
                branch.delete()
            message = "GitHub does not let workflows of this repository open pull requests"
            raise GitHubFailsError(message, hint=_SWITCH_ON) from None
        return f"pull request #{made.number} is opened"


def _close(repository: Repository, pull: ProposalPull) -> str:
    """Its hidden line then names no repo: only what a person closes is declined."""
    why = "No rule of the watchlist proposes these models any more."
    with answered(f"closing pull request #{pull.number}"):
        found = repository.get_pull(pull.number)
        found.create_issue_comment(why)
        mark = pull_mark(pull.author, [], base=pull.base, head=pull.head)
        found.edit(body=body_of(why, mark), state="closed")
    return f"pull request #{pull.number} is closed: nothing is left to propose"


def _branch(repository: Repository, author: str) -> GitRef | None:
    found = repository.get_git_ref(f"heads/{branch_of(author)}")
    try:
        found.update()
    except UnknownObjectException:
        return None
    return found


def _content(repository: Repository, path: Path, commit: str) -> tuple[str, str]:
    """The file's text and git id."""
    found = repository.get_contents(path.as_posix(), ref=commit)
    assert isinstance(found, ContentFile)
    return found.decoded_content.decode(), found.sha


def _edited(text: str, proposals: Sequence[Proposal], path: Path) -> str:
    """The watchlist with what is proposed, if it is not there already. Raises WatchlistError if that cannot be."""
    before = watchlists.parse(text.removeprefix("\ufeff"), path).entries
    known = {entry.repo_id.lower() for entry in before}
    new = [item for item in proposals if item.repo.repo_id.lower() not in known]
    if not new:
        return text
    after = with_items(text, [item.item for item in new])
    found = watchlists.parse(after.removeprefix("\ufeff"), path).entries
    expected = [entry.repo_id for entry in before] + [item.repo.repo_id for item in new]
    if [entry.repo_id for entry in found] != expected:
        raise WatchlistError(
            f"{path}: its layout cannot be edited automatically",
            hint="Write `models:` as a list with one model per line.",
        )
    return after


def _commit(repository: Repository, parent: str, path: Path, text: str, message: str) -> str:
    commit = repository.get_git_commit(parent)
    changed = InputGitTreeElement(path.as_posix(), "100644", "blob", content=text)
    tree = repository.create_git_tree([changed], base_tree=commit.tree)
    return repository.create_git_commit(message, tree, [commit]).sha
