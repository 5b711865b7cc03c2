"""What goes wrong in a watch, and that it stays with the model that it concerns."""

from __future__ import annotations

import json

import pytest

from bot.localhub import Fault
from tests.support.github_api.server import ACTIONS, Issue
from tests.workflows.deployment import Deploy, Deployment, at, leg, target
from tests.workflows.jobs import RunnerLostError
from tests.workflows.runs import Run

# Quantizing for once takes its time on a busy machine.
pytestmark = pytest.mark.timeout(900)

PLAN_ALONE = {"plan": "success"}


def lose_runner() -> None:
    raise RunnerLostError


class StoppedError(Exception):
    """A test has seen enough."""


def stop() -> None:
    raise StoppedError


def only_issue(here: Deployment) -> Issue:
    [issue] = here.api.issues.values()
    assert issue.author == ACTIONS
    return issue


def failed(run: Run) -> list[str]:
    return [name for name, result in run.results.items() if result == "failure"]


# --- one model fails, the others do not care -----------------------------------------------------------------


def test_one_of_three_fails_and_two_are_published(deploy: Deploy) -> None:
    here = deploy("one", "two", "three")
    gone = Fault(path="lab/two/resolve/.*/tokenizer.json", status=404, times=None)
    here.repository.before_step = at(leg("quantize", "one"), "Check out", lambda: here.hub.faults.add(gone))
    run = here.watch()
    assert failed(run) == [leg("quantize", "two")]
    assert [here.is_published(name) for name in ("one", "two", "three")] == [True, False, True]
    issue = only_issue(here)
    assert issue.title.startswith(f"awq-bot: {target('two')}: ")
    assert issue.labels == ["awq-bot", "awq-bot: upstream"]
    assert "Attempt 1 of 4" in issue.body
    assert any(text.startswith("::error") for text in run.job(leg("quantize", "two")).annotations)

    waiting = here.watch()
    assert waiting.results == PLAN_ALONE
    assert "lab/two" in waiting.job("plan").summary
    assert len(here.api.issues) == 1


@pytest.mark.slow
def test_closing_an_issue_means_try_again(deploy: Deploy) -> None:
    here = deploy("two")
    gone = Fault(path="lab/two/resolve/.*/tokenizer.json", status=404, times=None)
    here.repository.before_step = at(leg("quantize", "two"), "Check out", lambda: here.hub.faults.add(gone))
    here.watch()
    here.hub.faults.clear()
    assert here.watch().results == PLAN_ALONE
    only_issue(here).state = "closed"
    again = here.watch()
    assert again.results == {
        "plan": "success",
        leg("quantize", "two"): "success",
        leg("publish", "two"): "success",
        "report": "success",
    }
    assert here.is_published("two")


def test_a_missed_gate_publishes_nothing_and_says_which_figure(deploy: Deploy) -> None:
    here = deploy("one")
    here.write_watchlist("one", gate="  gate: {max_kl: 0.000001, min_top1: 0.6, max_perplexity_ratio: 1.4}")
    here.prepare()
    run = here.watch()
    assert failed(run) == [leg("quantize", "one")]
    assert not here.is_published("one")
    assert only_issue(here).labels == ["awq-bot", "awq-bot: quality gate"]
    assert "KL" in only_issue(here).body
    assert "KL" in run.job(leg("quantize", "one")).summary


def test_a_runner_that_dies_is_found_out_by_the_report(deploy: Deploy) -> None:
    here = deploy("one", prepared=False)
    here.repository.before_step = at(leg("quantize", "one"), "Quantize / Run the job", lose_runner)
    run = here.watch()
    assert run.results == {"plan": "success", leg("quantize", "one"): "failure", "report": "success"}
    assert [name for name in run.artifacts.names() if name.startswith("result")] == []
    assert "the runner was lost" in only_issue(here).body
    assert only_issue(here).labels == ["awq-bot", "awq-bot: environment"]
    assert "the runner was lost" in run.job("report").summary


def test_a_runner_without_a_gpu_is_told_before_anything_is_pulled(deploy: Deploy) -> None:
    here = deploy("one", prepared=False)
    here.repository.gpu_machine["PATH"] = here.repository.machine["PATH"]
    run = here.watch()
    assert [step.name for step in run.job(leg("quantize", "one")).steps] == ["Check this machine"]
    assert "Install the NVIDIA driver" in run.job(leg("quantize", "one")).steps[0].log
    assert failed(run) == [leg("quantize", "one")]
    assert not here.volume.exists()


@pytest.mark.slow
def test_a_result_that_went_missing_is_looked_up(deploy: Deploy) -> None:
    here = deploy("one")
    here.repository.before_step = at("report", "Fetch the results", lambda: forget_results(runs[0]))
    runs: list[Run] = []
    here.repository.started = runs.append
    run = here.watch()
    assert here.is_published("one")
    assert failed(run) == []
    assert "left no result" in run.job("report").summary


def forget_results(run: Run) -> None:
    for name in run.artifacts.names():
        if name.startswith("result-"):
            run.artifacts.delete(name)


# --- two runs at once ----------------------------------------------------------------------------------------


def test_a_run_leaves_alone_what_another_one_works_on(deploy: Deploy) -> None:
    here = deploy("one")
    others: list[Run] = []
    here.repository.before_step = at(
        leg("quantize", "one"), "Quantize / Run the job", lambda: others.append(here.watch())
    )
    run = here.watch()
    assert others[0].results == PLAN_ALONE
    assert "lab/one" in others[0].job("plan").summary
    assert failed(run) == []
    assert here.is_published("one")


