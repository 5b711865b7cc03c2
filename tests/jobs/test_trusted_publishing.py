"""From the watchlist to an open repo without a stored write token, typed as a workflow and a person type it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.github_api.id_token import ISSUER, IdTokens, public_key
from tests.support.sandbox import PATIENCE_S, Quantized, Sandbox, build_sandbox
from tests.support.workflow_identity import trust

# Whoever asks first quantizes the model, which takes its time on a busy machine.
pytestmark = pytest.mark.timeout(900)

ASSET = "qwen3-tiny"
MODEL, TARGET = f"lab/{ASSET}", f"quantized/{ASSET}-awq"


@pytest.fixture(scope="module")
def sandbox(tmp_path_factory: pytest.TempPathFactory, quantized: Quantized) -> Iterator[Sandbox]:
    """One model that was planned, quantized and measured, and not published."""
    sandbox = build_sandbox(tmp_path_factory.mktemp("oidc") / "sandbox", models=(ASSET,))
    with sandbox.hub:
        _worked(sandbox, "plan", "--out", "plan")
        [job] = json.loads((sandbox.root / "plan" / "plan.json").read_text())["jobs"]
        # As on a runner that was stopped right after measuring.
        shutil.copytree(quantized(ASSET), sandbox.root / "work" / job["job_id"])
        _worked(sandbox, "quantize", "--plan", "plan", "--job-id", job["job_id"])
        yield sandbox


def _worked(sandbox: Sandbox, *words: str) -> None:
    result = sandbox.call("actions", *words)
    assert result.returncode == 0, result.stderr


def call(sandbox: Sandbox, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """With no token but those given."""
    without_token = {name: value for name, value in sandbox.environment().items() if name != "HF_TOKEN"}
    return subprocess.run(
        [sys.executable, "-m", "bot", *words],
        env=without_token | environment,
        cwd=sandbox.root,
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE_S,
    )


def test_a_release_needs_no_stored_write_token(sandbox: Sandbox) -> None:
    job_id, page = sandbox.jobs[0].name, sandbox.root / "page.md"
    options = ("--plan", "plan", "--job-id", job_id, "--artifact", str(sandbox.jobs[0]), "--results", "results")
    publish = ("--verbose", "--log-file", "publish.log", "actions", "publish", *options)
    person = {"HF_TOKEN": sandbox.hub.token("bot", role="read"), "HF_CREATE_TOKEN": sandbox.hub.token()}
    sandbox.hub.trust_issuer(ISSUER, public_key())
    with IdTokens() as tokens:
        workflow = tokens.environment | {"HF_OIDC_RESOURCE": TARGET, "GITHUB_STEP_SUMMARY": str(page)}

        planned = call(sandbox, "actions", "plan", "--oidc", "--out", "unused")
        assert planned.returncode == 0, planned.stderr
        assert json.loads((sandbox.root / "unused" / "plan.json").read_text())["jobs"] == []
        assert f"awq-bot create-target {TARGET}" in planned.stdout

        created = call(sandbox, "create-target", MODEL, **person)
        assert created.returncode == 0, created.stderr
        assert "created, private" in created.stdout
        assert f"{TARGET}/settings" in created.stdout
        untrusted = call(sandbox, *publish, **workflow)
        assert untrusted.returncode == 7
        trust(sandbox.hub, TARGET)

        published = call(sandbox, *publish, **workflow)
        assert published.returncode == 0, published.stderr
        note = f"private until `awq-bot create-target {TARGET}` makes it public"
        assert note in " ".join(published.stdout.split())
        assert note in page.read_text()
        assert sandbox.hub.repo(TARGET).settings().private

        again = call(sandbox, *publish, **workflow)
        assert (again.returncode, "already published" in again.stdout) == (0, True)
        opened = call(sandbox, "create-target", "--json", **person)
        assert [item["done"] for item in json.loads(opened.stdout)] == [["made public"]]
        assert "up to date" in call(sandbox, "plan").stdout

        results = (created, untrusted, published, again, opened)
        said = "".join(_without_masks(result.stdout) + result.stderr for result in results)
        kept = "".join(path.read_text() for path in _texts(sandbox.root))
        for secret in ("hf_jwt_", "eyJhbGci", tokens.request_token):
            assert secret not in said
            assert secret not in kept
        assert "/oauth/token" in kept


def _without_masks(printed: str) -> str:
    """The one line that may name a secret is the one that has GitHub hide it."""
    return "".join(line for line in printed.splitlines(keepends=True) if not line.startswith("::add-mask::"))


def _texts(folder: Path) -> Iterator[Path]:
    """Records, logs and pages; without what the Hub itself keeps of its accounts."""
    kinds = (".json", ".jsonl", ".log", ".md")
    return (path for path in folder.rglob("*") if path.suffix in kinds and path.name != "tokens.json")
