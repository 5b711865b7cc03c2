"""Tasks of lm-eval on source and artifact. The models run layer by layer, so they may be larger than the GPU.

The only importer of lm_eval, which need not be installed where no entry has tasks.
https://github.com/EleutherAI/lm-evaluation-harness/blob/main/docs/interface.md
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from math import isfinite
from pathlib import Path, PurePosixPath
from typing import Any, Final

import torch
from lm_eval import evaluator
from lm_eval.api.model import TemplateLM
from lm_eval.api.task import ConfigurableTask
from lm_eval.defaults import DEFAULT_MAX_LENGTH
from lm_eval.tasks._yaml_loader import load_yaml
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from torch import Tensor

from bot.checkpoint.constants import LOGITS_AT_ONCE, TASK_TOKENS
from bot.checkpoint.device import enough_memory
from bot.checkpoint.skeleton import Skeleton
from bot.errors import BotError, QuantizationError, WatchlistError, untrusted_input
from bot.evaluate.models import LARGER_MACHINE, FinalStates, Models, run_layers
from bot.records import EvaluationTask, Progress, TaskFigures

_FEWSHOT_SEED: Final = 1234  # as `lm_eval run` has it
_ALONE: Final = "Try it with lm-eval alone: .github/TASKS.md has the commands."
_BOOTSTRAPS: Final = 1000  # of standard errors that no formula gives
_NOT_OF_FOLDERS: Final = ("revision", "token", "trust_remote_code")  # arguments that load_dataset has for the Hub

# Its warnings are for those who write tasks.
logging.getLogger("lm_eval").setLevel(logging.ERROR)


def open_task(task: EvaluationTask, description: Path, data: Mapping[str, Path], cache: Path) -> Any:
    """lm-eval's own object, its data set loaded from local files, into `cache`.

    description: the task's YAML file. data: where the files of a local task are, by their paths below the
    watchlist; or the folder of the data set, by its id. Raises WatchlistError for a task that cannot be used.
    """

    def unusable(reason: str) -> BotError:
        return WatchlistError(f"task {task.name}: {reason}", hint=_ALONE)

    with untrusted_input(unusable):
        config = load_yaml(description)
        arguments = config.get("dataset_kwargs") or {}
        if task.file is None:
            config["dataset_path"] = str(data[str(task.dataset)])
            arguments = {key: value for key, value in arguments.items() if key not in _NOT_OF_FOLDERS}
        else:
            below = PurePosixPath(task.file.path).parent
            arguments = {"data_files": _replaced(arguments["data_files"], lambda name: data[str(below / name)])}
        config["dataset_kwargs"] = arguments | {"cache_dir": str(cache)}
        config["num_fewshot"] = config.get("num_fewshot") or 0
        opened = ConfigurableTask(config=config)
        if unknown := [metric for metric, made in opened.aggregation().items() if made is None]:
            raise ValueError(f"the aggregation of {unknown[0]} is unknown")
        # So that an example that does not fit the task is found before the weights are pulled.
        opened.set_fewshot_seed(_FEWSHOT_SEED)
        opened.build_all_requests(limit=task.limit)
    return opened


def _replaced(named: Any, place: Callable[[str], Path]) -> Any:
    """`data_files` with the places of the files."""
    if isinstance(named, dict):
        return {split: _replaced(names, place) for split, names in named.items()}
    return [_replaced(name, place) for name in named] if isinstance(named, list) else str(place(named))


@dataclass(frozen=True, slots=True, kw_only=True)
class TextReader:
    """How a model reads text. encode: to ids, with special tokens or without.

    prefix: the token that stands for an empty context, and its text. longest: tokens that the model reads at once;
    None where it does not say.
    """

    encode: Callable[[str, bool], list[int]]
    prefix: int
    prefix_text: str
    longest: int | None


def measure_tasks(
    models: Models,
    tasks: Mapping[str, Any],
    limits: Mapping[str, int | None],
    *,
    reader: TextReader,
    tokens_at_once: int,
    progress: Progress,
) -> tuple[TaskFigures, ...]:
    """Every metric of each task, on its first examples. tasks: as open_task gives them, by name.

    tokens_at_once: whose states of one model are kept in memory. Raises WatchlistError for a task that cannot be
    evaluated, QuantizationError when logits are not finite, EnvironmentProblem when the device is full.
    """

    def failed(reason: str) -> BotError:
        return WatchlistError(f"tasks {', '.join(tasks)}: {reason}", hint=_ALONE)

    counts = {name: len(task.eval_docs) for name, task in tasks.items()}
    samples = {name: range(min(limits[name] or examples, examples)) for name, examples in counts.items()}
    source, artifact = (
        LayerwiseLM(models, skeleton, reader, tokens_at_once, what=what, progress=progress)
        for skeleton, what in ((models.source, "source"), (models.artifact, "artifact"))
    )
    with untrusted_input(failed):
        results = [_evaluated(model, tasks, samples) for model in (source, artifact)]
        if source.requests_sha256 != artifact.requests_sha256:
            raise ValueError("source and artifact were asked different things")
        return tuple(_figures(*results, asked=source.requests_sha256))


def _evaluated(model: LayerwiseLM, tasks: Mapping[str, Any], samples: Mapping[str, range]) -> Any:
    for task in tasks.values():
        task.set_fewshot_seed(_FEWSHOT_SEED)
    # It prints that it estimates standard errors.
    with contextlib.redirect_stdout(io.StringIO()):
        return evaluator.evaluate(
            model, {"tasks": dict(tasks)}, samples=samples, log_samples=False, bootstrap_iters=_BOOTSTRAPS
        )


def _figures(source: Any, artifact: Any, *, asked: Mapping[str, str]) -> Iterator[TaskFigures]:
    for task, values in source["results"].items():
        for key, value in values.items():
            metric, comma, filtered = key.partition(",")
            if not comma or metric.endswith("_stderr"):
                continue
            other = artifact["results"][task][key]
            if not (isfinite(value) and isfinite(other)):
                raise QuantizationError(f"task {task}: {metric} is {value} of the source, {other} of the artifact")
            error, other_error = (
                _number(found["results"][task].get(f"{metric}_stderr,{filtered}")) for found in (source, artifact)
            )
            yield TaskFigures(
                task=task,
                metric=metric if filtered == "none" else f"{metric} ({filtered})",
                higher_is_better=source["higher_is_better"][task].get(metric, True) is not False,
                examples=int(values["sample_len"]),
                source=float(value),
                source_stderr=error,
                quantized=float(other),
                quantized_stderr=other_error,
                requests_sha256=asked[task],
            )


def _number(value: object) -> float | None:
    """None for what lm-eval writes where it has no estimate."""
    return float(value) if isinstance(value, int | float) and isfinite(value) else None


class LayerwiseLM(TemplateLM):  # type: ignore[misc]  # lm-eval is not typed
    """A model as lm-eval asks it. Requests are sorted by length and run through all layers a few at a time.

    Tokens are those of lm-eval's own class for transformers, HFLM. requests_sha256: of each task that was asked.
    """

    def __init__(
        self,
        models: Models,
        skeleton: Skeleton,
        reader: TextReader,
        tokens_at_once: int,
        *,
        what: str,
        progress: Progress,
    ) -> None:
        super().__init__()
        self.requests_sha256: dict[str, str] = {}
        self._models = models
        self._skeleton = skeleton
        self._reader = reader
        # So many take less memory than quantizing, which the plan estimates.
        self._longest = min(reader.longest or DEFAULT_MAX_LENGTH, TASK_TOKENS)
        self._tokens_at_once = tokens_at_once
        self._what = what
        self._progress = progress

    @property
    def eot_token_id(self) -> int:
        return self._reader.prefix

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        has_prefix = bool(self._reader.prefix_text) and string.startswith(self._reader.prefix_text)
        return self._reader.encode(string, not has_prefix if add_special_tokens is None else add_special_tokens)

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = True) -> list[tuple[float, bool]]:
        self._note(requests)
        scores: list[tuple[float, bool]] = super().loglikelihood(requests, disable_tqdm=True)
        return scores

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = True) -> list[float]:
        self._note(requests)
        windows = []
        for place, request in enumerate(requests):
            ids = self.tok_encode(request.args[0])
            found = get_rolling_token_windows(ids, self._reader.prefix, self._longest, context_len=1)
            windows += [(place, *make_disjoint_window(window)) for window in found]
        sums = [0.0] * len(requests)
        scores = self._loglikelihood_tokens([("", context, scored) for _, context, scored in windows])
        for (place, *_), (score, _) in zip(windows, scores, strict=True):
            sums[place] += score
        return sums

    def generate_until(self, requests: list[Any], disable_tqdm: bool = True) -> list[str]:
        raise WatchlistError(
            f"task {requests[0].task_name} lets the model write text, which is not measured",
            hint="Name a task that scores given answers.",
        )

    def _note(self, requests: list[Any]) -> None:
        by_task: dict[str, list[Any]] = {}
        for request in requests:
            by_task.setdefault(request.task_name, []).append(request.args)
        for task, asked in by_task.items():
            self.requests_sha256[task] = hashlib.sha256(json.dumps(asked).encode()).hexdigest()

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[Any, list[int], list[int]]], **_: Any
    ) -> list[tuple[float, bool]]:
        """The sum over each continuation in nats, and whether each of its tokens is the most likely one."""
        # Requests that differ in their last token alone, such as the letter of an answer, are one row.
        asked: dict[tuple[int, ...], list[int]] = {}
        for number, (_, context, scored) in enumerate(requests):
            if not 0 < len(scored) <= self._longest:
                raise ValueError(f"an answer of {len(scored)} tokens; the model reads {self._longest}")
            # A context of spaces has no tokens: lm-eval gives them to the answer.
            row = (*(context or [self._reader.prefix]), *scored)[-self._longest - 1 : -1]
            asked.setdefault(row, []).append(number)
        chunks = list(_chunks(sorted(asked, key=len, reverse=True), self._tokens_at_once))
        steps, total = count(1), len(chunks) * len(self._skeleton.layers)

        def step() -> None:
            self._progress(f"tasks of the {self._what}", next(steps), total, "steps")

        scores: dict[int, tuple[float, bool]] = {}
        device, folder = self._models.device, self._models.source_weights.folder
        for chunk in chunks:
            numbers = [number for ids in chunk for number in asked[ids]]
            continuations = [
                (row, len(ids), requests[number][2]) for row, ids in enumerate(chunk) for number in asked[ids]
            ]
            with enough_memory(device, folder, to="measure", hint=LARGER_MACHINE):
                states = run_layers(self._skeleton, _padded(chunk), device=device, step=step)
                scores.update(zip(numbers, _scores(states, continuations, self._what), strict=True))
        return [scores[number] for number in range(len(requests))]


def _chunks(rows: Sequence[tuple[int, ...]], tokens_at_once: int) -> Iterator[Sequence[tuple[int, ...]]]:
    """rows: the longest first."""
    start = 0
    while start < len(rows):
        size = max(1, tokens_at_once // len(rows[start]))
        yield rows[start : start + size]
        start += size


def _padded(rows: Sequence[tuple[int, ...]]) -> Tensor:
    """int64 [rows, length of the first]. What follows a row changes nothing before it: decoders are causal."""
    length = len(rows[0])
    return torch.tensor([[*row, *[0] * (length - len(row))] for row in rows], dtype=torch.int64)


@torch.no_grad()
def _scores(
    states: FinalStates, continuations: Sequence[tuple[int, int, list[int]]], what: str
) -> Iterator[tuple[float, bool]]:
    """continuations: each with the row that predicts it, the end of that row, and its tokens."""
    targets = torch.tensor([token for *_, ids in continuations for token in ids])
    owners = torch.arange(len(continuations)).repeat_interleave(
        torch.tensor([len(ids) for *_, ids in continuations])
    )
    places = torch.cat([torch.arange(end - len(ids), end) for _, end, ids in continuations])
    rows = torch.tensor([row for row, *_ in continuations])[owners]
    likelihood = torch.zeros(len(continuations), dtype=torch.float64)
    greedy = torch.ones(len(continuations), dtype=torch.int64)
    at_once = max(1, min(LOGITS_AT_ONCE // states.vocabulary, states.tokens.shape[1]))
    for start in range(0, len(targets), at_once):
        part = slice(start, start + at_once)
        logits = states.logits_at(rows[part], places[part]).float()
        if not bool(torch.isfinite(logits).all()):
            raise QuantizationError(f"tasks of the {what}: logits are not finite")
        chosen = logits.log_softmax(dim=-1).gather(-1, targets[part].to(logits.device).unsqueeze(-1)).squeeze(-1)
        likelihood.index_add_(0, owners[part], chosen.double().cpu())
        is_greedy = logits.argmax(dim=-1).cpu() == targets[part]
        greedy.scatter_reduce_(0, owners[part], is_greedy.long(), "amin")
    return zip(likelihood.tolist(), greedy.bool().tolist(), strict=True)
