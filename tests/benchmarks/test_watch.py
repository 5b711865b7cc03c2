"""The benchmark of plans, with few repos and no latency."""

from __future__ import annotations

import re
from pathlib import Path

from tests.benchmarks.watch import hourly, last_line, measure, table

README = Path(__file__).with_name("README.md")


def test_plans_of_few_repos_are_measured() -> None:
    runs = measure(6, 2, latency_ms=0)
    assert runs[0].calls == {"lists": 3, "provenances": 6, "sources": 6, "tags": 6}
    assert runs[1].calls == {"lists": 3}
    assert all(run.calls["lists"] == 3 and run.requests <= 3 + 2 for run in hourly(runs))
    assert runs[-2].calls["sources"] == 2
    assert runs[-1].calls == {"provenances": 6, "sources": 6, "tags": 6}
    assert re.fullmatch(r"watch: calls=\d seconds=\d+\.\d rss_mb=\d+ naive_calls=18", last_line(runs))
    assert len(table(runs).splitlines()) == 2 + len(runs)


def test_plans_in_the_readme_reach_the_targets() -> None:
    """Of 1,000 repos of 50 authors, with an answer after 50 ms."""
    rows = re.findall(
        r"^\| nothing new, [^|]+\| (\d+): [^|]+\| ([\d.]+) \| [^|]+\| (\d+) \|$", README.read_text(), re.M
    )
    assert len(rows) == 6
    assert all(int(calls) <= 100 and float(seconds) <= 60 for calls, seconds, _ in rows)
    after = [int(rss_mb) for _, _, rss_mb in rows]
    assert after[-1] - after[0] <= 20
