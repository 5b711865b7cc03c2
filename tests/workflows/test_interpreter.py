"""The harness itself, on workflows made up to try one rule of GitHub Actions each."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from textwrap import dedent, indent

import pytest

from tests.workflows.interpreter.jobs import RunnerLostError
from tests.workflows.interpreter.parser import WorkflowError, WorkflowParser
from tests.workflows.interpreter.repository import NAME, Repository
from tests.workflows.interpreter.runs import Run, start

UPLOAD = "actions/upload-artifact@043fb46d1a93c77aae656e7c1c64a875d1fc6a0a"
DOWN = "- name: down\n  uses: actions/download-artifact@3e5f45b2cfb9172054b4087a40e8e0b5a5461e7c\n  with: "


class Page:
    """Just enough of GitHub to start a run: it remembers what it was told."""

    url = "http://127.0.0.1:1"

    def __init__(self) -> None:
        self.told: list[tuple[str, str, str | None]] = []

    def grant(self, permissions: Mapping[str, str]) -> str:
        return f"token for {dict(permissions)}"

    def identity(self, environment: str, workflow: str) -> dict[str, str]:
        return {"ACTIONS_ID_TOKEN_REQUEST_URL": f"{self.url}/{environment}/{workflow}"}

    def start_run(self, file: str, event: str) -> int:
        return 1

    def set_job(self, run_id: int, name: str, status: str, conclusion: str | None) -> None:
        self.told.append((name, status, conclusion))

    def finish_run(self, run_id: int, conclusion: str) -> None:
        self.told.append(("run", "completed", conclusion))


class Trial:
    """A repository of which a test writes just the workflows that it is about."""

    def __init__(self, parser: WorkflowParser, root: Path) -> None:
        self.page = Page()
        (root / "checkout").mkdir()
        self.repository = Repository(
            parser=parser,
            api=self.page,
            root=root / "runs",
            checkout=root / "checkout",
            source=root,
            machine={"PATH": os.environ["PATH"]},
        )

    def write(self, path: str, text: str) -> None:
        file = self.repository.source / ".github" / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(dedent(text))

    def run(self, jobs: str, *, event: str = "push", on: str = "push:") -> Run:
        head = f"name: trial\non:\n  {on}\npermissions: {{}}\njobs:\n"
        self.write("workflows/trial.yml", head + indent(dedent(jobs), "  "))
        return start(self.repository, "trial.yml", event)


@pytest.fixture
def trial(parser: WorkflowParser, tmp_path: Path) -> Trial:
    return Trial(parser, tmp_path)


def job(name: str, *steps: str, more: str = "") -> str:
    lines = [f"{name}:", "  runs-on: ubuntu-latest", "  timeout-minutes: 1", "  permissions: {}"]
    lines += [indent(dedent(more).strip(), "  ")] if more else []
    return "\n".join([*lines, "  steps:", *(indent(dedent(step).strip(), "    ") for step in steps), ""])


def run(script: str, more: str = "") -> str:
    body = "\n".join([f"name: {script[:8]!r}", f"run: {script}", *dedent(more).strip().splitlines()])
    return "- " + indent(body, "  ").strip()


def log(ran: Run, name: str) -> str:
    return "\n".join(step.log for step in ran.job(name).steps)


def test_a_step_after_a_failure_runs_only_when_it_asks_to(trial: Trial) -> None:
    ran = trial.run(
        job(
            "one",
            run("exit 3"),
            run("echo usual"),
            run("echo always", "if: always()"),
            run("echo sad", "if: failure()"),
        )
    )
    assert ran.results == {"one": "failure"}
    assert log(ran, "one").split() == ["always", "sad"]
    assert trial.page.told == [
        ("one", "in_progress", None),
        ("one", "completed", "failure"),
        ("run", "completed", "failure"),
    ]


def test_a_condition_without_a_status_means_success_as_well(trial: Trial) -> None:
    ran = trial.run(job("one", run("exit 1"), run("echo no", "if: github.event_name == 'push'")))
    assert log(ran, "one") == ""


def test_a_forgiven_failure_does_not_fail_the_job(trial: Trial) -> None:
    ran = trial.run(job("one", run("exit 1", "continue-on-error: true"), run("echo on")))
    assert ran.results == {"one": "success"}
    assert log(ran, "one").split() == ["on"]


def test_outputs_environment_and_paths_reach_the_steps_after(trial: Trial) -> None:
    first = run(
        '|\n  echo "word=yes" >> "$GITHUB_OUTPUT"\n  printf "lines<<END\\na\\nb\\nEND\\n" >> "$GITHUB_OUTPUT"\n'
        '  echo "KEPT=here" >> "$GITHUB_ENV"\n  echo "$PWD/tools" >> "$GITHUB_PATH"',
        "id: first",
    )
    second = run(
        'echo "$KEPT $WORD $LINES ${PATH%%:*}"',
        "env:\n  WORD: ${{ steps.first.outputs.word }}\n  LINES: ${{ steps.first.outputs.lines }}",
    )
    ran = trial.run(
        job("one", first, second, more="outputs: {word: '${{ steps.first.outputs.word }}'}")
        + job("two", run("echo $WORD", "env: {WORD: '${{ needs.one.outputs.word }}'}"), more="needs: one")
    )
    said, path = ran.job("one").steps[1].log.rsplit(" ", 1)
    assert said == "here yes a\nb"
    assert path.endswith("/tools")
    assert log(ran, "two") == "yes"


def test_a_job_is_skipped_when_what_it_needs_failed_and_so_is_the_next(trial: Trial) -> None:
    ran = trial.run(
        job("one", run("exit 1"))
        + job("two", run("echo"), more="needs: one")
        + job("three", run("echo"), more="needs: two")
        + job(
            "four",
            run("echo $RESULT", "env: {RESULT: '${{ needs.two.result }}'}"),
            more="needs: [one, two]\nif: always()",
        )
    )
    assert ran.results == {"one": "failure", "four": "success"}
    assert log(ran, "four") == "skipped"


def test_a_matrix_stops_at_the_first_failure_unless_told_otherwise(trial: Trial) -> None:
    matrix = "name: leg ${{ matrix.code }}\nstrategy:\n  matrix: {code: [0, 1, 2]}\n"
    ran = trial.run(job("one", run('exit "$CODE"', "env: {CODE: '${{ matrix.code }}'}"), more=matrix))
    assert ran.results == {"leg 0": "success", "leg 1": "failure", "leg 2": "cancelled"}
    patient = matrix + "  fail-fast: false\n"
    ran = trial.run(job("one", run('exit "$CODE"', "env: {CODE: '${{ matrix.code }}'}"), more=patient))
    assert ran.results == {"leg 0": "success", "leg 1": "failure", "leg 2": "failure"}


def test_secrets_of_an_environment_are_seen_only_by_jobs_that_name_it(trial: Trial) -> None:
    trial.repository.secrets = {"READ": "r"}
    trial.repository.environments = {"safe": {"WRITE": "w"}}
    step = run('echo "$READ-$WRITE"', "env: {READ: '${{ secrets.READ }}', WRITE: '${{ secrets.WRITE }}'}")
    ran = trial.run(job("one", step) + job("two", step, more="environment: safe"))
    assert (log(ran, "one"), log(ran, "two")) == ("r-", "r-w")


CALLED = """\
name: called
on:
  workflow_call:
    inputs: {word: {type: string, required: true}}
    secrets: {READ: {required: false}, WRITE: {required: false}}