@pytest.mark.slow
def test_a_job_that_another_run_did_meanwhile_ends_well_and_publishes_nothing(deploy: Deploy) -> None:
    here = deploy("one")
    others: list[Run] = []
    here.repository.before_step = at(target("one"), "", lambda: others.append(here.watch()))
    run = here.watch()
    assert leg("publish", "one") in others[0].results
    assert run.results == {"plan": "success", leg("quantize", "one"): "success", "report": "success"}
    assert len(here.hub.history(target("one"))) == 2  # its creation, and one release
    assert not here.api.issues


# --- nobody is believed --------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_model_that_was_changed_on_its_way_is_not_published(deploy: Deploy) -> None:
    here = deploy("one")

    def change() -> None:
        [tokenizer] = here.volume.glob("*/quantized/tokenizer.json")
        tokenizer.write_text("{}")

    here.repository.before_step = at(leg("quantize", "one"), "Quantize / Upload the quantized model", change)
    run = here.watch()
    assert failed(run) == [leg("publish", "one")]
    assert not here.is_published("one")
    assert only_issue(here).labels == ["awq-bot", "awq-bot: publishing"]
    assert "tokenizer.json" in only_issue(here).body


@pytest.mark.slow
def test_a_runner_that_puts_another_plan_in_the_plans_place_publishes_nothing(deploy: Deploy) -> None:
    here = deploy("one")
    runs: list[Run] = []
    here.repository.started = runs.append

    def forge() -> None:
        forged = runs[0].artifacts.named("plan").folder
        for path in forged.glob("*.json"):
            path.write_text(path.read_text().replace(target("one"), "quantized/stolen-awq"))
        runs[0].artifacts.upload("plan", forged, overwrite=True)

    here.repository.before_step = at(leg("quantize", "one"), "Quantize / Upload the result", forge)
    run = here.watch()
    assert leg("publish", "one") in failed(run)
    assert not here.is_published("one")
    assert not here.is_published("stolen")


@pytest.mark.slow
def test_a_forged_result_is_rejected_and_reported(deploy: Deploy) -> None:
    here = deploy("one")
    here.write_watchlist("one", gate="  gate: {max_kl: 0.000001, min_top1: 0.6, max_perplexity_ratio: 1.4}")
    here.prepare()

    def forge() -> None:
        [result] = here.repository.root.glob("run-*/*/work/results/*/*.json")
        result.write_text(result.read_text().replace('"failed"', '"published"'))

    here.repository.before_step = at(leg("quantize", "one"), "Quantize / Upload the result", forge)
    run = here.watch()
    assert any("A result was rejected" in text for text in run.job("report").annotations)
    assert not here.is_published("one")
    assert only_issue(here).state == "open"


# --- what people type ----------------------------------------------------------------------------------------


def test_a_broken_watchlist_is_annotated_and_opens_one_issue_until_it_is_mended(deploy: Deploy) -> None:
    here = deploy("one", prepared=False)
    path = here.repository.checkout / "watchlist.yaml"
    well = path.read_text()
    path.write_text(well.replace("models:", "modles:"))
    for _ in range(2):
        run = here.watch()
        assert run.results == {"plan": "failure"}
        annotations = run.job("plan").annotations
        assert [text for text in annotations if not text.startswith("::error file=watchlist.yaml,line=")] == []
        assert any("'modles'" in text and "models" in text for text in annotations)
        assert only_issue(here).labels == ["awq-bot", "awq-bot: configuration"]
    path.write_text(well.replace("  - lab/one", "  - {repo_id: lab/one, hold: not today}"))
    assert here.watch().results == PLAN_ALONE
    assert only_issue(here).state == "closed"


@pytest.mark.parametrize(
    "typed", ['lab/one"; touch pwned; "', "$(touch pwned)", "`touch pwned`", "a'b\n touch pwned"]
)
def test_a_name_that_is_a_command_stays_a_name(deploy: Deploy, typed: str) -> None:
    here = deploy("one", prepared=False)
    run = here.watch("workflow_dispatch", inputs={"only": typed})
    assert run.results == {"plan": "failure"}
    assert run.job("plan").steps[0].exit_code == 2
    assert not list(here.repository.root.rglob("*pwned*"))


@pytest.mark.slow
def test_an_api_that_fails_costs_knowledge_and_no_model(deploy: Deploy) -> None:
    here = deploy("one")
    here.api.fail("/issues", status=502)
    run = here.watch()
    assert failed(run) == []
    assert here.is_published("one")
    assert any("What failed before is not known" in text for text in [run.job("plan").summary])


@pytest.mark.slow
def test_a_watchlist_longer_than_a_matrix_is_done_in_two_runs(deploy: Deploy) -> None:
    names = [f"model-{number}" for number in range(258)]
    here = deploy(*names, prepared=False)
    here.repository.variables["AWQ_BOT_MOST_JOBS"] = "300"
    planned: list[Run] = []
    here.repository.started = planned.append
    here.repository.before_step = at(target("model-0"), "", stop)
    with pytest.raises(StoppedError):
        here.watch()
    plan = planned[0].job("plan")
    assert plan.result == "success"
    assert len(json.loads(plan.outputs["quantize"])["include"]) == 256
    assert "later run" in plan.summary


def test_an_expired_token_is_said_and_starts_nothing(deploy: Deploy) -> None:
    here = deploy("one", prepared=False)
    here.hub.revoke_token(here.repository.secrets["HF_TOKEN"])
    run = here.watch()
    assert run.results == {"plan": "failure"}
    [annotation] = run.job("plan").annotations
    assert "refuses the token" in annotation
