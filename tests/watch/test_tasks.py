"""Tasks of lm-eval on the watchlist: what an entry gets, what is wrong with it, and what they change."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest

from bot.records import EvaluationTask, Job, JobKind, PinnedFile, TextSource, from_json, to_json
from bot.watch.digests import recipe_digest
from tests.support.factories import entry, job
from tests.support.watch import SHA, TOP, loaded, mistakes

FILES = Path(__file__).parents[1] / "assets" / "tasks"
STOCK = f"task: arc_easy, dataset: allenai/ai2_arc, revision: {SHA}"
NEEDS_LM_EVAL = pytest.mark.skipif(find_spec("lm_eval") is None, reason="lm-eval is not installed")


def entry_lines(*lines: str) -> str:
    """A watchlist with one model, whose first line is line 3."""
    return TOP + "".join(f"    {line}\n" for line in ("- repo_id: lab/A", *(f"  {line}" for line in lines)))


def write_task(folder: Path, old: str = "", new: str = "") -> None:
    """statements.yaml and its data in `tasks`, with a change."""
    (folder / "tasks").mkdir(exist_ok=True)
    text = (FILES / "statements.yaml").read_text()
    assert old in text
    (folder / "tasks" / "statements.yaml").write_text(text.replace(old, new) if old else text)
    (folder / "tasks" / "statements.jsonl").write_bytes((FILES / "statements.jsonl").read_bytes())


def pinned(path: str) -> PinnedFile:
    return PinnedFile(path=path, sha256=hashlib.sha256((FILES / Path(path).name).read_bytes()).hexdigest())


LOCAL = EvaluationTask(
    name="statements", file=pinned("tasks/statements.yaml"), data=(pinned("tasks/statements.jsonl"),), limit=200
)


def test_a_task_reaches_the_entry_with_its_pins_and_a_model_may_have_others(tmp_path: Path) -> None:
    write_task(tmp_path)
    text = f"defaults: {{tasks: [{{file: tasks/statements.yaml, limit: 200}}, {{{STOCK}}}]}}\n"
    text += entry_lines("priority: 1") + "    - {repo_id: lab/B, tasks: []}\n"
    first, second = loaded(tmp_path, text)
    stock = EvaluationTask(name="arc_easy", dataset="allenai/ai2_arc", revision=SHA)
    assert first.tasks == (LOCAL, stock)
    assert second.tasks == ()
    assert job(first).texts[-3:] == (
        TextSource(file="tasks/statements.yaml", sha256=LOCAL.file.sha256 if LOCAL.file else None),
        TextSource(file="tasks/statements.jsonl", sha256=LOCAL.data[0].sha256),
        TextSource(dataset="allenai/ai2_arc", revision=SHA),
    )
    refresh = job(first, kind=JobKind.REFRESH)
    assert (refresh.texts, refresh.tasks) == ((), ())


def test_without_the_key_there_are_none(tmp_path: Path) -> None:
    (found,) = loaded(tmp_path, entry_lines("priority: 1"))
    assert found.tasks == ()


# --- what is wrong ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("task", "message"),
    [
        ("{task: arc_easy, dataset: allenai/ai2_arc}", "one of lm-eval's tasks needs `revision`, the full commit"),
        (f"{{task: arc_easy, revision: {SHA}}}", "one of lm-eval's tasks needs `dataset`, the data set"),
        ("{task: arc_easy, dataset: allenai/ai2_arc, revision: main}", "revision: main is not valid"),
        ("{limit: 5}", "a task is one of `file` or `task`"),
        (f"{{file: tasks/statements.yaml, {STOCK}}}", "a task is one of `file` or `task`"),
        (f"{{file: tasks/statements.yaml, revision: {SHA}}}", "`revision` is for lm-eval's own tasks only"),
        ("{file: tasks/statements.py}", "file: tasks/statements.py is not valid"),
        ("{file: tasks/statements.yaml, limit: 1}", "limit: should be greater than or equal to 2, not 1"),
        ("{file: tasks/statements.yaml, split: test}", "unknown key 'split'"),
        ("{file: tasks/gone.yaml}", "task file 'tasks/gone.yaml' cannot be read: No such file"),
        ("{file: tasks/folder.yaml}", "task file 'tasks/folder.yaml' cannot be read: not a file"),
        ("arc_easy", "tasks: expected a mapping, found arc_easy"),
        ("{file: tasks/statements.yaml}, {file: ./tasks/statements.yaml}", "the task statements is there twice"),
    ],
)
def test_a_mistake_is_one_line_with_its_place(tmp_path: Path, task: str, message: str) -> None:
    write_task(tmp_path)
    (tmp_path / "tasks" / "folder.yaml").mkdir()
    (found,) = mistakes(tmp_path, entry_lines("priority: 1", f"tasks: [{task}]"))
    assert (found.line, found.message[: len(message)]) == (5, message)


@NEEDS_LM_EVAL
@pytest.mark.parametrize(
    ("task", "dataset", "message"),
    [
        ("arc_hardest", "allenai/ai2_arc", "lm-eval has no task 'arc_hardest'"),
        ("gsm8k", "openai/gsm8k", "the task gsm8k: output_type 'generate_until' is not measured, only"),
        (
            "arc_easy",
            "Rowan/hellaswag",
            "the task arc_easy reads the data set allenai/ai2_arc, not Rowan/hellaswag",
        ),
        ("squadv2", "lhoestq/squad", "the task squadv2 is Python code"),
    ],
)
def test_a_task_of_lm_eval_that_cannot_be_measured(tmp_path: Path, task: str, dataset: str, message: str) -> None:
    line = f"tasks: [{{task: {task}, dataset: {dataset}, revision: {SHA}}}]"
    (found,) = mistakes(tmp_path, entry_lines(line))
    assert (found.line, found.message[: len(message)]) == (4, message)
    assert found.hint


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("multiple_choice", "generate_until", "line 3: output_type 'generate_until' is not measured, only"),
        ("output_type: multiple_choice\n", "", "line 2: output_type 'generate_until' is not measured, only"),
        ("task: statements", "task: [a, b]", "line 2: task: ['a', 'b'] is no name"),
        ("task: statements", "task: a/../b", "line 2: task: 'a/../b' is no name"),
        ("task: statements", "group: a\ntask: statements", "line 2: the key 'group' is not read in a local task"),
        ("choices", "!function code.run", "line 8: the YAML tag '!function' is not read"),
        (
            "answer",
            "answer\nprocess_docs: code.run",
            "line 10: the key 'process_docs' is not read in a local task",
        ),
        ("dataset_path: json", "dataset_path: lab/code", "line 4: dataset_path: 'lab/code' is none of json, csv"),
        ("{test: statements.jsonl}", "{test: ../a.jsonl}", "line 5: data_files: '../a.jsonl' is not a path below"),
        (
            "{test: statements.jsonl}",
            "/a.jsonl",
            "line 5: data_files: '/a.jsonl' is not a path below the task file",
        ),
        ("{test: statements.jsonl}", '["*.jsonl"]', "line 5: data_files: '*.jsonl' is not a path below"),
        (
            "statements.jsonl}",
            "'https://a/b.jsonl'}",
            "line 5: data_files: 'https://a/b.jsonl' is not a path below",
        ),
        (
            "{data_files: {test: statements.jsonl}}",
            "{data_dir: x}",
            "line 5: dataset_kwargs: is not `{data_files:",
        ),
        ("{test: statements.jsonl}", "{test: 3}", "line 5: dataset_kwargs: is not `{data_files:"),
        ("{test: statements.jsonl}", "gone.jsonl", "data file 'tasks/gone.jsonl' cannot be read: No such file"),
        ("test_split: test\n", "", "line 2: names no test_split and no validation_split"),
        ("metric: acc,", "metric: accuracy,", "line 11: metric_list: is not a list of `{metric, aggregation"),
        ("metric: acc,", "metric: acc, hf_evaluate: true,", "line 11: metric_list: is not a list of"),
        ("doc_to_choice: choices", "doc_to_choice: [", "line 8: the bracket [ is not closed"),
        ("answer", "&a answer\ndescription: *a", "line 9: YAML anchors and aliases are not read"),
    ],
)
def test_a_local_task_file_describes_scored_answers_and_its_own_data(
    tmp_path: Path, old: str, new: str, said: str
) -> None:
    write_task(tmp_path, old, new)
    (found,) = mistakes(tmp_path, entry_lines("tasks: [{file: tasks/statements.yaml}]"))
    message = f"task file 'tasks/statements.yaml': {said}"
    assert (found.line, found.message[: len(message)]) == (4, message)
    assert found.hint


@pytest.mark.parametrize("content", [b"", b"[a]", b"\xff", b"a: \x00", b"task: a\n" * 200_000])
def test_a_file_that_is_no_task_is_refused(tmp_path: Path, content: bytes) -> None:
    write_task(tmp_path)
    (tmp_path / "tasks" / "statements.yaml").write_bytes(content)
    (found,) = mistakes(tmp_path, entry_lines("tasks: [{file: tasks/statements.yaml}]"))
    assert found.message.startswith("task file 'tasks/statements.yaml': ")


# --- what they change ---------------------------------------------------------------------------------------


def test_they_are_in_no_digest_of_what_is_published() -> None:
    assert recipe_digest(entry(tasks=(LOCAL,))) == recipe_digest(entry())


def test_failed_attempts_are_counted_for_what_was_measured() -> None:
    one = job()
    other = replace(one, entry=entry(tasks=(LOCAL,)))
    edited = replace(one, entry=entry(tasks=(replace(LOCAL, limit=3),)))
    assert len({each.attempt_digest for each in (one, other, edited)}) == 3


def test_records_without_tasks_are_as_before() -> None:
    assert "tasks" not in to_json(job())
    asked = job(entry(tasks=(LOCAL,)))
    assert from_json(Job, to_json(asked)) == asked
