"""What a check of a published card found."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One fact. line: of the file, from 1; 0 where it has none. unknown: found says why it cannot be checked."""

    file: str
    line: int
    what: str
    status: Literal["ok", "wrong", "unknown"]
    found: str
    expected: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class LintResult:
    """tag: of the release that was looked at."""

    repo_id: str
    commit: str
    tag: str
    findings: tuple[Finding, ...]

    @property
    def wrong(self) -> tuple[Finding, ...]:
        return tuple(item for item in self.findings if item.status == "wrong")
