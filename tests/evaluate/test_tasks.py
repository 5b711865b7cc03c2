"""Tasks of lm-eval, layer by layer, against lm-eval's own class for transformers and a direct computation."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from lm_eval import evaluator
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from transformers import AutoModelForCausalLM, AutoTokenizer

from bot.errors import EnvironmentProblem, WatchlistError
from bot.evaluate.models import Models, open_models
from bot.evaluate.tasks import LayerwiseLM, TextReader, measure_tasks, open_task
from bot.records import EvaluationTask, PinnedFile, no_progress
from tests.support.artifact_pairs import VOCABULARY, Pair, make_pair, quantized_pair

ASSETS = Path(__file__).parents[1] / "assets"
FILES = ASSETS / "tasks"
STATEMENTS = EvaluationTask(
    name="statements",
    file=PinnedFile(path="tasks/statements.yaml", sha256="0" * 64),
    data=(PinnedFile(path="tasks/statements.jsonl", sha256="0" * 64),),
)


def opened(pair: Pair) -> Models:
    return open_models(pair.source, pair.quantized, trust_remote_code=False, device="cpu")


# --- the model that lm-eval asks ----------------------------------------------------------------------------

LONGEST = 24
READER = TextReader(
    encode=lambda text, special: [1] * special + [ord(char) % VOCABULARY for char in text],
    prefix=1,
    prefix_text="\1",
    longest=LONGEST,
)
CONTEXT = "The one before, "
PAIRS = [(CONTEXT, "a"), (CONTEXT, "b"), (CONTEXT, "bc"), ("", "None before"), ("S", "hort"), (5 * CONTEXT, "cut")]


@pytest.fixture(scope="module")
def random_pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return make_pair("llama", tmp_path_factory.mktemp("llama"))


def asked_of(pair: Pair, tokens_at_once: int = 1000, **settings: Any) -> LayerwiseLM:
    models = opened(pair)
    options: dict[str, Any] = {"what": "artifact", "progress": no_progress} | settings
    return LayerwiseLM(models, models.artifact, READER, tokens_at_once, **options)


def requests(kind: Any, arguments: Sequence[tuple[str, ...]]) -> list[Instance]:
    return [Instance(request_type=kind, doc={}, arguments=each, idx=0, metadata=("t", 0, 1)) for each in arguments]


@cache
def loaded(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def directly(pair: Pair, ids: list[int], scored: int) -> tuple[float, bool]:
    """Of the last tokens, by transformers, on the artifact as an ordinary model folder."""
    with torch.no_grad():
        logits = loaded(pair.restored)(torch.tensor([ids[:-1]])).logits[0, -scored:].double()
    targets = torch.tensor(ids[-scored:])
    likelihood = logits.log_softmax(-1)[torch.arange(scored), targets].sum()
    return float(likelihood), bool((logits.argmax(-1) == targets).all())


@pytest.mark.parametrize("tokens_at_once", [1, 50, 1000])
def test_likelihoods_are_those_of_transformers(random_pair: Pair, tokens_at_once: int) -> None:
    """Whatever the lengths, how many are run at once, and where a context is cut."""
    found = asked_of(random_pair, tokens_at_once).loglikelihood(requests("loglikelihood", PAIRS))
    for (context, answer), (likelihood, greedy) in zip(PAIRS, found, strict=True):
        # A space at the end of a context belongs to the answer.
        scored = len(answer) + len(context) - len(context.rstrip())
        ids = [1, *(ord(char) % VOCABULARY for char in context + answer)][-LONGEST - 1 :]
        expected = directly(random_pair, ids, scored)
        assert likelihood == pytest.approx(expected[0], abs=1e-3)
        assert greedy == expected[1]


def test_an_answer_that_the_model_would_give_is_greedy(random_pair: Pair) -> None:
    model = asked_of(random_pair)
    first = max(range(32, 127), key=lambda token: directly(random_pair, [1, 65, token], 1)[0])
    found = model.loglikelihood(requests("loglikelihood", [("A", chr(token)) for token in range(32, 127)]))
    most = max(range(len(found)), key=lambda place: found[place][0])
    assert (most + 32, found[most][1]) == (first, directly(random_pair, [1, 65, first], 1)[1])


def test_a_long_text_is_read_in_windows(random_pair: Pair) -> None:
    text = "A text that is longer than what the model reads at once, by more than twice."
    (found,) = asked_of(random_pair).loglikelihood_rolling(requests("loglikelihood_rolling", [(text,)]))
    ids = [1, 1, *(ord(char) % VOCABULARY for char in text)]
    expected = directly(random_pair, ids[: LONGEST + 1], LONGEST)[0]
    for start in range(LONGEST, len(ids) - 1, LONGEST):
        end = min(start + LONGEST, len(ids) - 1)
        expected += directly(random_pair, ids[max(0, end - LONGEST) : end + 1], end - start)[0]
    assert found == pytest.approx(expected, abs=1e-2)


def test_text_that_the_model_would_write_is_not_measured(random_pair: Pair) -> None:
    with pytest.raises(WatchlistError, match="task t lets the model write text, which is not measured"):
        asked_of(random_pair).generate_until(requests("generate_until", [("A", "b")]))


def test_a_full_device_is_a_problem_of_the_machine(random_pair: Pair) -> None:
    def full(stage: str, done: float, total: float, unit: str) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    with pytest.raises(EnvironmentProblem, match="source: cpu does not have enough memory to measure it"):
        asked_of(random_pair, progress=full).loglikelihood(requests("loglikelihood", PAIRS))


# --- tasks ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained_pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    folder = tmp_path_factory.mktemp("trained")
    model = AutoModelForCausalLM.from_pretrained(ASSETS / "qwen3-tiny", dtype=torch.float16)
    model.save_pretrained(folder / "source")
    pair = quantized_pair(folder / "source", folder)
    for path in ASSETS.glob("qwen3-tiny/*token*"):
        shutil.copy(path, pair.restored)
    return pair


def task_of(where: Path, folder: Path = FILES) -> Any:
    data = {"tasks/statements.jsonl": folder / "statements.jsonl"}
    return open_task(STATEMENTS, folder / "statements.yaml", data, where)


def test_figures_are_those_of_lm_eval_itself(trained_pair: Pair, tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(trained_pair.restored)
    reader = TextReader(
        encode=lambda text, special: list(tokenizer.encode(text, add_special_tokens=special)),
        prefix=tokenizer.eos_token_id,
        prefix_text=tokenizer.eos_token,
        longest=None,
    )
    steps: list[tuple[str, int, int]] = []
    figures = measure_tasks(
        opened(trained_pair),
        {"statements": task_of(tmp_path)},
        {"statements": 10},
        reader=reader,
        tokens_at_once=100,
        progress=lambda what, done, total, unit: steps.append((what, done, total)),
    )
    assert [(found.task, found.metric, found.examples) for found in figures] == [
        ("statements", "acc", 10),
        ("statements", "acc_norm", 10),
    ]
    assert [what for what, done, total in steps if done == total] == [
        "tasks of the source",
        "tasks of the artifact",
    ]
    for folder, value, error in (
        (trained_pair.source, "source", "source_stderr"),
        (trained_pair.restored, "quantized", "quantized_stderr"),
    ):
        task = task_of(tmp_path)
        task.set_fewshot_seed(1234)
        expected = evaluator.evaluate(
            HFLM(pretrained=loaded(folder), tokenizer=tokenizer), {"tasks": {"statements": task}}, limit=10
        )
        for found in figures:
            results = expected["results"]["statements"]
            assert getattr(found, value) == results[f"{found.metric},none"]
            assert getattr(found, error) == pytest.approx(results[f"{found.metric}_stderr,none"])
    assert figures[0].source > 0.5  # it was trained on such text


@pytest.mark.parametrize(
    ("file", "old", "new", "said"),
    [
        ("statements.yaml", "{{before}}", "{{behind}}", "'behind' is undefined"),
        ("statements.yaml", "test_split: test", "test_split: other", "'other'"),
        ("statements.yaml", "aggregation: mean", "aggregation: mode", "the aggregation of acc is unknown"),
        ("statements.jsonl", '"answer": 1}', '"answer": {', "at position"),
        ("statements.jsonl", '"choices"', '"others"', "malformed"),
    ],
)
def test_a_task_that_does_not_fit_its_data_is_refused(
    tmp_path: Path, file: str, old: str, new: str, said: str
) -> None:
    shutil.copytree(FILES, tmp_path / "tasks")
    changed = (FILES / file).read_text()
    assert old in changed
    (tmp_path / "tasks" / file).write_text(changed.replace(old, new))
    with pytest.raises(WatchlistError) as caught:
        task_of(tmp_path / "cache", tmp_path / "tasks")
    assert caught.value.message.startswith("task statements: ")
    assert said in caught.value.message
    assert caught.value.hint
