"""`card` and `publish` on a job's folder, as a person runs them after a look at the artifact."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.sandbox import Sandbox
from tests.support.small_sandbox import TARGET

LOG_LINE = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} \d+ (INFO|DEBUG) \S.*")


@pytest.fixture
def sandbox(small_sandbox: Sandbox, tmp_path: Path) -> Iterator[Sandbox]:
    """All stages but publishing are done; its Hub is up."""
    sandbox = small_sandbox.copy_to(tmp_path / "sandbox")
    with sandbox.hub:
        yield sandbox


def test_a_deleted_card_is_written_again_byte_for_byte(sandbox: Sandbox) -> None:
    [job] = sandbox.jobs
    card = job / "card" / "README.md"
    before = card.read_bytes()
    card.unlink()
    (job / "card.json").unlink()
    result = sandbox.call("card", "--job", str(job))
    assert (result.returncode, result.stdout.strip()) == (0, str(card)), result.stderr
    assert card.read_bytes() == before


def test_dry_run_lists_what_would_be_published_and_writes_nothing(sandbox: Sandbox) -> None:
    [job] = sandbox.jobs
    sandbox.hub.clear_requests()
    result = sandbox.call("publish", "--job", str(job), "--dry-run")
    assert result.returncode == 0, result.stderr
    recorded = json.loads((job / "card.json").read_text())["record"]["files"]
    assert [line.split()[-1] for line in result.stdout.splitlines()] == [file["path"] for file in recorded]
    assert {"README.md", "config.json", "model.safetensors", "provenance.json"} <= {
        file["path"] for file in recorded
    }
    assert not sandbox.hub.store.exists(TARGET)
    assert not [request for request in sandbox.hub.requests if request.method != "GET"]


def test_job_is_published_once_and_logged_with_times(sandbox: Sandbox) -> None:
    [job] = sandbox.jobs
    first = sandbox.call("--log-file", "bot.log", "publish", "--job", str(job))
    assert first.returncode == 0, first.stderr
    tag = json.loads((job / "job.json").read_text())["record"]["tag"]
    assert first.stdout.strip() == f"{sandbox.hub.endpoint}/{TARGET} at {tag}"
    assert sandbox.hub.refs(TARGET)[f"refs/tags/{tag}"] == sandbox.hub.refs(TARGET)["refs/heads/main"]
    assert not sandbox.hub.repo(TARGET).settings().private
    head = sandbox.hub.history(TARGET)[0].sha

    lines = (sandbox.root / "bot.log").read_text().splitlines()
    assert lines
    assert [line for line in lines if not LOG_LINE.fullmatch(line)] == []

    again = sandbox.call("publish", "--job", str(job))
    assert again.returncode == 0, again.stderr
    assert again.stdout.strip().endswith("(was there already)")
    assert sandbox.hub.history(TARGET)[0].sha == head
