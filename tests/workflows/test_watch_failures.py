"""What goes wrong in a watch, and that it stays with the model that it concerns."""

from __future__ import annotations

import pytest

from bot.localhub import Fault
from tests.support.github_api.server import ACTIONS, Issue
from tests.workflows.deployment import Deploy, Deployment, publish_job, quantize_job, target
from tests.workflows.interpreter.repository import RunnerLostError
from tests.workflows.interpreter.runs import Run

PLAN_ALONE = {"plan": "success"}


def lose_runner() -> None:
    raise RunnerLostError


def only_issue(deployment: Deployment) -> Issue:
    [issue] = deployment.api.troubles()
    assert issue.author == ACTIONS
    return issue


def failed(run: Run) -> list[str]:
    return [name for name, result in run.results.items() if result == "failure"]


# --- one model fails, the others are published ---------------------------------------------------------------


def test_one_of_three_fails_and_two_are_published(deploy: Deploy) -> None:
    deployment = deploy("one", "two", "three")
    gone = Fault(path="lab/two/resolve/.*/tokenizer.json", status=404, times=None)
    deployment.act_before(quantize_job("one"), "Check out", lambda: deployment.hub.faults.add(gone))
    run = deployment.watch()
    assert failed(run) == [quantize_job("two")]
    assert [deployment.is_published(name) for name in ("one", "two", "three")] == [True, False, True]
    issue = only_issue(deployment)
    assert issue.title.startswith(f"awq-bot: {target('two')}: ")
    assert issue.labels == ["awq-bot", "awq-bot: upstream"]
    assert "Attempt 1 of 4" in issue.body
    assert any(text.startswith("::error") for text in run.job(quantize_job("two")).annotations)

    waiting = deployment.watch()
    assert waiting.results == PLAN_ALONE
    assert "lab/two" in waiting.job("plan").summary
    assert len(deployment.api.troubles()) == 1


def test_a_failed_quality_gate_publishes_nothing_and_names_the_metric(deploy: Deploy) -> None:
    deployment = deploy("one")
    deployment.write_watchlist("one", gate="{max_kl: 0.000001, min_top1: 0.6, max_perplexity_ratio: 1.4}")
    deployment.prepare()
    run = deployment.watch()
    assert failed(run) == [quantize_job("one")]
    assert not deployment.is_published("one")
    assert only_issue(deployment).labels == ["awq-bot", "awq-bot: quality gate"]
    assert "KL" in only_issue(deployment).body
    assert "KL" in run.job(quantize_job("one")).summary


def test_a_lost_runner_is_reported(deploy: Deploy) -> None:
    deployment = deploy("one", prepared=False)
    deployment.act_before(quantize_job("one"), "Quantize / Run the job", lose_runner)
    run = deployment.watch()
    assert run.results == {"plan": "success", quantize_job("one"): "failure", "report": "success"}
    assert [name for name in run.artifacts.names() if name.startswith("result")] == []
    assert "the runner was lost" in only_issue(deployment).body
    assert only_issue(deployment).labels == ["awq-bot", "awq-bot: environment"]
    assert "the runner was lost" in run.job("report").summary


def test_a_runner_without_a_gpu_fails_before_anything_is_pulled(deploy: Deploy) -> None:
    deployment = deploy("one", prepared=False)
    deployment.repository.gpu_machine["PATH"] = deployment.repository.machine["PATH"]
    run = deployment.watch()
    assert [step.name for step in run.job(quantize_job("one")).steps] == ["Check this machine"]
    assert "Install the NVIDIA driver" in run.job(quantize_job("one")).steps[0].log
    assert failed(run) == [quantize_job("one")]
    assert not deployment.volume.exists()


# --- two runs at once ----------------------------------------------------------------------------------------


def test_a_target_that_another_run_works_on_is_skipped(deploy: Deploy) -> None:
    deployment = deploy("one")
    others: list[Run] = []
    deployment.act_before(quantize_job("one"), "Quantize / Run the job", lambda: others.append(deployment.watch()))
    run = deployment.watch()
    assert others[0].results == PLAN_ALONE
    assert "lab/one" in others[0].job("plan").summary
    assert failed(run) == []
    assert deployment.is_published("one")


@pytest.mark.slow
def test_a_job_that_another_run_finished_succeeds_and_publishes_nothing(deploy: Deploy) -> None:
    deployment = deploy("one")
    others: list[Run] = []
    deployment.act_before(target("one"), "", lambda: others.append(deployment.watch()))
    run = deployment.watch()
    assert publish_job("one") in others[0].results
    assert run.results == {"plan": "success", quantize_job("one"): "success", "report": "success"}
    assert len(deployment.hub.history(target("one"))) == 2  # its creation, and one release
    assert not deployment.api.troubles()


# --- the runner is not trusted -------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_runner_that_replaces_the_plan_publishes_nothing(deploy: Deploy) -> None:
    deployment = deploy("one")
    runs: list[Run] = []
    deployment.repository.started = runs.append

    def tamper() -> None:
        plan = runs[0].artifacts.named("plan").folder
        for path in plan.glob("*.json"):
            path.write_text(path.read_text().replace(target("one"), "quantized/stolen-awq"))
        runs[0].artifacts.upload("plan", plan)

    deployment.act_before(quantize_job("one"), "Quantize / Upload the result", tamper)
    run = deployment.watch()
    assert publish_job("one") in failed(run)
    assert not deployment.is_published("one")
    assert not deployment.is_published("stolen")


# --- what people type ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "typed", ['lab/one"; touch pwned; "', "$(touch pwned)", "`touch pwned`", "a'b\n touch pwned"]
)
def test_shell_syntax_in_an_input_is_not_executed(deploy: Deploy, typed: str) -> None:
    deployment = deploy("one", prepared=False)
    run = deployment.watch("workflow_dispatch", inputs={"only": typed})
    assert run.results == {"plan": "failure"}
    assert run.job("plan").steps[0].exit_code == 2
    assert not list(deployment.repository.root.rglob("*pwned*"))


def test_an_expired_token_is_annotated_and_starts_no_job(deploy: Deploy) -> None:
    deployment = deploy("one", prepared=False)
    deployment.hub.revoke_token(deployment.repository.secrets["HF_TOKEN"])
    run = deployment.watch()
    assert run.results == {"plan": "failure"}
    [annotation] = run.job("plan").annotations
    assert "refuses the token" in annotation
