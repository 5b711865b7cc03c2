"""Actions of other repositories that the workflows use, and the artifacts that jobs pass on with them.

Only as far as the workflows use them: any other action, and any other input, is refused.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from tests.workflows.interpreter.parser import WorkflowError

Inputs = Mapping[str, str]
Outputs = dict[str, str]


@dataclass(frozen=True, kw_only=True)
class Artifact:
    id: str
    name: str
    folder: Path


class Artifacts:
    """Names are unique in a run, and any job may overwrite one; ids are never reused."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._by_id: dict[str, Artifact] = {}
        self._count = 0

    def names(self) -> list[str]:
        return sorted(artifact.name for artifact in self._by_id.values())

    def named(self, name: str) -> Artifact:
        return next(artifact for artifact in self._by_id.values() if artifact.name == name)

    def upload(self, name: str, source: Path, *, overwrite: bool) -> Artifact | None:
        """A folder's content, without its hidden files. None: it was empty."""
        inside = [path.relative_to(source) for path in sorted(source.rglob("*")) if path.is_file()]
        files = [path for path in inside if not any(part.startswith(".") for part in path.parts)]
        if not files:
            return None
        taken = [artifact for artifact in self._by_id.values() if artifact.name == name]
        if taken and not overwrite:
            raise WorkflowError(f"artifact {name}: there is one of that name already")
        if taken:
            self.delete(name)
        self._count += 1
        made = Artifact(id=str(self._count), name=name, folder=self._root / str(self._count))
        for path in files:
            (made.folder / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source / path, made.folder / path)
        self._by_id[made.id] = made
        return made

    def delete(self, name: str) -> None:
        del self._by_id[self.named(name).id]

    def has(self, artifact_id: str) -> bool:
        return artifact_id in self._by_id

    def download(self, artifact_id: str, destination: Path) -> None:
        """Its files, into the folder itself."""
        shutil.copytree(self._by_id[artifact_id].folder, destination, dirs_exist_ok=True)

    def download_pattern(self, pattern: str, destination: Path) -> None:
        """Each into a subfolder with its name, a single one into the folder itself; none is not an error."""
        braces = re.fullmatch(r"\{(.*)\}", pattern)
        globs = braces[1].split(",") if braces else [pattern]
        found = [one for one in self._by_id.values() if any(fnmatchcase(one.name, glob) for glob in globs)]
        for artifact in found:
            folder = destination / artifact.name if len(found) > 1 else destination
            shutil.copytree(artifact.folder, folder, dirs_exist_ok=True)


class StepFailedError(Exception):
    """An action that ends with an error, as its last line of output says it."""


@dataclass(frozen=True, kw_only=True)
class ActionContext:
    """What an action can reach: the machine's workspace, the run's artifacts, and what is checked in."""

    workspace: Path
    artifacts: Artifacts
    checkout: Path


def run_action(uses: str, inputs: Inputs, context: ActionContext) -> Outputs:
    name, _, version = uses.partition("@")
    if len(version) != 40:
        raise WorkflowError(f"{uses}: is not pinned by its commit")
    if name not in _ACTIONS:
        raise WorkflowError(f"{name}: the interpreter does not know this action")
    return _ACTIONS[name](inputs, context)


def _checkout(inputs: Inputs, context: ActionContext) -> Outputs:
    if inputs != {"persist-credentials": "false"}:
        raise WorkflowError(f"actions/checkout: not with {dict(inputs)}")
    shutil.copytree(context.checkout, context.workspace, dirs_exist_ok=True)
    return {}


def _setup_python(inputs: Inputs, context: ActionContext) -> Outputs:
    _known(inputs, {"python-version"})
    return {"python-version": inputs["python-version"]}


def _upload(inputs: Inputs, context: ActionContext) -> Outputs:
    _known(inputs, {"name", "path", "if-no-files-found", "overwrite", "compression-level", "retention-days"})
    source = context.workspace / inputs["path"]
    made = context.artifacts.upload(inputs["name"], source, overwrite=inputs.get("overwrite") == "true")
    if made is None and inputs.get("if-no-files-found") == "error":
        raise StepFailedError(f"No files were found with the provided path: {inputs['path']}")
    return {"artifact-id": made.id} if made is not None else {}


def _download(inputs: Inputs, context: ActionContext) -> Outputs:
    _known(inputs, {"artifact-ids", "pattern", "path"})
    destination = context.workspace / inputs["path"]
    if "pattern" in inputs:
        context.artifacts.download_pattern(inputs["pattern"], destination)
        return {}
    if not context.artifacts.has(inputs["artifact-ids"]):
        raise StepFailedError(f"No artifact with the id {inputs['artifact-ids']!r}")
    context.artifacts.download(inputs["artifact-ids"], destination)
    return {}


def _alls_green(inputs: Inputs, context: ActionContext) -> Outputs:
    _known(inputs, {"jobs"})
    bad = {name: job["result"] for name, job in json.loads(inputs["jobs"]).items() if job["result"] != "success"}
    if bad:
        raise StepFailedError(f"Some of the required jobs did not succeed: {bad}")
    return {}


def _known(inputs: Inputs, known: set[str]) -> None:
    if unknown := inputs.keys() - known:
        raise WorkflowError(f"the interpreter does not know the inputs {sorted(unknown)}")


_ACTIONS: dict[str, Callable[[Inputs, ActionContext], Outputs]] = {
    "actions/checkout": _checkout,
    "actions/setup-python": _setup_python,
    "actions/upload-artifact": _upload,
    "actions/download-artifact": _download,
    "re-actors/alls-green": _alls_green,
}
