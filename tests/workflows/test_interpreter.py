"""The interpreter itself, on workflows made up to try one rule of GitHub Actions each."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from textwrap import dedent, indent
from typing import Any

import pytest

from tests.workflows.interpreter.api import RunsApi
from tests.workflows.interpreter.jobs import RunnerLostError
from tests.workflows.interpreter.parser import WorkflowError, WorkflowParser
from tests.workflows.interpreter.repository import NAME, Repository
from tests.workflows.interpreter.runs import Run, start

UPLOAD = "uses: actions/upload-artifact@043fb46d1a93c77aae656e7c1c64a875d1fc6a0a"
DOWNLOAD = "uses: actions/download-artifact@3e5f45b2cfb9172054b4087a40e8e0b5a5461e7c"


class Trial:
    """A repository of which a test writes just the workflows that it is about."""

    def __init__(self, parser: WorkflowParser, api: RunsApi, root: Path) -> None:
        checkout, machine = root / "checkout", {"PATH": os.environ["PATH"]}
        checkout.mkdir()
        self.api = api
        self.repository = Repository(
            parser=parser, api=api, root=root / "runs", checkout=checkout, source=root, machine=machine
        )

    def write(self, path: str, text: str) -> None:
        file = self.repository.source / ".github" / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(dedent(text))

    def run(self, *jobs: str, event: str = "push", **payload: Any) -> Run:
        head = "name: trial\non: [push, pull_request]\npermissions: {}\njobs:\n"
        self.write("workflows/trial.yml", head + indent("\n".join(jobs), "  "))
        return start(self.repository, "trial.yml", event, **payload)


@pytest.fixture
def trial(parser: WorkflowParser, tmp_path: Path) -> Iterator[Trial]:
    with RunsApi() as api:
        yield Trial(parser, api, tmp_path)


def job(name: str, *steps: str, more: str = "") -> str:
    """more: other keys of the job, or other values for the usual ones."""
    usual = ("runs-on: ubuntu-latest", "timeout-minutes: 1", "permissions: {}")
    keys = [line for line in usual if line.split()[0] not in more]
    return "\n".join([f"{name}:", indent("\n".join([*keys, more, "steps:", *steps]), "  ")])


def step(script: str, *more: str) -> str:
    """`run: script`, or any step that begins with `uses:`; its name is the last word."""
    body = script if script.startswith("uses:") else f"run: |\n{indent(script, '  ')}"
    return "- " + indent("\n".join([f"name: '{script.rsplit(maxsplit=1)[-1]}'", body, *more]), "  ").strip()


def log(run: Run, name: str) -> str:
    """What a job printed, as words."""
    return " ".join(" ".join(step.log for step in run.job(name).steps).split())


OUTPUTS = """\
echo "word=yes" >> "$GITHUB_OUTPUT"
printf "lines<<END\\na\\nb\\nEND\\n" >> "$GITHUB_OUTPUT\""""
OUTPUT_WORD, OUTPUT_LINES = "${{ steps.first.outputs.word }}", "${{ steps.first.outputs.lines }}"
ARTIFACT_ID = "${{ steps.up.outputs.artifact-id }}"
MATRIX = "name: job ${{ matrix.code }}\nstrategy: {matrix: {code: [0, 1, 2]}, fail-fast: false}"
MAKE = step("mkdir -p out/deep out/.git; touch out/.lock out/.git/x; echo 1 > out/deep/file")
# What it is about, jobs, results, and what some of the jobs print.
RULES: dict[str, tuple[list[str], dict[str, str], dict[str, str]]] = {
    "a step after a failure runs only when its condition says so": (
        [
            job(
                "a",
                step("exit 3"),
                step("echo 1"),
                step("echo 2", "if: always()"),
                step("echo 3", "if: failure()"),
                step("echo 4", "if: github.event_name == 'push'"),
            )
        ],
        {"a": "failure"},
        {"a": "2 3"},
    ),
    "outputs reach later steps and jobs": (
        [
            job(
                "a",
                step(OUTPUTS, "id: first"),
                step("echo $WORD $LINES", f"env: {{WORD: '{OUTPUT_WORD}', LINES: '{OUTPUT_LINES}'}}"),
                more=f"outputs: {{x: '{OUTPUT_WORD}'}}",
            ),
            job("b", step("echo $X", "env: {X: '${{ needs.a.outputs.x }}'}"), more="needs: a"),
        ],
        {"a": "success", "b": "success"},
        {"a": "yes a b", "b": "yes"},
    ),
    "a job is skipped when a need failed or was skipped": (
        [
            job("a", step("exit 1")),
            job("b", step("echo"), more="needs: a"),
            job("c", step("echo"), more="needs: b"),
            job("d", step("echo ${{ needs.b.result }} # d"), more="needs: [a, b]\nif: always()"),
        ],
        {"a": "failure", "d": "success"},
        {"d": "skipped"},
    ),
    "jobs of a matrix": (
        [job("a", step('exit "$CODE" # a', "env: {CODE: '${{ matrix.code }}'}"), more=MATRIX)],
        {"job 0": "success", "job 1": "failure", "job 2": "failure"},
        {},
    ),
    "masked values are not in the log": (
        [job("a", step("echo early hush\necho '::add-mask::hush'\necho late hush"))],
        {"a": "success"},
        {"a": "early hush late ***"},
    ),
    "artifacts leave out hidden files and are found by id or by pattern": (
        [
            job(
                "a",
                MAKE,
                step(UPLOAD, "id: up", "with: {name: a-1, path: out}"),
                more=f"outputs: {{id: '{ARTIFACT_ID}'}}",
            ),
            job("b", MAKE, step(UPLOAD, "with: {name: a-2, path: out/deep}")),
            job(
                "c",
                step(DOWNLOAD, "with: {artifact-ids: '${{ needs.a.outputs.id }}', path: by-id}"),
                step(DOWNLOAD, "with: {pattern: 'a-*', path: all}"),
                step("find . -type f | sort"),
                more="needs: [a, b]",
            ),
        ],
        {"a": "success", "b": "success", "c": "success"},
        {"c": "./all/a-1/deep/file ./all/a-2/file ./by-id/deep/file"},
    ),
    "nothing to upload is an error only on request": (
        [
            job("a", step("mkdir out"), step(UPLOAD, "with: {name: a, path: out, if-no-files-found: error}")),
            job("b", step("mkdir out"), step(UPLOAD, "with: {name: a, path: out}")),
        ],
        {"a": "failure", "b": "success"},
        {},
    ),
}


