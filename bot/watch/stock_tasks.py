"""The tasks of the installed lm-eval, from its task files. Neither lm-eval nor code of a task is imported."""

from __future__ import annotations

import re
from functools import cache
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

import yaml

from bot.errors import EnvironmentProblem
from bot.watch.task_files import unscored

_NAME: Final = re.compile(rb"^[\"']?task[\"']?:[ \t]*[\"']?([\w.-]+)[\"']?[ \t]*(?:#.*)?\r?$", re.MULTILINE)


def stock_problem(name: str, dataset: str) -> str | None:
    """Why a task cannot be measured on this data set; None too where lm-eval is not installed."""
    path = stock_file(name)
    if path is None:
        return None if _folder() is None else f"lm-eval has no task {name!r}"
    asked = _read(path)
    if "class" in asked or "custom_dataset" in asked:
        return f"the task {name} is Python code, which may read other data than its data set"
    own = str(asked.get("dataset_path"))
    # Older tasks name a data set without its owner.
    if own.lower() not in (dataset.lower(), dataset.lower().partition("/")[2]):
        return f"the task {name} reads the data set {own}, not {dataset}"
    problem = unscored(asked)
    return f"the task {name}: {problem}" if problem else None


def stock_file(name: str) -> Path | None:
    """The file that describes a task; None for an unknown one."""
    folder = _folder()
    return _files(folder).get(name) if folder is not None else None


def lm_eval_version() -> dict[str, str]:
    """Of the installed lm-eval, by its name. Raises EnvironmentProblem where there is none."""
    if _folder() is None:
        raise EnvironmentProblem(
            "lm_eval is not installed, and `tasks:` needs it",
            hint="In a checkout of awq-bot: pip install -c constraints.txt '.[quantize,tasks]'",
        )
    return {"lm_eval": metadata.version("lm_eval")}


def _folder() -> Path | None:
    spec = find_spec("lm_eval")
    return Path(spec.submodule_search_locations[0]) / "tasks" if spec and spec.submodule_search_locations else None


@cache
def _files(folder: Path) -> dict[str, Path]:
    """By name. Groups of tasks have none."""
    found: dict[str, Path] = {}
    for path in sorted(folder.rglob("*.yaml")):
        for name in _NAME.findall(path.read_bytes()):
            found.setdefault(name.decode(), path)
    return found


class _Loader(yaml.SafeLoader):
    """Reads `!function utils.f` as its text."""


_Loader.add_multi_constructor("!", lambda loader, suffix, node: loader.construct_scalar(node))


def _read(path: Path) -> dict[str, Any]:
    """With the keys of the files that it includes."""
    own: dict[str, Any] = yaml.load(path.read_bytes(), Loader=_Loader)  # noqa: S506 - a SafeLoader
    includes = own.pop("include", [])
    asked: dict[str, Any] = {}
    for include in includes if isinstance(includes, list) else [includes]:
        asked |= _read(path.parent / include)
    return asked | own
