"""Progress of long work: bars on a terminal, log lines elsewhere."""

from __future__ import annotations

import logging
import time
from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from bot.cli.terminal import shown
from bot.text import size

_log = logging.getLogger("awq_bot")
_LOG_EVERY_S = 20.0  # progress as log lines, where there is no terminal


class Bars:
    """A records.Progress: bars with amount and ETA on a terminal, log lines every 20 s elsewhere."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bars = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            _Amount(),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._tasks: dict[str, TaskID] = {}
        self._last: dict[str, float] = {}

    def __enter__(self) -> Bars:
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()

    def __call__(self, what: str, done: int, total: int, unit: str) -> None:
        if what not in self._tasks:
            self._tasks[what] = self._bars.add_task(shown(what), total=total, unit=unit)
        self._bars.update(self._tasks[what], completed=done, total=total)
        if done >= total:
            self._bars.remove_task(self._tasks.pop(what))
        self._log(what, done, total, unit)

    def _log(self, what: str, done: int, total: int, unit: str) -> None:
        now = time.monotonic()
        finished = done >= total
        if not finished and now - self._last.setdefault(what, now) < _LOG_EVERY_S:
            return
        self._last[what] = now
        line = f"{what}: {amount(done, total, unit)}"
        _log.info(line)
        # With --verbose the log is on the console already.
        if not self._console.is_terminal and not _log.isEnabledFor(logging.DEBUG):
            self._console.print(shown(line), highlight=False, soft_wrap=True)


class _Amount(ProgressColumn):
    def render(self, task: Task) -> Text:
        unit = str(task.fields.get("unit", ""))
        return Text(amount(int(task.completed), int(task.total or 0), unit))


def amount(done: int, total: int, unit: str) -> str:
    if unit == "B":
        return f"{size(done)} of {size(total)}"
    return f"{done:,} of {total:,} {unit}".rstrip()
