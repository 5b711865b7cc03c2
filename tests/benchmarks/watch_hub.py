"""A local Hub in its own process, with the models of a watchlist, all of them published.

    python -m tests.benchmarks.watch_hub ROOT WATCHLIST LATENCY_MS

Prints its endpoint and a token for reading, as JSON. A number on stdin makes that many README-only commits, each
to a source of another author. It ends with its stdin.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from bot.localhub import Fault, LocalHub
from bot.records import WatchEntry
from bot.watch.watchlist import read
from tests.support.watched import publish


def main() -> None:
    root, watchlist, latency_ms = Path(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3])
    # Thousands of repos are made, and none of them has to survive a power cut. mypy takes functions for constants.
    os.fsync = _no_fsync  # type: ignore[assignment]
    entries = read(watchlist).entries
    with LocalHub(root) as hub:
        publish(hub, entries)
        hub.faults.add(Fault(times=None, delay_s=latency_ms / 1000))
        _say({"endpoint": hub.endpoint, "token": hub.token("bot", role="read")})
        for line in sys.stdin:
            _commit(hub, entries, int(line), words=line)
            _say({})


def _commit(hub: LocalHub, entries: tuple[WatchEntry, ...], count: int, *, words: str) -> None:
    by_author = {entry.repo_id.partition("/")[0]: entry for entry in entries}
    for entry in list(by_author.values())[:count]:
        card = hub.files(entry.repo_id)["README.md"]
        hub.seed(entry.repo_id, {"README.md": card + words.encode()})


def _no_fsync(descriptor: object) -> None:
    pass


def _say(answer: dict[str, str]) -> None:
    print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
