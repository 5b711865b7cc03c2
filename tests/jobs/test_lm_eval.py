"""`tasks:` of the watchlist, from the plan to the published card, with lm-eval on a small model."""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from bot.calibration.sources import local_path
from bot.errors import EnvironmentProblem, WatchlistError
from bot.jobs import stages, tasks
from bot.jobs.folder import JobDir, evaluate_inputs, pull_inputs, quantize_inputs
from bot.localhub.store import Content
from bot.records import EvaluationTask, PinnedFile, no_progress
from tests.support.factories import SHA, entry, job, quantized, weights
from tests.support.repos import as_bot
from tests.support.sandbox import ASSETS, SandboxBefore
from tests.support.small_sandbox import TARGET, assert_published, edit_watchlist, quantized_again

# As the data set that arc_easy reads: a configuration named by the card, among others.
CARD = """\
---
configs:
- {config_name: ARC-Challenge, data_files: [{split: test, path: ARC-Challenge/test.jsonl}]}
- config_name: ARC-Easy
  data_files:
  - {split: train, path: ARC-Easy/test.jsonl}
  - {split: validation, path: ARC-Easy/test.jsonl}
  - {split: test, path: ARC-Easy/test.jsonl}
---
"""
QUESTION = {
    "question": "What is hot?",
    "choices": {"text": ["fire", "ice"], "label": ["A", "B"]},
    "answerKey": "A",
}
TASK = EvaluationTask(name="arc_easy", dataset="allenai/ai2_arc", revision=SHA)


@pytest.mark.slow
def test_tasks_reach_the_card_and_quantize_nothing_again(sandbox_before: SandboxBefore) -> None:
    """The job was measured before the tasks were asked for."""
    sandbox = sandbox_before()
    rows = "".join(json.dumps(QUESTION | {"id": str(number)}) + "\n" for number in range(9)).encode()
    files: dict[str, Content] = {
        "README.md": CARD,
        "ARC-Easy/test.jsonl": rows,
        "ARC-Challenge/test.jsonl": b'{"other": 1}\n',
    }
    revision = sandbox.hub.seed("allenai/ai2_arc", files, repo_type="dataset")
    shutil.copytree(ASSETS / "tasks", sandbox.root / "tasks")
    stock = f"{{task: arc_easy, dataset: allenai/ai2_arc, revision: {revision}, limit: 5}}"
    edit_watchlist(sandbox, "models:\n", f"  tasks: [{{file: tasks/statements.yaml}}, {stock}]\nmodels:\n")

    done = sandbox.call("run")
    provenance = assert_published(sandbox, done)
    assert not quantized_again(done)
    assert "it/s]" not in done.stderr  # lm-eval's own bars
    assert "tasks of the artifact" in done.stderr
    asked = provenance["tasks_asked"]
    assert [task["name"] for task in asked] == ["statements", "arc_easy"]
    assert asked[1]["revision"] == revision
    figures = provenance["report"]["tasks"]
    assert [(found["task"], found["metric"], found["examples"]) for found in figures] == [
        ("statements", "acc", 12),
        ("statements", "acc_norm", 12),
        ("arc_easy", "acc", 5),
        ("arc_easy", "acc_norm", 5),
    ]
    assert provenance["report"]["versions"]["lm_eval"].startswith("0.4")
    card = sandbox.hub.files(TARGET)["README.md"].decode()
    assert f"| statements | acc | 12 | {figures[0]['source']:.4f} ± " in card
    assert "No benchmarks were run" not in card


@pytest.fixture
def without_lm_eval(monkeypatch: pytest.MonkeyPatch) -> None:
    # What the import system takes for a module that cannot be imported.
    monkeypatch.setitem(sys.modules, "lm_eval", None)


@pytest.mark.usefixtures("without_lm_eval")
def test_without_lm_eval_nothing_is_downloaded(sandbox_before: SandboxBefore) -> None:
    sandbox = sandbox_before("pull", "quantize", "evaluate", "card")
    jobdir = JobDir(sandbox.jobs[0])
    jobdir.store(replace(jobdir.job, entry=replace(jobdir.job.entry, tasks=(TASK,))))
    context = stages.JobContext(
        hub=as_bot(sandbox.hub), work=jobdir.path.parent, files=sandbox.root, progress=no_progress
    )
    with pytest.raises(EnvironmentProblem, match="lm_eval is not installed, and `tasks:` needs it") as caught:
        stages.pull(context, jobdir)
    assert "pip install -c constraints.txt '.[quantize,tasks]'" in caught.value.hint
    assert not jobdir.source.exists()
    assert not sandbox.hub.requests


def test_a_task_that_does_not_fit_its_data_is_found_before_the_weights_are_pulled(tmp_path: Path) -> None:
    jobdir = JobDir(tmp_path)
    names = ("statements.yaml", "statements.jsonl")
    contents = [(ASSETS / "tasks" / name).read_bytes() for name in names]
    contents[1] = contents[1].replace(b"before", b"after")
    jobdir.calibration.mkdir()
    files = [PinnedFile(path=name, sha256=str(number) * 64) for number, name in enumerate(names)]
    task = EvaluationTask(name="statements", file=files[0], data=(files[1],))
    for source, content in zip(task.sources, contents, strict=True):
        (jobdir.calibration / str(local_path(source))).write_bytes(content)
    jobdir.store(job(entry(tasks=(task,))))
    shutil.copytree(ASSETS / "qwen3-tiny", jobdir.source, ignore=shutil.ignore_patterns("*.safetensors"))
    with pytest.raises(WatchlistError, match="task statements: 'before' is undefined"):
        tasks.try_job(jobdir)


@pytest.mark.parametrize(
    ("name", "said"), [("gsm8k", "'generate_until' is not measured"), ("no_such_task", "lm-eval has no task")]
)
def test_a_task_that_was_planned_without_lm_eval_is_refused_where_it_is(
    tmp_path: Path, name: str, said: str
) -> None:
    jobdir = JobDir(tmp_path)
    asked = EvaluationTask(name=name, dataset="openai/gsm8k", revision=SHA)
    jobdir.store(job(entry(tasks=(asked,))))
    with pytest.raises(WatchlistError, match=said):
        tasks._open_tasks(jobdir)


def test_a_stage_is_repeated_where_tasks_change() -> None:
    one, other = job(), job(entry(tasks=(TASK,)))
    limited = job(entry(tasks=(replace(TASK, limit=7),)))
    assert pull_inputs(one) != pull_inputs(other)
    assert quantize_inputs(one, weights()) == quantize_inputs(other, weights())
    assert evaluate_inputs(one, quantized()) != evaluate_inputs(other, quantized())
    assert evaluate_inputs(limited, quantized()) != evaluate_inputs(other, quantized())
