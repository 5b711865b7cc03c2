"""A plan with `settle`: in how many requests a fresh release is held back, by whose clock, and taken later."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread

import pytest
import stamina

from bot.hub import client
from bot.hub.session import Hub
from bot.hub.sources import read_change_times
from bot.jobs import pipeline
from bot.localhub import Fault, LocalHub
from bot.records import Calibration, Plan, TextSource, Upstream
from tests.support import factories
from tests.support.repos import SOURCE, as_bot, forget_requests, requests, source_files, upstream_of
from tests.support.workspace import WEIGHTS

CALIBRATION = Calibration(samples=16, seq_len=256, sources=(TextSource(builtin="prose"),))
ENTRY = factories.entry(settle_s=7200, calibration=CALIBRATION)


@pytest.fixture
def source(hub: LocalHub) -> Upstream:
    hub.seed(SOURCE, source_files(model__safetensors=WEIGHTS))
    forget_requests(hub)
    return upstream_of(hub, ENTRY)


def plan_after(hub: LocalHub, monkeypatch: pytest.MonkeyPatch, hours: float) -> Plan:
    """By a clock that is so far ahead."""
    monkeypatch.setattr(pipeline, "now", lambda: datetime.now(UTC) + timedelta(hours=hours))
    forget_requests(hub)
    return pipeline.plan(as_bot(hub), [ENTRY])


@pytest.mark.usefixtures("source")
def test_a_fresh_release_waits_and_costs_one_request_more(hub: LocalHub, monkeypatch: pytest.MonkeyPatch) -> None:
    waits = plan_after(hub, monkeypatch, 1)
    [skip] = waits.skipped
    assert skip.reason.startswith("settling: its weights changed 1 h 00 min ago, taken after ")
    assert [item.path for item in requests(hub, "POST", "paths-info")] == [
        f"/api/models/{SOURCE}/paths-info/{upstream_of(hub, ENTRY).sha}"
    ]
    # Nothing of it is read before it is taken.
    assert not requests(hub, "GET", "/resolve/")
    # A commit that changes no weights does not make them younger.
    hub.seed(SOURCE, {"README.md": "---\nlicense: mit\n---\nNew words.\n"})
    assert len(plan_after(hub, monkeypatch, 2.01).jobs) == 1
    assert len(plan_after(hub, monkeypatch, 48).jobs) == 1
    assert not requests(hub, "POST", "paths-info")


def test_the_latest_commit_of_a_weight_file_counts(hub: LocalHub, source: Upstream) -> None:
    hub.seed(SOURCE, {"README.md": "New words."})
    now = upstream_of(hub, ENTRY)
    [before, after, of_readme] = read_change_times(
        as_bot(hub), [(source, ["model.safetensors"]), (now, ["model.safetensors"]), (now, ["README.md"])]
    )
    assert isinstance(of_readme, datetime)
    assert before == after
    assert isinstance(after, datetime)
    assert after < of_readme


@pytest.mark.parametrize(("status", "said"), [(503, "the Hub answers 503"), (403, "the Hub answers 403")])
def test_a_time_that_cannot_be_read_holds_back_one_model(
    hub: LocalHub, source: Upstream, status: int, said: str
) -> None:
    hub.faults.add(Fault(path="paths-info", status=status, times=None))
    with stamina.set_testing(True, attempts=1):
        assert read_change_times(as_bot(hub), [(source, ["model.safetensors"])]) == (said,)
        [skip] = pipeline.plan(as_bot(hub), [ENTRY]).skipped
    assert skip.reason == f"when its weights changed is not known: {said}"


AHEAD = datetime(2031, 5, 6, 7, 8, 9, tzinfo=UTC)


class ClockAhead(BaseHTTPRequestHandler):
    """Answers with the date of another year; the local Hub's server always sends its own."""

    def date_time_string(self, timestamp: float | None = None) -> str:
        return format_datetime(AHEAD, usegmt=True)

    def do_POST(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"[]")

    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        """Nothing on stderr."""


def test_the_hubs_clock_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "_clock", [timedelta()])
    with HTTPServer(("127.0.0.1", 0), ClockAhead) as server:
        Thread(target=server.handle_request).start()
        hub = Hub(f"http://127.0.0.1:{server.server_port}")
        source = factories.upstream()
        assert read_change_times(hub, [(source, ["model.safetensors"])]) == ("no file has a date",)
    assert abs(client.now() - AHEAD) < timedelta(seconds=60)
