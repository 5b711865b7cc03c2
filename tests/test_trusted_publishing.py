"""From the watchlist to an open repo without a stored write token, typed as a workflow and a person type it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.github_api.id_token import ISSUER, IdTokens, public_key
from tests.house import PATIENCE_S, House, build_house
from tests.hub.workflows import trust

MODEL, TARGET = "lab/llama-tiny", "quantized/llama-tiny-awq"


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    """One model that is quantized and measured, and not published."""
    house = build_house(tmp_path_factory.mktemp("oidc") / "house", models=("llama-tiny",))
    with house.hub:
        result = house.call("run", "--dry-run")
        assert result.returncode == 0, result.stderr
        yield house


def call(house: House, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """With a read token alone, and what else the environment has."""
    return subprocess.run(
        [sys.executable, "-m", "bot", *words],
        env=house.environment(house.hub.token("bot", role="read")) | environment,
        cwd=house.root,
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE_S,
    )


def test_a_release_needs_no_stored_write_token(house: House) -> None:
    job, log = str(house.jobs[0]), str(house.root / "publish.log")
    house.hub.trust_issuer(ISSUER, public_key())
    with IdTokens() as tokens:
        workflow = tokens.environment | {"HF_OIDC_RESOURCE": TARGET}
        publish = ("--verbose", "--log-file", log, "publish", "--job", job)

        early = call(house, *publish, **workflow)
        assert early.returncode == 7
        assert f"awq-bot create-target {TARGET}" in early.stderr

        created = call(house, "create-target", MODEL, HF_CREATE_TOKEN=house.hub.token())
        assert created.returncode == 0, created.stderr
        assert "created, private" in created.stdout
        assert f"{TARGET}/settings" in created.stdout
        untrusted = call(house, *publish, **workflow)
        assert untrusted.returncode == 7
        assert "not one of its trusted publishers" in untrusted.stderr
        trust(house.hub, TARGET)

        published = call(house, *publish, **workflow)
        assert published.returncode == 0, published.stderr
        assert f"`awq-bot create-target {TARGET}` opens it" in published.stderr
        assert house.hub.repo(TARGET).settings().private

        again = call(house, *publish, **workflow)
        assert (again.returncode, "was there already" in again.stdout) == (0, True)
        opened = call(house, "create-target", "--json", HF_CREATE_TOKEN=house.hub.token())
        assert [item["done"] for item in json.loads(opened.stdout)] == [["made public"]]
        assert "up to date" in call(house, "plan").stdout

        results = (early, created, untrusted, published, again, opened)
        said = "".join(result.stdout + result.stderr for result in results)
        kept = b"".join(
            path.read_bytes() for path in _files(house.root) if path.suffix in (".json", ".jsonl", ".log")
        )
        for secret in ("hf_jwt_", "eyJhbGci", tokens.request_token):
            assert secret not in said
            assert secret.encode() not in kept
        assert "/oauth/token" in kept.decode(errors="replace")


def test_a_run_for_another_target_is_refused_before_anything_is_pulled(house: House) -> None:
    house.hub.seed(MODEL, {"generation_config.json": '{"temperature": 0.1}'})
    with IdTokens() as tokens:
        result = call(house, "run", **tokens.environment, HF_OIDC_RESOURCE="quantized/other-awq")
    assert result.returncode == 7
    assert f"HF_OIDC_RESOURCE is quantized/other-awq, and this job publishes {TARGET}" in result.stderr
    assert tokens.asked == 0


def _files(folder: Path) -> Iterator[Path]:
    """Without what the Hub itself keeps of its accounts."""
    return (path for path in folder.rglob("*") if path.is_file() and path.name != "tokens.json")
