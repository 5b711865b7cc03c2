"""Jobs that fail: result, annotation and summary say the same, whatever went wrong."""

from __future__ import annotations

from unittest.mock import patch

import pytest

from bot.records import Job, JobResult, from_json
from tests.support.workflow_steps import StepResult
from tests.support.workspace import Workspace


def quantize(workspace: Workspace, job: Job, **more: str) -> StepResult:
    return workspace.runner.step_here("actions", "quantize", "--job-id", job.job_id, **more)


def result_of(workspace: Workspace, job: Job) -> JobResult:
    [path] = (workspace.root / "results").glob(f"result-*-{job.job_id}/{job.job_id}.json")
    return from_json(JobResult, path.read_bytes())


def test_a_missing_upstream_is_reported_everywhere(workspace: Workspace, planned: Job) -> None:
    workspace.hub.disable("lab/Tiny")
    ended = quantize(workspace, planned)
    result = result_of(workspace, planned)
    assert ended.code == result.exit_code == 3
    assert (result.status, result.stage) == ("failed", "quantize")
    assert result.hint
    [(level, where, message)] = ended.annotations
    assert (level, where) == ("error", "title=Quantizing failed%3A upstream")
    assert message == f"{result.message}%0A{result.hint}"
    assert "failed (upstream)" in ended.summary
    assert "**fix**" in ended.summary
    assert ended.summary.count("**cause**") == 1
    assert ended.outputs == {}


def test_an_expired_token_and_an_invalid_setting_leave_a_result_too(workspace: Workspace, planned: Job) -> None:
    token = workspace.hub.add_token("reader-2", role="read")
    workspace.hub.revoke_token(token)
    for variable, said in (
        ({"HF_TOKEN": token}, "the Hub refuses the token"),
        ({"HF_ENDPOINT": "not an address"}, "HF_ENDPOINT is not a URL"),
    ):
        ended = quantize(workspace, planned, **variable)
        assert ended.code == result_of(workspace, planned).exit_code == 8
        assert said in ended.annotations[0][2]
        assert token not in ended.everything
    (workspace.root / "plan" / f"{planned.job_id}.json").write_text('{"job_id": "x"}')
    ended = quantize(workspace, planned)
    assert (ended.code, "cannot be read as a Job" in ended.annotations[0][2]) == (8, True)


def test_an_expired_write_token_fails_publish_only(workspace: Workspace, planned: Job) -> None:
    (workspace.root / "artifact").mkdir()
    (workspace.root / "artifact" / "job.json").write_text("{}")
    words = ("--job-id", planned.job_id, "--artifact", "artifact")
    ended = workspace.runner.step_here("actions", "publish", *words, HF_WRITE_TOKEN="hf_expired_token")
    result = result_of(workspace, planned)
    assert (ended.code, result.stage, result.status) == (7, "publish", "failed")
    assert "hf_expired_token" not in ended.everything


def test_a_bug_leaves_a_result_and_its_trace_is_not_read_as_commands(workspace: Workspace, planned: Job) -> None:
    token = workspace.hub.token("reader", role="read")
    bug = RuntimeError(f"boom {token}\n::set-output name=publish::true")
    with patch("bot.jobs.pipeline.prepare_job", side_effect=bug):
        ended = quantize(workspace, planned)
    result = result_of(workspace, planned)
    assert ended.code == result.exit_code == 1
    assert "unexpected RuntimeError: boom" in result.message
    assert "Traceback" in ended.err
    assert {name for name, _, _ in ended.commands} == {"add-mask", "error"}
    assert ended.outputs == {}
    assert token not in ended.everything + result.message


@pytest.mark.parametrize("job_id", ["../plan/plan", "a/b", "", "$(touch pwned)", "x" * 300, "-rf"])
def test_an_invalid_job_id_is_refused(workspace: Workspace, planned: Job, job_id: str) -> None:
    ended = workspace.runner.step_here("actions", "quantize", f"--job-id={job_id}")
    assert ended.code == 2
    assert not (workspace.root / "results").exists()


def test_the_help_of_every_command_has_an_example(workspace: Workspace) -> None:
    for verb in ("plan", "quantize", "publish", "refresh", "report", "keepalive", "deadman", "comment"):
        ended = workspace.runner.step_here("actions", verb, "--help")
        assert ended.code == 0
        assert f"awq-bot actions {verb}" in " ".join(ended.out.split()), verb
