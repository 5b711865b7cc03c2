"""A signed release stays one while upstream changes its small files: refreshed, signed again, and up to date."""

from __future__ import annotations

import json

import pytest

from tests.support.sandbox import SandboxBefore
from tests.support.signers import with_key
from tests.support.small_sandbox import SOURCE, TARGET, assert_published, edit_watchlist

pytestmark = pytest.mark.timeout(900)


@pytest.mark.slow
def test_a_signed_release_is_refreshed_and_signed_again(
    sandbox_before: SandboxBefore, monkeypatch: pytest.MonkeyPatch
) -> None:
    sandbox, by = sandbox_before(), with_key()
    edit_watchlist(sandbox, "  - lab/small\n", f"  - {{repo_id: lab/small, signed_by: '{by.signer}'}}\n")
    required = ("verify", TARGET, "--require-signature", str(by.signer))
    monkeypatch.setenv("AWQ_BOT_SIGNING_KEY", by.credential.key)
    first = assert_published(sandbox, sandbox.call("run"))
    released = sandbox.hub.files(TARGET)

    # The words of the card are upstream's own, and no change; the tokenizer's settings are one.
    sandbox.hub.seed(SOURCE, {"README.md": sandbox.hub.files(SOURCE)["README.md"] + b"More words.\n"})
    assert sandbox.plan()["jobs"] == []
    settings = json.loads(sandbox.hub.files(SOURCE)["tokenizer_config.json"]) | {"padding_side": "left"}
    sandbox.hub.seed(SOURCE, {"tokenizer_config.json": json.dumps(settings)})
    [job] = sandbox.plan()["jobs"]
    assert (job["kind"], job["reason"]) == ("refresh", "small files changed upstream: tokenizer_config.json")

    monkeypatch.delenv("AWQ_BOT_SIGNING_KEY")
    assert "nothing to sign with" in sandbox.call("run").stderr
    assert sandbox.hub.files(TARGET) == released

    monkeypatch.setenv("AWQ_BOT_SIGNING_KEY", by.credential.key)
    second = assert_published(sandbox, sandbox.call("run"))
    refreshed = sandbox.hub.files(TARGET)
    changed = {path for path in released | refreshed if released.get(path) != refreshed.get(path)}
    assert changed == {"tokenizer_config.json", "README.md", "provenance.json", "model.sig"}
    assert json.loads(refreshed["tokenizer_config.json"])["padding_side"] == "left"
    assert second["log"]["previous"]["tag"] == first["tag"] != second["tag"]

    monkeypatch.delenv("AWQ_BOT_SIGNING_KEY")  # whoever verifies has none
    for revision in (first["tag"], second["tag"]):
        verified = sandbox.call(*required, "--revision", revision)
        assert verified.returncode == 0, verified.stdout
        assert f"by {by.signer}, as required" in verified.stdout
    other = sandbox.call("verify", TARGET, "--require-signature", str(with_key().signer))
    assert (other.returncode, "FAILED" in other.stdout) == (7, True)
    plan = sandbox.plan()
    assert plan["jobs"] == []
    assert [skip["reason"] for skip in plan["skipped"]] == ["up to date"]
