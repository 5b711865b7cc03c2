"""The run of a GitHub Actions workflow, as provenance.json names it."""

from __future__ import annotations

import re
from dataclasses import dataclass

_REPOSITORY = re.compile(r"[A-Za-z0-9_-]{1,39}/[A-Za-z0-9._-]{1,100}")
_FILE = r"/\.github/workflows/[A-Za-z0-9._-]{1,100}\.ya?ml@refs/[A-Za-z0-9._/+-]{1,200}"
_COMMIT = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
_SERVER = r"https://[a-z0-9.-]{1,100}(:[0-9]{1,5})?"
_MOST = 2**63


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkflowRun:
    """What whoever wrote it says, and nothing shows: a signature of the workflow's identity does.

    workflow_ref: the workflow's file that was started, as OWNER/NAME/PATH@REF. sha: the commit of the repository.
    attempt: counts from 1.
    """

    repository: str
    run_id: int
    attempt: int
    workflow_ref: str
    sha: str
    url: str

    @property
    def problem(self) -> str | None:
        """What GitHub never says, and would be printed or followed."""
        if not _REPOSITORY.fullmatch(self.repository):
            return "repository is none"
        if not (0 < self.run_id < _MOST and 0 < self.attempt < _MOST):
            return "run_id or attempt is no count"
        if not re.fullmatch(re.escape(self.repository) + _FILE, self.workflow_ref):
            return "workflow_ref is no workflow of its repository"
        if not _COMMIT.fullmatch(self.sha):
            return "sha is no commit"
        path = f"/{self.repository}/actions/runs/{self.run_id}/attempts/{self.attempt}"
        return None if re.fullmatch(_SERVER + re.escape(path), self.url) else "url does not lead to the run"

    def __str__(self) -> str:
        return f"{self.workflow_ref} at {self.sha[:8]}: {self.url}"
