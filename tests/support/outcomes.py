"""How a command ended: its exit code, what it said, and what is on the Hub."""

from __future__ import annotations

import json
import subprocess
from typing import Any

from tests.support.sandbox import Sandbox
from tests.support.small_model import SOURCE, TARGET

Result = subprocess.CompletedProcess[str]


def failed(result: Result, code: int, *words: str) -> None:
    """It ended with this code and one error in these words, told what to do next, and showed no stack."""
    errors = [line for line in result.stderr.splitlines() if line.startswith("error:")]
    assert (result.returncode, len(errors)) == (code, 1), result.stderr
    for word in words:
        assert word in errors[0]
    assert "hint:" in result.stderr
    assert "Traceback" not in result.stdout + result.stderr


def refused(sandbox: Sandbox, code: int, *words: str) -> None:
    """A run says in these words why there is no job and what to do, ends with this code, publishes nothing."""
    result = sandbox.call("run")
    errors = [line for line in result.stderr.splitlines() if line.startswith("error:")]
    assert (result.returncode, len(errors)) == (code, 1), result.stderr
    assert "Traceback" not in result.stderr
    assert "refused" in result.stderr
    assert "nothing to do" in result.stdout
    said = " ".join(result.stderr.split())
    for word in words:
        assert word in said
    assert_nothing_published(sandbox)


def mended(sandbox: Sandbox) -> None:
    """Now there is a job for it."""
    [job] = sandbox.plan()["jobs"]
    assert (job["kind"], job["entry"]["repo_id"]) == ("release", SOURCE)


def assert_nothing_published(sandbox: Sandbox) -> None:
    """No target, or one that nobody else can see."""
    for repo in sandbox.hub.store.repos("model"):
        assert repo.namespace != "quantized" or repo.settings().private


def assert_published(sandbox: Sandbox, result: Result) -> dict[str, Any]:
    """Whole and public; its provenance."""
    assert result.returncode == 0, result.stderr
    provenance: dict[str, Any] = json.loads(sandbox.hub.files(TARGET)["provenance.json"])
    refs = sandbox.hub.refs(TARGET)
    assert refs[f"refs/tags/{provenance['tag']}"] == refs["refs/heads/main"]
    assert not sandbox.hub.repo(TARGET).settings().private
    return provenance


def quantized_again(result: Result) -> bool:
    return "quantizing:" in result.stderr
