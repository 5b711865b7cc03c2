"""What a job on a machine of ours could be used for, as `doctor --runner` sees it."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from bot import doctor
from bot.doctor import check_machine
from bot.github.environment import Actions
from bot.github.exposure import check_exposure
from bot.records import Check


def exposure(
    tmp_path: Path, event: dict[str, Any], *, name: str = "schedule", runner: bool = True
) -> dict[str, Check]:
    path = tmp_path / "event.json"
    path.write_text(json.dumps(event))
    actions = Actions(inside=True, repository="someone/awq-bot", event_name=name, event_path=path)
    return {check.name: check for check in check_exposure(actions, runner=runner)}


def isolation(tmp_path: Path, *, runner: bool = True) -> dict[str, Check]:
    return {check.name: check for check in check_machine(None, tmp_path, runner=runner)}


@pytest.mark.parametrize(
    ("event", "status"),
    [
        ({"repository": {"private": True}}, "ok"),
        ({"repository": {"private": False}}, "warning"),
        ({"repository": {}}, "unknown"),
        ({"repository": "?"}, "unknown"),
        ({}, "unknown"),
    ],
)
def test_public_repository_on_a_runner_of_ours_is_warned_of(
    tmp_path: Path, event: dict[str, Any], status: str
) -> None:
    check = exposure(tmp_path, event)["repository"]
    assert check.status == status
    assert ("outside contributors" in check.fix) == (status != "ok")


@pytest.mark.parametrize("name", ["pull_request", "pull_request_target"])
def test_pull_request_on_a_runner_of_ours_is_a_failure(tmp_path: Path, name: str) -> None:
    found = exposure(tmp_path, {"repository": {"private": True}}, name=name)
    assert found["event"].status == "failed"
    assert found["repository"].status == "ok"


def test_hosted_runners_and_peoples_machines_are_not_asked(tmp_path: Path) -> None:
    assert exposure(tmp_path, {"repository": {"private": False}}, name="pull_request", runner=False) == {}
    assert list(check_exposure(Actions(), runner=True)) == []


def test_id_token_on_a_runner_is_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACTIONS_ID_TOKEN_REQUEST_TOKEN", "ghs_secret")
    check = isolation(tmp_path)["id-token"]
    assert check.status == "failed"
    assert "ghs_secret" not in check.found + check.fix
    assert "id-token" not in isolation(tmp_path, runner=False)
    monkeypatch.delenv("ACTIONS_ID_TOKEN_REQUEST_TOKEN")
    assert "id-token" not in isolation(tmp_path)


def test_root_is_warned_of_on_a_runner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert isolation(tmp_path)["account"].status == "warning"
    monkeypatch.setattr(os, "geteuid", lambda: 1001)
    assert isolation(tmp_path)["account"].status == "ok"
    assert "account" not in isolation(tmp_path, runner=False)


def test_docker_within_reach_is_warned_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_DOCKER_SOCKET", tmp_path / "docker.sock")
    assert "docker" not in isolation(tmp_path)
    (tmp_path / "docker.sock").touch()
    assert isolation(tmp_path)["docker"].status == "warning"
