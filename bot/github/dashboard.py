"""The dashboard: one issue with every model of the watchlist, and the boxes that people tick in it.

Only the boxes are read back. Everything else in its body is written again by the next run.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum

from bot.github.attempts import state_of
from bot.records import Attempts, Job, ModelState, Plan, Skip, WatchEntry, Watchlist
from bot.text import render
from bot.watch.release import hold_skip

HELD = "ticked on the dashboard"
# GitHub takes 65,536 characters; the rest is for the hidden line, and for what escaping may add.
MOST_CHARACTERS = 60_000
_FIRST = 1_000_000  # more than any priority that a watchlist can have


class Action(StrEnum):
    """What a box asks for."""

    RETRY = "retry"  # a failed job, without waiting for its next attempt
    NOW = "now"  # before all others, and without settling
    HOLD = "hold"  # no job, as long as it is ticked


_BOX = re.compile(
    r"^ *- \[(?P<tick>[ xX])\] <!-- (?P<action>retry|now|hold) (?P<target>[\w.-]+/[\w.-]+) -->",
    re.MULTILINE | re.ASCII,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ticks:
    """The targets whose boxes are ticked."""

    retry: frozenset[str] = frozenset()
    now: frozenset[str] = frozenset()
    hold: frozenset[str] = frozenset()

    def of(self, action: Action) -> frozenset[str]:
        return {Action.RETRY: self.retry, Action.NOW: self.now, Action.HOLD: self.hold}[action]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Row:
    """One model. issue: the number of that about its failure. boxes: each action, and whether it is ticked."""

    repo_id: str
    target: str
    said: str
    hint: str = ""
    issue: int | None = None
    boxes: tuple[tuple[Action, bool], ...] = ()


@dataclass(slots=True)
class _Rows:
    """By section, as the template shows them."""

    held: list[_Row] = field(default_factory=list)
    person: list[_Row] = field(default_factory=list)
    waiting: list[_Row] = field(default_factory=list)
    running: list[_Row] = field(default_factory=list)
    published: list[str] = field(default_factory=list)


# --- reading ------------------------------------------------------------------------------------------------


def read_ticks(body: str) -> Ticks:
    """The ticked boxes of a dashboard's body, whoever ticked them: only who can write may edit it."""
    ticked: dict[str, set[str]] = {action: set() for action in Action}
    # GitHub ends lines with CR LF after an edit in the browser.
    for box in _BOX.finditer(body.replace("\r\n", "\n")):
        if box["tick"] != " ":
            ticked[box["action"]].add(box["target"])
    return Ticks(**{action: frozenset(targets) for action, targets in ticked.items()})


def with_ticks(watchlist: Watchlist, ticks: Ticks) -> Watchlist:
    """The watchlist with models on hold, and without the wait of those that are wanted now."""
    entries = tuple(
        replace(
            entry,
            hold=entry.hold or (HELD if entry.target in ticks.hold else None),
            settle_s=0 if entry.target in ticks.now else entry.settle_s,
        )
        for entry in watchlist.entries
    )
    return replace(watchlist, entries=entries)


def ticked_plan(plan: Plan, ticks: Ticks) -> Plan:
    """The plan with what is wanted now first, and without jobs on hold, which rules may have found."""
    held = [job for job in (*plan.jobs, *plan.deferred) if job.entry.target in ticks.hold]
    skipped = (hold_skip(replace(job.entry, hold=HELD)) for job in held)
    return replace(
        plan,
        jobs=tuple(_urgent(job, ticks) for job in plan.jobs if job not in held),
        deferred=tuple(_urgent(job, ticks) for job in plan.deferred if job not in held),
        skipped=(*plan.skipped, *skipped),
    )


def _urgent(job: Job, ticks: Ticks) -> Job:
    return replace(job, entry=replace(job.entry, priority=_FIRST)) if job.entry.target in ticks.now else job


def not_retried(attempts: Sequence[Attempts] | None, ticks: Ticks) -> tuple[Attempts, ...] | None:
    """The earlier failures that are still waited for."""
    if attempts is None:
        return None
    return tuple(item for item in attempts if item.target not in ticks.retry | ticks.now)


# --- writing ------------------------------------------------------------------------------------------------


def dashboard_text(
    plan: Plan,
    ticks: Ticks,
    attempts: Sequence[Attempts],
    *,
    endpoint: str,
    issues_url: str,
    runs_url: str,
) -> str | None:
    """The dashboard of a plan of the full watchlist; None where not even what is on hold fits into an issue.

    ticks: the boxes as they are now. runs_url: the page of the workflow's runs, whose summaries show everything.
    """
    rows = _rows(plan, ticks, {item.target: item for item in attempts})

    def text(most: int) -> str:
        return render(
            "dashboard.md.jinja",
            rows=rows,
            proposals=plan.proposals,
            most=most,
            endpoint=endpoint,
            issues_url=issues_url,
            runs_url=runs_url,
        )

    sections: list[Sequence[object]] = [rows.person, rows.waiting, rows.running, rows.published, plan.proposals]
    longest = max(len(section) for section in sections)
    if len(text(0)) > MOST_CHARACTERS:
        return None
    # The most rows per section that fit.
    fits, beyond = 0, longest + 1
    while beyond - fits > 1:
        middle = (fits + beyond) // 2
        fits, beyond = (middle, beyond) if len(text(middle)) <= MOST_CHARACTERS else (fits, middle)
    return text(fits)


def _rows(plan: Plan, ticks: Ticks, attempts: Mapping[str, Attempts]) -> _Rows:
    rows = _Rows()
    for skip in plan.skipped:
        _add_skip(rows, skip, ticks, attempts.get(skip.entry.target))
    for job in plan.deferred:
        said = f"{job.reason}, over the limit of concurrent jobs"
        rows.waiting.append(_row(job.entry, said, ticks, Action.NOW, Action.HOLD))
    for job in plan.jobs:
        rows.running.append(_row(job.entry, job.reason, ticks))
    return rows


def _add_skip(rows: _Rows, skip: Skip, ticks: Ticks, tried: Attempts | None) -> None:
    entry, state = skip.entry, state_of(skip)
    if state is ModelState.PUBLISHED:
        rows.published.append(entry.target)
    elif state is ModelState.HELD:
        # What the watchlist holds is changed there.
        unheld = (Action.HOLD,) if entry.hold == HELD else ()
        rows.held.append(_row(entry, skip.reason, ticks, *unheld))
    elif tried is not None:
        row = _row(entry, skip.reason, ticks, Action.RETRY, Action.HOLD, issue=tried.issue)
        (rows.person if tried.waits_for_person else rows.waiting).append(row)
    elif state is ModelState.REFUSED:
        rows.person.append(_row(entry, skip.reason, ticks, Action.HOLD, hint=skip.hint))
    else:
        boxes = (Action.NOW, Action.HOLD) if entry.settle_s else (Action.HOLD,)
        rows.waiting.append(_row(entry, skip.reason, ticks, *boxes, hint=skip.hint))


def _row(
    entry: WatchEntry, said: str, ticks: Ticks, *boxes: Action, hint: str = "", issue: int | None = None
) -> _Row:
    return _Row(
        repo_id=entry.repo_id,
        target=entry.target,
        said=said,
        hint=hint,
        issue=issue,
        boxes=tuple((action, entry.target in ticks.of(action)) for action in boxes),
    )
