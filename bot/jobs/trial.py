"""What transformers makes of a model before its weights are pulled: asked of child processes, and remembered."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path

import bot
from bot.checkpoint.constants import tool_versions
from bot.errors import EnvironmentProblem
from bot.files import cache_folder, write_atomic
from bot.jobs.folder import JobDir
from bot.jobs.worker import SMALL_S, ask_child, run_child
from bot.records import Details, Headers, Layers, Recipe, TensorInfo, from_json, sha256_of, to_json
from bot.watch.stock_tasks import lm_eval_version


def layers_of_model(details: Details, recipe: Recipe) -> Layers:
    """What the model of config.json and the headers has.

    Raises EnvironmentProblem when the child process fails for a reason of its own.
    """
    question = to_json({"config": details.config, "tensors": details.tensors, "recipe": recipe})
    known = _place("layers", question)
    with contextlib.suppress(OSError, ValueError):  # not asked before, or damaged
        return from_json(Layers, known.read_text())
    answer = ask_child("layers", question)
    try:
        layers = from_json(Layers, answer)
    except ValueError as error:
        raise EnvironmentProblem(f"layers gave an answer that is none: {error}") from None
    _remember(known, answer)
    return layers


def try_files(
    jobdir: JobDir,
    tensors: Sequence[TensorInfo] | None,
    *,
    options: tuple[str, ...],
    require_isolation: bool = False,
) -> None:
    """Try the small files in source/, the text to measure on, and the model that files and headers show.

    tensors: of the headers; None for a refresh. Raises the error that the child process recorded.
    """
    job = jobdir.job
    asked: list[object] = [job.entry.recipe, job.entry.evaluation, job.entry.trust_remote_code]
    asked += [job.tasks, lm_eval_version()] if job.tasks else []
    known = _place("trials", to_json([job.source_files, job.refresh_files, tensors, *asked]))
    if known.is_file():
        return
    if tensors is not None:
        jobdir.store(Headers(tensors=tuple(tensors)))
    run_child("trial", jobdir, options=options, limit_s=SMALL_S, require_isolation=require_isolation)
    jobdir.forget(Headers)
    _remember(known, "ok\n")


def _place(kind: str, question: str) -> Path:
    """Where the answer is, by the versions that gave it."""
    return cache_folder(kind) / f"{sha256_of([question, tool_versions(), bot.__version__])}.json"


def _remember(path: Path, answer: str) -> None:
    with contextlib.suppress(OSError, EnvironmentProblem):  # it is asked again next time
        write_atomic(path, answer.encode())