@pytest.mark.parametrize(("jobs", "results", "logs"), RULES.values(), ids=RULES.keys())
def test_jobs_end_as_on_github(
    trial: Trial, jobs: list[str], results: dict[str, str], logs: dict[str, str]
) -> None:
    run = trial.run(*jobs)
    assert run.results == results
    assert {name: log(run, name) for name in logs} == logs
    shown = {each.name: each.conclusion for each in trial.api.runs[run.id].jobs if each.conclusion != "skipped"}
    assert shown == results


def test_workflow_commands_are_ignored_while_they_are_stopped(trial: Trial) -> None:
    printed = ("::error::heard", "::stop-commands::e", "::error::unheard", "::e::")
    run = trial.run(job("a", step("\n".join([*(f"echo {line}" for line in printed), "true"]))))
    assert run.job("a").annotations == ("::error::heard",)
    assert log(run, "a") == "::error::heard ::error::unheard"


def test_an_artifact_that_is_overwritten_keeps_its_name_but_not_its_id(trial: Trial) -> None:
    upload = step(UPLOAD, "id: up", "with: {name: a, path: out}")
    again = step(UPLOAD, "with: {name: a, path: out, overwrite: true}")
    fetch = step(DOWNLOAD, f"with: {{artifact-ids: '{ARTIFACT_ID}', path: x}}")
    run = trial.run(job("a", MAKE, upload, again, fetch))
    assert run.job("a").annotations == ("::error::No artifact with the id '1'",)
    with pytest.raises(WorkflowError, match="one of that name already"):
        trial.run(job("a", MAKE, upload, again.replace(", overwrite: true", "")))


def test_a_lost_machine_runs_no_further_step(trial: Trial) -> None:
    def lose(job: str, step: str) -> None:
        if step == "two":
            raise RunnerLostError

    trial.repository.before_step = lose
    run = trial.run(job("a", step("echo one"), step("echo two"), step("echo three", "if: always()")))
    assert run.results == {"a": "failure"}
    assert log(run, "a") == "one"


# --- secrets, permissions, called workflows and actions ------------------------------------------------------

SAY_SECRETS = step("echo $READ-$WRITE", "env: {READ: '${{ secrets.READ }}', WRITE: '${{ secrets.WRITE }}'}")
CALLED = f"""\
name: called
on:
  workflow_call:
    inputs: {{word: {{type: string, required: true}}}}
    secrets: {{READ: {{required: false}}, WRITE: {{required: false}}}}
permissions: {{}}
jobs:
{indent(job("inner", SAY_SECRETS, step("echo $ACTIONS_ID_TOKEN_REQUEST_URL"), more="environment: safe"), "  ")}
"""


def call(**lines: str) -> str:
    more = [f"  {key}: {value}" for key, value in lines.items()]
    return "\n".join(["outer:", "  uses: $/.github/workflows/called.yml", *more])


def test_secrets_of_an_environment_are_seen_only_by_jobs_that_name_it(trial: Trial) -> None:
    trial.repository.secrets = {"READ": "r"}
    trial.repository.environments = {"safe": {"WRITE": "w"}}
    run = trial.run(job("a", SAY_SECRETS), job("b", SAY_SECRETS, more="environment: safe"))
    assert (log(run, "a"), log(run, "b")) == ("r-", "r-w")


def test_a_called_workflow_sees_secrets_of_its_environment_by_the_names_that_were_passed(trial: Trial) -> None:
    trial.repository.environments = {"safe": {"WRITE": "w", "READ": "r"}}
    trial.write("workflows/called.yml", CALLED)
    run = trial.run(call(permissions="{}", secrets="{WRITE: '${{ secrets.WRITE }}'}", **{"with": "{word: hello}"}))
    assert log(run, "outer / inner") == "-w"


