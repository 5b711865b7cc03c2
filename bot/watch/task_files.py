"""Local task files of lm-eval: what one asks, and which data it names.

Reads no code: a task that is measured is described by plain values alone. Imports nothing of lm-eval.
https://github.com/EleutherAI/lm-evaluation-harness/blob/main/docs/task_guide.md
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Final

from bot.watch.document import YamlMistake, load_with_lines

_MAX_BYTES: Final = 1_000_000
_NAME = re.compile(r"[A-Za-z0-9_][\w.-]{0,99}", re.ASCII)
# Those that score given answers. Others let the model write one.
_SCORED: Final = ("multiple_choice", "loglikelihood", "loglikelihood_rolling")
_READERS: Final = ("json", "csv", "parquet")  # of the package datasets, for local files
_SPLITS: Final = ("test_split", "validation_split", "training_split", "fewshot_split")
# Keys that hold plain values. Others name code, or data elsewhere.
_KEYS: Final = (
    *("task", "task_alias", "tag", "output_type", "dataset_path", "dataset_kwargs", *_SPLITS),
    *("doc_to_text", "doc_to_target", "doc_to_choice", "description", "target_delimiter", "gen_prefix"),
    *("num_fewshot", "fewshot_config", "fewshot_delimiter", "metric_list", "metadata"),
)
_METRIC_KEYS: Final = ("metric", "aggregation", "higher_is_better")
# What lm-eval computes of scored answers. For any other name it asks the Hub.
_METRICS: Final = (
    *("acc", "acc_norm", "acc_bytes", "acc_mutual_info", "exact_match", "f1", "mcc", "brier_score", "likelihood"),
    *("perplexity", "word_perplexity", "byte_perplexity", "bits_per_byte"),
)


@dataclass(frozen=True, slots=True)
class FileContent:
    """A file: its sha256 and size, or why it cannot be read."""

    sha256: str | None = None
    size_bytes: int = 0
    problem: str | None = None


def file_content(folder: Path, name: str) -> FileContent:
    try:
        # Reading a pipe would block.
        if (folder / name).exists() and not (folder / name).is_file():
            return FileContent(problem="not a file")
        with (folder / name).open("rb") as stream:
            return FileContent(hashlib.file_digest(stream, "sha256").hexdigest(), size_bytes=stream.tell())
    except OSError as error:
        return FileContent(problem=error.strerror or str(error))
    except ValueError:
        # No file can have this name, such as one with a null character.
        return FileContent(problem="no such name")


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskContent:
    """A local task file: its name for the task, and the files of examples by path; or what is wrong with it."""

    name: str = ""
    sha256: str = ""
    data: tuple[tuple[str, str], ...] = ()
    problem: str | None = None


class _ProblemError(Exception):
    """What is wrong with a task file."""


def task_content(folder: Path, path: str) -> TaskContent:
    """path: of the task file, relative to `folder`, as the paths of the result are."""
    content = file_content(folder, path)
    if content.problem:
        return TaskContent(problem=f"task file {path!r} cannot be read: {content.problem}")
    try:
        asked = _read_task(_text(folder / path, content))
        data = tuple((name, _sha256(folder, name)) for name in _data_paths(asked, path))
    except _ProblemError as problem:
        return TaskContent(problem=f"task file {path!r}: {problem}")
    return TaskContent(name=asked["task"], sha256=content.sha256 or "", data=tuple(dict.fromkeys(data)))


def _text(path: Path, content: FileContent) -> str:
    if content.size_bytes > _MAX_BYTES:
        raise _ProblemError(f"more than {_MAX_BYTES:,} bytes")
    try:
        return path.read_text("utf-8")
    except UnicodeDecodeError:
        raise _ProblemError("not UTF-8 text") from None


def _sha256(folder: Path, name: str) -> str:
    content = file_content(folder, name)
    if content.sha256 is None:
        raise _ProblemError(f"data file {name!r} cannot be read: {content.problem}")
    return content.sha256


def _read_task(text: str) -> dict[str, Any]:
    """The keys of a local task file. Raises _ProblemError with the first mistake."""
    try:
        asked, lines, mistakes = load_with_lines(text)
    except YamlMistake as error:
        raise _ProblemError(f"line {error.line}: {error}") from None
    for mistake in mistakes:  # such as `!function`, which would run code
        raise _ProblemError(f"line {mistake.line}: {mistake}")
    if not isinstance(asked, dict):
        raise _ProblemError("no mapping of keys")
    for loc, problem in _wrong(asked):
        raise _ProblemError(f"line {lines.of(loc)}: {problem}")
    return asked


def _wrong(asked: dict[str, Any]) -> Iterator[tuple[tuple[str, ...], str]]:
    for key in asked.keys() - set(_KEYS):
        yield (key,), f"the key {key!r} is not read in a local task"
    if not _NAME.fullmatch(str(asked.get("task"))) or not isinstance(asked.get("task"), str):
        yield ("task",), f"task: {asked.get('task')!r} is no name"
    if problem := unscored(asked):
        yield ("output_type",), problem
    if asked.get("dataset_path") not in _READERS:
        yield ("dataset_path",), f"dataset_path: {asked.get('dataset_path')!r} is none of {', '.join(_READERS)}"
    if not any(isinstance(asked.get(key), str) for key in _SPLITS[:2]):
        yield (), "names no test_split and no validation_split"
    named = asked.get("dataset_kwargs")
    if not isinstance(named, dict) or named.keys() != {"data_files"} or not _files(named["data_files"]):
        yield ("dataset_kwargs",), "dataset_kwargs: is not `{data_files: {<split>: <file>}}`"
    for name in _files(named["data_files"]) if isinstance(named, dict) and "data_files" in named else ():
        if not _is_inside(name):
            yield ("dataset_kwargs", "data_files"), f"data_files: {name!r} is not a path below the task file"
    metrics = asked.get("metric_list", [])
    if not isinstance(metrics, list) or not all(_is_metric(metric) for metric in metrics):
        wanted = f"`{{{', '.join(_METRIC_KEYS)}}}` of the metrics {', '.join(_METRICS)}"
        yield ("metric_list",), f"metric_list: is not a list of {wanted}"


def unscored(asked: dict[str, Any]) -> str | None:
    """Why a task cannot be measured; None where it scores given answers."""
    found = asked.get("output_type", "generate_until")
    if found in _SCORED:
        return None
    return f"output_type {found!r} is not measured, only {', '.join(_SCORED)}, which score given answers"


def _is_metric(metric: object) -> bool:
    if not isinstance(metric, dict) or not metric.keys() <= set(_METRIC_KEYS):
        return False
    return metric.get("metric") in _METRICS and isinstance(metric.get("aggregation", ""), str)


def _files(named: object) -> tuple[str, ...]:
    """The names in `data_files`, which is one, a list, or either by split; none where it is anything else."""
    values = list(named.values()) if isinstance(named, dict) else [named]
    names = [name for value in values for name in (value if isinstance(value, list) else [value])]
    usable = tuple(name for name in names if isinstance(name, str) and name)
    return usable if len(usable) == len(names) else ()


def _is_inside(name: str) -> bool:
    parts = PurePosixPath(name).parts
    return not PurePosixPath(name).is_absolute() and ".." not in parts and not re.search(r"[*?\[\]{}:\\]", name)


def _data_paths(asked: dict[str, Any], path: str) -> tuple[str, ...]:
    """Relative to what `path`, of the task file, is relative to."""
    below = PurePosixPath(path).parent
    return tuple(str(below / name) for name in _files(asked["dataset_kwargs"]["data_files"]))
