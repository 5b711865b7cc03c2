"""What the Hub answers when it says no: a status, and the headers that its clients read."""

from __future__ import annotations


class HubError(Exception):
    """An answer that is an error.

    code: `X-Error-Code`, by which clients choose the exception class; may be empty.
    """

    def __init__(
        self, status: int, message: str, *, code: str = "", headers: dict[str, str] | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code
        self.headers = dict(headers or {})


class RepoMovedError(Exception):
    """The repo lives under another name now; answered with a redirect."""

    def __init__(self, repo_type: str, old_id: str, new_id: str) -> None:
        super().__init__(f"{repo_type}s/{old_id} is now {new_id}")
        self.repo_type = repo_type
        self.old_id = old_id
        self.new_id = new_id


def bad_request(message: str) -> HubError:
    return HubError(400, message)


def invalid_token() -> HubError:
    # The client tells "bad token" from "no such repo" by this very text.
    return HubError(401, "Invalid credentials in Authorization header")


def forbidden(message: str) -> HubError:
    return HubError(403, message)


def repo_not_found(*, authenticated: bool) -> HubError:
    """The Hub does not tell an anonymous client whether a private repo exists: it asks for a login."""
    if authenticated:
        return HubError(404, "Repository not found", code="RepoNotFound")
    return HubError(401, "Invalid username or password.", code="RepoNotFound")


def revision_not_found(revision: str) -> HubError:
    return HubError(404, f"Invalid rev id: {revision}", code="RevisionNotFound")


def entry_not_found(message: str = "Entry not found", *, commit: str | None = None) -> HubError:
    """commit: where it was looked for; with it, clients remember that the file is not there."""
    headers = {} if commit is None else {"X-Repo-Commit": commit}
    return HubError(404, message, code="EntryNotFound", headers=headers)


def gated(repo_id: str, *, authenticated: bool) -> HubError:
    if authenticated:
        text = f"Access to {repo_id} is restricted and you are not in the authorized list."
        return HubError(403, text, code="GatedRepo")
    return HubError(401, f"Access to {repo_id} is restricted. You must be authenticated.", code="GatedRepo")


def disabled() -> HubError:
    return HubError(403, "Access to this resource is disabled.")
