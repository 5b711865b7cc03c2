"""What a plan asks of the Hub: 1,000 watched repos of 50 authors on a local Hub that answers after 50 ms.

    make bench-watch                   all of it: some minutes, most of them to put the repos there
    make bench-watch BENCH=--quick     60 repos of 6 authors, and no table

Each plan reads the watchlist and what is remembered from disk, as a run does, in one process. Requests and bytes
are those that the Hub logged.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

from bot.hub.client import now
from bot.hub.session import Hub
from bot.jobs import pipeline, watched
from bot.records import to_json
from bot.watch.release import UP_TO_DATE
from bot.watch.watchlist import read

# Thousands of small files, which no disk has to keep.
_IN_MEMORY = Path("/dev/shm")
LATENCY_MS = 50
NO_OPS = 5
COMMITS = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One plan. calls: by kind. received_bytes: of all answers' bodies. rss_mb: of this process, after it.

    plan: sha256 of its JSON.
    """

    name: str
    calls: dict[str, int]
    seconds: float
    received_bytes: int
    rss_mb: float
    plan: str

    @property
    def requests(self) -> int:
        return sum(self.calls.values())


class Bench:
    """A Hub in another process, its watchlist, and a memory."""

    def __init__(self, folder: Path, process: subprocess.Popen[str]) -> None:
        self._folder, self._process = folder, process
        said = self._answer()
        self._hub = Hub(said["endpoint"], said["token"])
        self.memory = folder / "seen.json"
        self._log = folder / "hub" / "requests.jsonl"

    def plan(self, name: str, *, hours: int = 0, memory: bool = True) -> Run:
        """So many hours after the first one. Raises RuntimeError where not all are up to date."""
        before, started = self._log.stat().st_size, time.monotonic()
        watchlist = read(self._folder / "watchlist.yaml")
        with patch.object(watched, "now", lambda: now() + timedelta(hours=hours)):
            plan = pipeline.plan(self._hub, watchlist.entries, memory=self.memory if memory else None)
        seconds = time.monotonic() - started
        if plan.jobs or {skip.reason for skip in plan.skipped} != {UP_TO_DATE}:
            raise RuntimeError(f"{name}: not all models are up to date")
        with self._log.open("rb") as log:
            log.seek(before)
            requests = [json.loads(line) for line in log]
        calls: dict[str, int] = {}
        for request in requests:
            calls[_kind(request["path"])] = calls.get(_kind(request["path"]), 0) + 1
        received = sum(request["bytes_sent"] for request in requests)
        digest = hashlib.sha256(to_json(plan).encode()).hexdigest()
        return Run(name=name, calls=calls, seconds=seconds, received_bytes=received, rss_mb=_rss_mb(), plan=digest)

    def commit(self, count: int) -> None:
        """README-only commits, each to a repo of another author."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{count}\n")
        self._process.stdin.flush()
        self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError("the Hub's process has ended")
        return dict(json.loads(line))


@contextmanager
def bench(models: int, authors: int, latency_ms: float) -> Iterator[Bench]:
    with TemporaryDirectory(prefix="awq-bot-watch-", dir=_IN_MEMORY if _IN_MEMORY.is_dir() else None) as name:
        folder = Path(name)
        names = [f"lab{number % authors:02}/Model-{number:04}" for number in range(models)]
        listed = "".join(f"  - {repo_id}\n" for repo_id in names)
        (folder / "watchlist.yaml").write_text(f"publish_to: quantized\nmodels:\n{listed}")
        command = [sys.executable, "-m", "tests.benchmarks.watch_hub", folder / "hub", folder / "watchlist.yaml"]
        with subprocess.Popen(
            [*map(str, command), str(latency_ms)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as process:
            try:
                yield Bench(folder, process)
            finally:
                assert process.stdin is not None
                process.stdin.close()


def measure(models: int, authors: int, *, latency_ms: float = LATENCY_MS) -> list[Run]:
    """A first plan, one at once after it, hourly ones, one after commits, and one that asks repo by repo."""
    with bench(models, authors, latency_ms) as there:
        runs = [there.plan("first plan"), there.plan("nothing new, at once")]
        runs += [there.plan(f"nothing new, hour {hour}", hours=hour) for hour in range(1, NO_OPS + 1)]
        there.commit(min(COMMITS, authors))
        commits = f"{min(COMMITS, authors)} README-only commits, hour {NO_OPS + 1}"
        runs.append(there.plan(commits, hours=NO_OPS + 1))
        runs.append(there.plan("repo by repo", memory=False))
    if len({run.plan for run in runs}) != 1:
        raise RuntimeError("the plans are not the same")
    return runs


def hourly(runs: list[Run]) -> list[Run]:
    return runs[2 : 2 + NO_OPS]


def last_line(runs: list[Run]) -> str:
    """Of an hour in which nothing is new, the most of everything."""
    calls, seconds, rss_mb = (
        max(getattr(run, name) for run in hourly(runs)) for name in ("requests", "seconds", "rss_mb")
    )
    return f"watch: calls={calls} seconds={seconds:.1f} rss_mb={rss_mb:.0f} naive_calls={runs[-1].requests}"


def table(runs: list[Run]) -> str:
    lines = ["| plan | API calls | seconds | received, MB | RSS after it, MB |", "|---|---|---|---|---|"]
    for run in runs:
        kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(run.calls.items()))
        size = f"{run.received_bytes / 1e6:.2f}"
        lines.append(f"| {run.name} | {run.requests}: {kinds} | {run.seconds:.1f} | {size} | {run.rss_mb:.0f} |")
    return "\n".join(lines) + "\n"


def _kind(path: str) -> str:
    if path == "/api/models":
        return "lists"
    if path.endswith("/refs"):
        return "tags"
    return "sources" if path.startswith("/api/models/") else "provenances"


def _rss_mb() -> float:
    """See https://man7.org/linux/man-pages/man5/proc_pid_statm.5.html"""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="60 repos of 6 authors, and no table in README.md")
    quick = parser.parse_args().quick
    runs = measure(60, 6) if quick else measure(1000, 50)
    print(table(runs))
    if not quick:
        # It imports torch, which would be measured, too.
        from tests.benchmarks.tables import write_table  # noqa: PLC0415

        write_table("bench-watch", table(runs))
    print(last_line(runs))


if __name__ == "__main__":
    main()
