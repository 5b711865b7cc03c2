"""Whether a machine is fit for its jobs, and what one there could be used for, as `doctor` sees it."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from bot.cli.doctor import check_machine, own_code_notice
from bot.github import runner_safety
from bot.github.environment import Actions
from bot.github.runner_safety import check_exposure, check_isolation
from bot.jobs.isolation import ESSENTIAL, check_children, in_force
from bot.records import Check, Engine, EvaluationTask
from bot.watch.release import make_plan
from tests.cli.conftest import L4, only_nvidia_smi
from tests.support import factories
from tests.support.engines import ENGINE, stand_in_environment


def exposure(
    tmp_path: Path, event: dict[str, Any], *, name: str = "schedule", runner: bool = True
) -> dict[str, Check]:
    path = tmp_path / "event.json"
    path.write_text(json.dumps(event))
    actions = Actions(inside=True, repository="someone/awq-bot", event_name=name, event_path=path)
    return {check.name: check for check in check_exposure(actions, runner=runner)}


def test_lm_eval_is_looked_for_where_a_planned_model_has_tasks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def found(*tasks: EvaluationTask) -> list[Check]:
        planned = make_plan([factories.job(factories.entry(tasks=tasks))])
        return [check for check in check_machine(planned, tmp_path, runner=False) if check.name == "lm-eval"]

    task = EvaluationTask(name="arc_easy", dataset="allenai/ai2_arc", revision=factories.SHA)
    assert found() == []
    # What the import system takes for a module that cannot be imported.
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    [missing] = found(task)
    assert missing.status == "failed"
    assert "pip install -c constraints.txt" in missing.fix


def test_engines_of_planned_models_are_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")

    def found() -> dict[str, str]:
        asked = factories.entry(serve=(ENGINE, Engine(name="vllm", version="0.32")))
        checks = check_machine(make_plan([factories.job(asked)]), tmp_path, runner=False)
        return {check.name: check.status for check in checks if check.name.startswith("engine")}

    assert found() == {"engine gptqmodel 7.6.0": "warning", "engine vllm 0.32": "failed"}
    stand_in_environment()
    assert found() == {"engine gptqmodel 7.6.0": "ok", "engine vllm 0.32": "failed"}


def isolation(name: str) -> Check | None:
    return next((check for check in check_isolation() if check.name == name), None)


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
def test_a_public_repository_on_a_self_hosted_runner_is_a_warning(
    tmp_path: Path, event: dict[str, Any], status: str
) -> None:
    check = exposure(tmp_path, event)["repository"]
    assert check.status == status
    assert ("outside contributors" in check.fix) == (status != "ok")


@pytest.mark.parametrize("name", ["pull_request", "pull_request_target"])
def test_a_pull_request_on_a_self_hosted_runner_is_a_failure(tmp_path: Path, name: str) -> None:
    found = exposure(tmp_path, {"repository": {"private": True}}, name=name)
    assert found["event"].status == "failed"
    assert found["repository"].status == "ok"


def test_hosted_runners_and_other_machines_are_not_checked(tmp_path: Path) -> None:
    assert exposure(tmp_path, {"repository": {"private": False}}, name="pull_request", runner=False) == {}
    assert list(check_exposure(Actions(), runner=True)) == []


def test_id_token_on_a_runner_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACTIONS_ID_TOKEN_REQUEST_TOKEN", "ghs_secret")
    check = isolation("id-token")
    assert check is not None
    assert check.status == "failed"
    assert "ghs_secret" not in check.found + check.fix
    monkeypatch.delenv("ACTIONS_ID_TOKEN_REQUEST_TOKEN")
    assert isolation("id-token") is None


@pytest.mark.parametrize(("account", "socket", "warned"), [(0, True, ["account", "docker"]), (1001, False, [])])
def test_root_and_access_to_docker_on_a_runner_are_warnings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, account: int, socket: bool, warned: list[str]
) -> None:
    monkeypatch.setattr(runner_safety, "_DOCKER_SOCKET", tmp_path / "docker.sock")
    monkeypatch.setattr(os, "geteuid", lambda: account)
    if socket:
        (tmp_path / "docker.sock").touch()
    assert [check.name for check in check_isolation() if check.status == "warning"] == warned
    assert isolation("account") is not None


FOUND = "NVIDIA L4, 24.2 GB, driver 570.86.15"


@pytest.mark.parametrize(
    ("answer", "needs_gib", "runner", "status", "found"),
    [
        (L4, 16, True, "ok", FOUND),
        (L4, 16, False, "ok", FOUND),
        (L4, 40, True, "failed", FOUND),
        (L4, 40, False, "failed", FOUND),
        ("No devices were found", 16, True, "failed", "none"),
        (None, 16, True, "failed", "none"),
        (None, 16, False, "warning", "none"),
    ],
)
def test_the_gpu_is_compared_with_the_largest_job(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    answer: str | None,
    needs_gib: int,
    runner: bool,
    status: str,
    found: str,
) -> None:
    only_nvidia_smi(tmp_path / "tools", monkeypatch, answer)
    jobs = [factories.job(estimate=factories.needs(vram_bytes=size * 2**30)) for size in (2, needs_gib)]
    plan = make_plan(jobs, max_jobs=2)
    check = {check.name: check for check in check_machine(plan, tmp_path, runner=runner)}["GPU"]
    assert (check.status, check.found) == (status, found)
    assert ("needs 42.9 GB" in check.fix) == (needs_gib == 40)
    assert (check.fix == "") == (status == "ok")


@pytest.mark.parametrize(
    ("pins", "status", "found"),
    [
        (
            ["pytest=={pytest}; extra == 'quantize'", "rich>=1", "lm_eval==0.1; extra == 'tasks'"],
            "ok",
            "1 packages as pinned",
        ),
        (["pytest==0.1"], "failed", "pytest {pytest} (pinned 0.1)"),
        (["no-such-package==1.0"], "failed", "no-such-package missing (pinned 1.0)"),
    ],
)
def test_versions_are_compared_with_the_pins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pins: list[str], status: str, found: str
) -> None:
    here = metadata.version("pytest")
    monkeypatch.setattr(metadata, "requires", lambda _: [pin.format(pytest=here) for pin in pins])
    check = {check.name: check for check in check_machine(None, tmp_path, runner=False)}["versions"]
    assert (check.status, check.found) == (status, found.format(pytest=here))


@pytest.fixture
def not_isolated(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As on a machine that can enforce nothing."""
    monkeypatch.setenv("AWQ_BOT_ISOLATION", "off")
    in_force.cache_clear()
    yield
    in_force.cache_clear()


@pytest.mark.usefixtures("not_isolated")
def test_a_run_says_whose_code_would_not_be_isolated() -> None:
    trusted = factories.job(factories.entry(repo_id="lab/own-code", trust_remote_code=True))
    notice = own_code_notice([factories.job(), trusted])
    assert "code of lab/own-code will run" in notice
    assert "--require-isolation" in notice
    assert own_code_notice([factories.job()]) == ""


@pytest.mark.usefixtures("not_isolated")
@pytest.mark.parametrize("required", [True, False])
def test_without_an_essential_protection_a_check_fails_where_it_is_required(required: bool) -> None:
    failed = {check.name for check in check_children(required=required) if check.status == "failed"}
    assert failed == ({f"isolation: {name}" for name in ESSENTIAL} if required else set())