permissions: {}
jobs:
  inner:
    name: inner ${{ inputs.word }}
    runs-on: ubuntu-latest
    timeout-minutes: 1
    environment: safe
    permissions: PERMISSIONS
    steps:
      - name: say
        run: echo "$READ-$WRITE-$ACTIONS_ID_TOKEN_REQUEST_URL"
        env:
          READ: ${{ secrets.READ }}
          WRITE: ${{ secrets.WRITE }}
"""


def call(**lines: str) -> str:
    more = [f"  {key}: {value}" for key, value in lines.items()]
    return "\n".join(["outer:", "  uses: $/.github/workflows/called.yml", *more, ""])


def test_a_called_workflow_sees_secrets_of_its_environment_by_the_names_that_were_passed(trial: Trial) -> None:
    trial.repository.environments = {"safe": {"WRITE": "w", "READ": "r"}}
    trial.write("workflows/called.yml", CALLED.replace("PERMISSIONS", "{}"))
    passed = "{WRITE: '${{ secrets.WRITE }}'}"
    ran = trial.run(call(permissions="{}", secrets=passed, **{"with": "{word: hello}"}))
    assert log(ran, "outer / inner hello") == "-w-"


def test_an_identity_is_given_only_with_the_right_to_it_which_a_caller_must_have(trial: Trial) -> None:
    trial.write("workflows/called.yml", CALLED.replace("PERMISSIONS", "{id-token: write}"))
    ran = trial.run(call(permissions="{id-token: write}", **{"with": "{word: hello}"}))
    assert log(ran, "outer / inner hello") == f"--{trial.page.url}/safe/trial.yml"
    with pytest.raises(WorkflowError, match="id-token: write, more than its caller"):
        trial.run(call(permissions="{contents: read}", **{"with": "{word: hello}"}))


@pytest.mark.parametrize(
    ("inputs", "wrong"), [("{}", "needs word"), ("{word: x, other: y}", "no inputs"), ("{word: 3}", "no string")]
)
def test_a_called_workflow_gets_the_inputs_that_it_declares(trial: Trial, inputs: str, wrong: str) -> None:
    trial.write("workflows/called.yml", CALLED.replace("PERMISSIONS", "{}"))
    with pytest.raises(WorkflowError, match=wrong):
        trial.run(call(permissions="{}", **{"with": inputs}))


def test_a_composite_action_sees_its_inputs_and_gives_its_outputs(trial: Trial) -> None:
    action = """\
    name: greet
    description: x
    inputs:
      who: {description: x, required: true}
      how: {description: x, default: hello}
    outputs:
      said: {description: x, value: "${{ steps.say.outputs.said }}"}
    runs:
      using: composite
      steps:
        - name: say
          id: say
          shell: bash
          run: echo "said=$HOW $WHO" >> "$GITHUB_OUTPUT"
          env: {HOW: "${{ inputs.how }}", WHO: "${{ inputs.who }}"}
        - name: fail
          shell: bash
          run: "false"
        - name: tidy
          if: always()
          shell: bash
          run: echo tidied
    """
    trial.write("actions/greet/action.yml", action)
    use = "- name: greet\n  id: greet\n  uses: $/.github/actions/greet\n  with: {who: you}\n"
    ran = trial.run(
        job("one", use, run("echo $SAID", "if: always()\nenv: {SAID: '${{ steps.greet.outputs.said }}'}"))
    )
    assert ran.results == {"one": "failure"}
    assert [step.name for step in ran.steps][:3] == ["greet / say", "greet / fail", "greet / tidy"]
    assert ran.steps[-1].log == "hello you"
    with pytest.raises(WorkflowError, match="needs"):
        trial.run(job("one", use.replace("who: you", "how: hi")))
    with pytest.raises(WorkflowError, match="no inputs"):
        trial.run(job("one", use.replace("who: you", "who: you, why: no")))


def upload(**inputs: str) -> str:
    return (
        f"- name: up\n  id: up\n  uses: {UPLOAD}\n  with: {{{', '.join(f'{k}: {v}' for k, v in inputs.items())}}}"
    )


def test_artifacts_leave_hidden_files_behind_and_come_back_by_id_or_by_pattern(trial: Trial) -> None:
    make = run("mkdir -p out/deep out/.git; touch out/.lock out/.git/x; echo 1 > out/deep/file")
    ran = trial.run(
        job(
            "one",
            make,
            upload(name="a-1", path="out"),
            more="outputs: {id: '${{ steps.up.outputs.artifact-id }}'}",
        )
        + job("two", make, upload(name="a-2", path="out/deep"))
        + job(
            "three",
            DOWN + "{artifact-ids: '${{ needs.one.outputs.id }}', path: by-id}",
            DOWN + "{pattern: 'a-*', path: all}",
            run("find . -type f | sort"),
            more="needs: [one, two]",
        )
    )
    assert log(ran, "three").split() == ["./all/a-1/deep/file", "./all/a-2/file", "./by-id/deep/file"]


def test_an_artifact_that_is_overwritten_keeps_its_name_but_not_its_id(trial: Trial) -> None:
    make = run("mkdir out; touch out/file")
    again = upload(name="a", path="out", overwrite="true").replace("id: up", "id: again")
    fetch = DOWN + "{artifact-ids: '${{ steps.up.outputs.artifact-id }}', path: x}"
    ran = trial.run(job("one", make, upload(name="a", path="out"), again, fetch))
    assert ran.job("one").annotations == ("::error::No artifact with the id '1'",)
    with pytest.raises(WorkflowError, match="one of that name already"):
        trial.run(job("one", make, upload(name="a", path="out"), again.replace(", overwrite: true", "")))


def test_nothing_to_upload_is_an_error_where_it_is_asked_to_be(trial: Trial) -> None:
    make = run("mkdir out")
    wanted = upload(name="a", path="out", **{"if-no-files-found": "error"})
    assert trial.run(job("one", make, wanted)).results == {"one": "failure"}
    assert trial.run(job("one", make, upload(name="a", path="out"))).results == {"one": "success"}


def test_a_lost_machine_runs_no_further_step(trial: Trial) -> None:
    def lose(job: str, step: str) -> None:
        if step == "exit 0":
            raise RunnerLostError

    trial.repository.before_step = lose
    ran = trial.run(job("one", run("echo 1"), run("exit 0"), run("echo 2", "if: always()")))
    assert ran.results == {"one": "failure"}
    assert log(ran, "one") == "1"


def test_a_group_that_is_held_is_waited_for(trial: Trial) -> None:
    trial.repository.held_groups.add("mine")
    with pytest.raises(WorkflowError, match="would wait"):
        trial.run(job("one", run("echo"), more="concurrency: {group: mine}"))


def test_values_that_are_masked_are_not_in_the_log(trial: Trial) -> None:
    ran = trial.run(job("one", run("|\n  echo early hush\n  echo '::add-mask::hush'\n  echo late hush")))
    assert log(ran, "one") == "early hush\nlate ***"


def test_nothing_is_obeyed_while_commands_are_stopped(trial: Trial) -> None:
    ran = trial.run(
        job(
            "one",
            run("|\n  echo ::error::heard\n  echo ::stop-commands::e\n  echo ::error::unheard\n  echo ::e::"),
        )
    )
    assert ran.job("one").annotations == ("::error::heard",)
    assert log(ran, "one").splitlines() == ["::error::heard", "::error::unheard"]


def test_what_a_fork_proposes_gets_no_secrets_and_may_only_read(trial: Trial) -> None:
    trial.repository.secrets = {"READ": "r"}
    step = run('echo "$READ-$TOKEN"', "env: {READ: '${{ secrets.READ }}', TOKEN: '${{ github.token }}'}")
    trial.run(
        job("one", step).replace("permissions: {}", "permissions: {issues: write}"),
        on="pull_request:",
        event="pull_request",
    )
    logs = []
    for repo in ("stranger/fork", NAME):
        ran = start(
            trial.repository, "trial.yml", "pull_request", pull_request={"head": {"repo": {"full_name": repo}}}
        )
        logs.append(log(ran, "one"))
    assert logs == ["-token for {'issues': 'read'}", "r-token for {'issues': 'write'}"]


@pytest.mark.parametrize(
    ("jobs", "said"),
    [
        (job("one", run("echo", "working-directory: /")), "does not know working-directory"),
        (job("one", run("echo"), more="container: x"), "does not know container"),
        (job("one", "- name: x\n  uses: actions/checkout@v7"), "not pinned"),
        (job("one", f"- name: x\n  uses: who/knows@{'0' * 40}"), "does not know this action"),
        (job("one", run("echo", "shell: python")), "shell python"),
        (job("one", run("echo")).replace("ubuntu-latest", "windows-latest"), "no machine"),
        (job("one", run("echo ${{ nobody.knows }}")), "Unrecognized named-value"),
        (job("one", run("echo")) + job("two", run("echo"), more="needs: [one, nobody]"), "unknown job"),
        (job("one", run("echo")).replace("  timeout-minutes: 1\n", ""), "without a timeout"),
        (job("one", run("echo"), more="strategy: {matrix: {a: [1], exclude: [{a: 1}]}}"), "either axes or"),
    ],
)
def test_what_is_not_known_is_refused(trial: Trial, jobs: str, said: str) -> None:
    with pytest.raises(WorkflowError, match=said):
        trial.run(jobs)


def test_a_workflow_starts_only_on_its_events(trial: Trial) -> None:
    with pytest.raises(WorkflowError, match="does not start on schedule"):
        trial.run(job("one", run("echo")), event="schedule")