def test_an_id_token_needs_the_permission_of_job_and_caller(trial: Trial) -> None:
    trial.write(
        "workflows/called.yml", CALLED.replace("permissions: {}\n    en", "permissions: {id-token: write}\n    en")
    )
    run = trial.run(call(permissions="{id-token: write}", **{"with": "{word: hello}"}))
    assert trial.api.identities.environment["ACTIONS_ID_TOKEN_REQUEST_URL"] in log(run, "outer / inner")
    with pytest.raises(WorkflowError, match="id-token: write, more than its caller"):
        trial.run(call(permissions="{contents: read}", **{"with": "{word: hello}"}))


@pytest.mark.parametrize(
    ("inputs", "wrong"), [("{}", "needs word"), ("{word: x, other: y}", "no inputs"), ("{word: 3}", "no string")]
)
def test_a_called_workflow_gets_the_inputs_that_it_declares(trial: Trial, inputs: str, wrong: str) -> None:
    trial.write("workflows/called.yml", CALLED)
    with pytest.raises(WorkflowError, match=wrong):
        trial.run(call(permissions="{}", **{"with": inputs}))


def test_a_composite_action_sees_its_inputs_and_gives_its_outputs(trial: Trial) -> None:
    action = """\
    name: greet
    description: x
    inputs: {who: {description: x, required: true}, how: {description: x, default: hello}}
    outputs: {said: {description: x, value: "${{ steps.say.outputs.said }}"}}
    runs:
      using: composite
      steps:
        - name: say
          id: say
          shell: bash
          run: echo "said=$HOW $WHO" >> "$GITHUB_OUTPUT"
          env: {HOW: "${{ inputs.how }}", WHO: "${{ inputs.who }}"}
        - {name: fail, shell: bash, run: "false"}
        - {name: tidy, shell: bash, run: echo tidied, if: always()}
    """
    trial.write("actions/greet/action.yml", action)
    use = step("uses: $/.github/actions/greet", "id: greet", "with: {who: you}")
    say = step("echo $SAID", "if: always()", "env: {SAID: '${{ steps.greet.outputs.said }}'}")
    run = trial.run(job("a", use, say))
    assert run.results == {"a": "failure"}
    assert [each.name.rpartition(" / ")[2] for each in run.steps] == ["say", "fail", "tidy", "$SAID"]
    assert run.steps[-1].log == "hello you"
    for inputs, wrong in (("how: hi", "needs"), ("who: you, why: no", "no inputs")):
        with pytest.raises(WorkflowError, match=wrong):
            trial.run(job("a", use.replace("who: you", inputs)))


def test_a_pull_request_from_a_fork_gets_no_secrets_and_a_read_only_token(trial: Trial) -> None:
    trial.repository.secrets = {"READ": "r"}
    found = []
    for repo in ("another/fork", NAME):
        pull = {"head": {"repo": {"full_name": repo}}}
        run = trial.run(
            job("a", SAY_SECRETS, more="permissions: {issues: write}"), event="pull_request", pull_request=pull
        )
        found.append((log(run, "a"), run.job("a").permissions))
    assert found == [("-", {"issues": "read"}), ("r-", {"issues": "write"})]


# --- refused --------------------------------------------------------------------------------------------------

ECHO = job("a", step("echo"))


@pytest.mark.parametrize(
    ("jobs", "message"),
    [
        (job("a", step("echo", "working-directory: /")), "does not know working-directory"),
        (job("a", step("echo"), more="container: x"), "does not know container"),
        (job("a", step("uses: actions/checkout@v7")), "not pinned"),
        (job("a", step(f"uses: who/knows@{'0' * 40}")), "does not know this action"),
        (job("a", step("echo", "shell: python")), "shell python"),
        (ECHO.replace("ubuntu-latest", "windows-latest"), "no machine"),
        (job("a", step("echo ${{ unknown.name }} # a")), "Unrecognized named-value"),
        (ECHO + "\n" + job("b", step("echo"), more="needs: [a, unknown]"), "unknown job"),
        (ECHO.replace("  timeout-minutes: 1\n", ""), "without a timeout"),
        (job("a", step("echo"), more=MATRIX.replace("{code", "{exclude: [{code: 1}], code")), "either axes or"),
        (job("a", step("echo"), more=MATRIX.replace("false", "true")), "would cancel the others"),
        (job("a", step("echo"), more="concurrency: {group: held}"), "would wait"),
    ],
)
def test_what_the_interpreter_does_not_know_is_refused(trial: Trial, jobs: str, message: str) -> None:
    trial.repository.held_groups.add("held")
    with pytest.raises(WorkflowError, match=message):
        trial.run(jobs)


def test_a_workflow_starts_only_on_its_events(trial: Trial) -> None:
    with pytest.raises(WorkflowError, match="does not start on schedule"):
        trial.run(ECHO, event="schedule")
