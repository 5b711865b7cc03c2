"""`verify` and `sign` as people and programs call them, and the commands of a card, as they are printed."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from bot.card.model_card import render_card
from bot.localhub import LocalHub
from tests.cli.conftest import Run
from tests.support import factories
from tests.support.release import Release
from tests.support.repos import TARGET, as_bot
from tests.support.signers import Signing, with_key


@pytest.fixture(scope="module")
def ours() -> Signing:
    return with_key()


@pytest.fixture
def signed(with_hub: LocalHub, tmp_path: Path, ours: Signing) -> Release:
    caller = replace(as_bot(with_hub), signing=ours.credential)
    release = Release.of(with_hub, tmp_path, caller=caller, signed_by=ours.signer)
    release.publish()
    return release


def test_verify_prints_one_line_for_each_thing_that_it_looked_at(run: Run, signed: Release, ours: Signing) -> None:
    code, out, _ = run("verify", TARGET, "--revision", signed.job.tag, "--require-signature", str(ours.signer))
    assert code == 0
    words = [line.split() for line in out.splitlines() if line.strip()]
    assert [line[1] for line in words[1:] if line[0] in ("ok", "FAILED", "?")] == [
        "files",
        "tag",
        "log",
        "signature",
        "source",
    ]
    assert "5 files are as published" in out
    assert "as required" in out


def test_verify_names_each_check_for_programs(run: Run, signed: Release, ours: Signing) -> None:
    code, out, _ = run("verify", TARGET, "--json")
    checks = {check["name"]: check for check in json.loads(out)}
    assert code == 0
    assert {"tag", "log", "signature", "config.json", "model.safetensors"} <= checks.keys()
    assert f"--require-signature '{ours.signer}'" in checks["signature"]["fix"]


@pytest.mark.usefixtures("signed")
def test_other_signer_than_the_required_one_ends_with_7(run: Run) -> None:
    code, out, _ = run("verify", TARGET, "--require-signature", f"key:{'0' * 64}")
    assert code == 7
    assert "FAILED" in out
    assert f"not by key:{'0' * 64}" in out


def test_signer_that_nobody_can_be_is_a_mistake_of_the_caller(run: Run) -> None:
    code, _, err = run("verify", TARGET, "--require-signature", "me")
    assert code == 2
    assert "--require-signature 'me' is not an identity" in err


def test_sign_signs_what_is_published(
    run: Run, with_hub: LocalHub, tmp_path: Path, ours: Signing, monkeypatch: pytest.MonkeyPatch
) -> None:
    Release.of(with_hub, tmp_path).publish()
    code, _, err = run("sign", TARGET)
    assert code == 8
    assert "nothing to sign with" in err
    monkeypatch.setenv("AWQ_BOT_SIGNING_KEY", ours.credential.key)
    code, out, _ = run("sign", TARGET)
    assert code == 0
    assert f"{TARGET} is signed at upstream-" in out
    assert run("verify", TARGET, "--require-signature", str(ours.signer))[0] == 0


def test_commands_of_a_card_work_as_they_are_printed(signed: Release, tmp_path: Path, ours: Signing) -> None:
    """Both: ours, and OpenSSF's tool on a download. A flipped byte is refused."""
    made = signed.state.provenance
    assert made is not None
    card = render_card(signed.job, made, chat=False)
    ours_block, stock_block = re.findall(r"```bash\n(awq-bot verify.*?|hf download.*?)```", card, re.DOTALL)
    tools = tmp_path / "bin"
    tools.mkdir()
    for name, module in (("awq-bot", "bot"), ("hf", "huggingface_hub.cli.hf"), ("model_signing", "model_signing")):
        (tools / name).write_text(f'#!/bin/sh\nexec {sys.executable} -m {module} "$@"\n')
        (tools / name).chmod(0o755)
    root = Path(__file__).parents[2]
    kept = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    environment = kept | {
        "PATH": f"{tools}:{os.environ['PATH']}",
        "PYTHONPATH": str(root),
        "HF_ENDPOINT": signed.hub.endpoint,
        "HF_TOKEN": signed.hub.token("reader", role="read"),
    }

    def shell(script: str) -> subprocess.CompletedProcess[str]:
        command = ["bash", "-euo", "pipefail", "-c", script]
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)

    for block in (ours_block, stock_block):
        done = shell(block)
        assert done.returncode == 0, done.stdout + done.stderr
    assert ours.signer.value in stock_block
    weights = bytearray((tmp_path / "model" / "model.safetensors").read_bytes())
    weights[7] ^= 1
    (tmp_path / "model" / "model.safetensors").write_bytes(weights)
    refused = shell(stock_block.partition("--local-dir model\n")[2])
    assert refused.returncode != 0
    assert "model.safetensors" in refused.stdout + refused.stderr


def test_card_without_signed_by_promises_no_signature() -> None:
    card = render_card(factories.job(), factories.provenance(), chat=True)
    assert "awq-bot verify" in card
    assert "sign" not in card
