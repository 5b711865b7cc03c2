"""`card` and `publish` on a job's folder, as a person runs them after a look at the artifact."""

from __future__ import annotations

import json
import re

from tests.support.sandbox import SandboxBefore
from tests.support.small_sandbox import TARGET, assert_published

LOG_LINE = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} \d+ (INFO|DEBUG) \S.*")


def test_a_deleted_card_is_written_again_byte_for_byte(sandbox_before: SandboxBefore) -> None:
    sandbox = sandbox_before("card")
    [job] = sandbox.jobs
    card = job / "card" / "README.md"
    before = card.read_bytes()
    card.unlink()
    result = sandbox.call("card", "--job", str(job))
    assert (result.returncode, result.stdout.strip()) == (0, str(card)), result.stderr
    assert card.read_bytes() == before


def test_a_job_is_published_once_and_logged_with_times(sandbox_before: SandboxBefore) -> None:
    sandbox = sandbox_before()
    [job] = sandbox.jobs
    dry = sandbox.call("publish", "--job", str(job), "--dry-run")
    recorded = [file["path"] for file in json.loads((job / "card.json").read_text())["record"]["files"]]
    assert [line.split()[-1] for line in dry.stdout.splitlines()] == recorded
    assert {"README.md", "config.json", "model.safetensors", "provenance.json"} <= {*recorded}
    assert not [request for request in sandbox.hub.requests if request.method != "GET"]

    first = sandbox.call("--log-file", "bot.log", "publish", "--job", str(job))
    tag = assert_published(sandbox, first)["tag"]
    assert first.stdout.strip() == f"{sandbox.hub.endpoint}/{TARGET} at {tag}"
    head = sandbox.hub.history(TARGET)[0].sha
    lines = (sandbox.root / "bot.log").read_text().splitlines()
    assert lines
    assert [line for line in lines if not LOG_LINE.fullmatch(line)] == []

    again = sandbox.call("publish", "--job", str(job))
    assert (again.returncode, again.stdout.strip().endswith("(was there already)")) == (0, True)
    assert sandbox.hub.history(TARGET)[0].sha == head
