"""Plans of cases with the real client, from a real local Hub: all that the plan meets of a kind at once."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from bot.errors import ERRORS_BY_EXIT_CODE, EnvironmentProblem, reason_of
from bot.hub.session import Hub
from bot.jobs import pipeline
from bot.jobs.model import read_layers
from bot.localhub import LocalHub
from bot.localhub.store import Content
from bot.records import Details, Layers, Plan, Recipe, TensorInfo, from_json, to_json
from bot.watch import watchlist as watchlists
from tests.bad_input.case import PINNED, Case, Change, Place, content_of
from tests.bad_input.guard import limit
from tests.support.small_sandbox import small_model

TRACEBACK = "traceback: "


@dataclass(frozen=True, slots=True)
class Planned:
    """plan: with the cases on it; mended: made after each of their repos became a good one."""

    plan: Plan
    mended: Plan
    work: Path


def plan_all(cases: Sequence[Case], root: Path, monkeypatch: Any) -> Planned:
    """Planned with the real client from a real local Hub, into which any path was pushed."""
    monkeypatch.setattr(pipeline, "layers_of_model", layers_here)
    monkeypatch.setattr("bot.localhub.protocol.check_path", lambda path: path)
    with LocalHub(root / "hub") as local:
        for case in cases:
            local.seed(repo_of(case), files_of(case))
        path = watchlist_of(root, local, cases)
        hub = Hub(local.endpoint, local.token(), local.token())
        with limit(60):
            plan = pipeline.plan(hub, watchlists.load(path))
        for case in cases:
            local.seed(repo_of(case), files_of(replace(case, files={})), replace_all=True)
        mended = pipeline.plan(hub, watchlists.load(watchlist_of(root, local, cases, mended=True)))
    return Planned(plan, mended, root / "work")


def layers_here(details: Details, recipe: Recipe) -> Layers:
    """As `layers_of_model` in a child process, whose errors are warnings; tracebacks can be told from others."""
    return _layers_of(to_json({"config": details.config, "tensors": details.tensors, "recipe": recipe}))


@cache
def _layers_of(question: str) -> Layers:
    asked = json.loads(question)
    tensors = from_json(tuple[TensorInfo, ...], json.dumps(asked["tensors"]))
    recipe = from_json(Recipe, json.dumps(asked["recipe"]))
    try:
        with limit():
            return from_json(Layers, to_json(read_layers(asked["config"], tensors, recipe)))
    except (Exception, pytest.fail.Exception) as error:  # the second: it took too long
        problem = f"{TRACEBACK}{type(error).__name__}: {reason_of(error)}"
    # After the error is gone, which may hold all the memory that there is.
    raise EnvironmentProblem(problem)


def planned_together(case: Case) -> bool:
    """Not what concerns all models of a watchlist."""
    return case.place is Place.PLAN and not (case.alone or case.variables or case.faults)


def planned_text(planned: Plan, case: Case) -> str:
    """The warnings of the case's job. Raises its refusal."""
    for skip in planned.skipped:
        if skip.entry.repo_id == repo_of(case):
            raise ERRORS_BY_EXIT_CODE[skip.exit_code](skip.reason, hint=skip.hint)
    [job] = [job for job in planned.jobs if job.entry.repo_id == repo_of(case)]
    return "\n".join(job.warnings)


def repo_of(case: Case) -> str:
    return f"lab/{case.name}"


def files_of(case: Case) -> dict[str, bytes]:
    changed: dict[str, Change] = {**small_model(), **case.files}
    return {path: content_of(change) for path, change in changed.items() if change is not None}


def watchlist_of(root: Path, local: LocalHub, cases: Sequence[Case], *, mended: bool = False) -> Path:
    """A `revision` named PINNED becomes that of a data set on the Hub."""
    defaults = {"calibration": {"sources": [{"builtin": "stdlib"}]}}
    models = [{"repo_id": repo_of(case)} | ({} if mended else dict(case.entry)) for case in cases]
    text = yaml.safe_dump({"publish_to": "quantized", "defaults": defaults, "models": models})
    if PINNED in text:
        files: dict[str, Content] = {
            "train.jsonl.zst": b"(\xb5/\xfd",
            "test.jsonl": json.dumps({"text": "a row"}) + "\n",
        }
        text = text.replace(PINNED, local.seed("lab/packed", files, repo_type="dataset"))
    path = root / "watchlist.yaml"
    path.write_text(text)
    return path
