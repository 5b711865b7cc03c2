"""Actions of other repositories that the workflows use, and the artifacts that jobs pass on with them.

Only as far as the workflows use them: any other action, and any other input, is refused.
"""

from __future__ import annotations

import itertools
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
SITE = "https://someone.github.io/awq-bot"  # of the repository's GitHub Pages


@dataclass(frozen=True, kw_only=True)
class Artifact:
    id: str
    name: str
    folder: Path


class Artifacts:
    """Names are unique in a run, and any job may overwrite one; ids are never reused.

    attested: name -> digest of what the run's jobs attested.
    """

    def __init__(self, root: Path) -> None:
        self.attested: dict[str, str] = {}
        self._root = root
        self._by_name: dict[str, Artifact] = {}
        self._ids = itertools.count(1)

    def names(self) -> list[str]:
        return sorted(self._by_name)

    def named(self, name: str) -> Artifact:
        return self._by_name[name]

    def upload(self, name: str, source: Path) -> Artifact | None:
        """A folder's content, without its hidden files. None: it was empty."""
        inside = [path.relative_to(source) for path in sorted(source.rglob("*")) if path.is_file()]
        files = [path for path in inside if not any(part.startswith(".") for part in path.parts)]
        if not files:
            return None
        number = str(next(self._ids))
        made = Artifact(id=number, name=name, folder=self._root / number)
        for path in files:
            (made.folder / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source / path, made.folder / path)
        self._by_name[name] = made
        return made

    def delete(self, name: str) -> None:
        del self._by_name[name]

    def with_id(self, artifact_id: str) -> Artifact | None:
        return next((artifact for artifact in self._by_name.values() if artifact.id == artifact_id), None)

    def matching(self, globs: list[str]) -> list[Artifact]:
        return [each for each in self._by_name.values() if any(fnmatchcase(each.name, glob) for glob in globs)]


class Caches:
    """Of a repository's default branch. A key is written once; `restore-keys` are the beginnings of keys."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._folders: dict[str, Path] = {}

    def keys(self) -> list[str]:
        """Oldest first."""
        return list(self._folders)

    def save(self, key: str, source: Path) -> None:
        """A folder that is not there, and a key that is taken, are warnings."""
        if source.is_dir() and key not in self._folders:
            folder = self._root / str(len(self._folders))
            shutil.copytree(source, folder)
            self._folders[key] = folder

    def restore(self, prefixes: list[str], destination: Path) -> str:
        """The key that was found; empty if none was."""
        for prefix in prefixes:
            for key in reversed(self._folders):
                if key.startswith(prefix):
                    shutil.copytree(self._folders[key], destination, dirs_exist_ok=True)
                    return key
        return ""


class StepFailedError(Exception):
    """An action that ends with an error, as its last line of output says it."""


@dataclass(frozen=True, kw_only=True)
class ActionContext:
    """What an action can reach: the machine's folders, the run's artifacts, what is checked in, and caches.

    permissions: of the job's token.
    """

    workspace: Path
    home: Path
    artifacts: Artifacts
    checkout: Path
    permissions: Mapping[str, str]
    caches: Caches


def run_action(uses: str, inputs: Inputs, context: ActionContext) -> Outputs:
    name, _, version = uses.partition("@")
    if len(version) != 40:
        raise WorkflowError(f"{uses}: is not pinned by its commit")
    if name not in _ACTIONS:
        raise WorkflowError(f"{name}: the interpreter does not know this action")
    act, known = _ACTIONS[name]
    if unknown := inputs.keys() - known:
        raise WorkflowError(f"{name}: the interpreter does not know the inputs {sorted(unknown)}")
    return act(inputs, context)


def _checkout(inputs: Inputs, context: ActionContext) -> Outputs:
    if inputs != {"persist-credentials": "false"}:
        raise WorkflowError(f"actions/checkout: not with {dict(inputs)}")
    shutil.copytree(context.checkout, context.workspace, dirs_exist_ok=True)
    return {}


def _setup_python(inputs: Inputs, context: ActionContext) -> Outputs:
    return {}


def _upload(inputs: Inputs, context: ActionContext) -> Outputs:
    if inputs.get("overwrite") != "true":
        raise WorkflowError(f"artifact {inputs['name']}: a second attempt fails without `overwrite: true`")
    made = context.artifacts.upload(inputs["name"], context.workspace / inputs["path"])
    if made is None and inputs["if-no-files-found"] == "error":
        raise StepFailedError(f"No files were found with the provided path: {inputs['path']}")
    return {"artifact-id": made.id} if made is not None else {}


def _download(inputs: Inputs, context: ActionContext) -> Outputs:
    """By id into the folder itself; by pattern each into a subfolder, a single one into the folder itself."""
    destination = context.workspace / inputs["path"]
    if "pattern" in inputs:
        found = context.artifacts.matching(inputs["pattern"].strip("{}").split(","))
        for each in found:
            folder = destination / each.name if len(found) > 1 else destination
            shutil.copytree(each.folder, folder, dirs_exist_ok=True)
        return {}
    artifact = context.artifacts.with_id(inputs["artifact-ids"])
    if artifact is None:
        raise StepFailedError(f"No artifact with the id {inputs['artifact-ids']!r}")
    shutil.copytree(artifact.folder, destination, dirs_exist_ok=True)
    return {}


def _attest(inputs: Inputs, context: ActionContext) -> Outputs:
    if missing := [right for right in ("attestations", "id-token") if context.permissions.get(right) != "write"]:
        raise StepFailedError(f"Failed to attest: the job lacks {missing}")
    if not re.fullmatch("sha256:[0-9a-f]{64}", inputs["subject-digest"]):
        raise StepFailedError("subject-digest must be in the format <algorithm>:<digest>")
    context.artifacts.attested[inputs["subject-name"]] = inputs["subject-digest"]
    return {}


def _configure_pages(inputs: Inputs, context: ActionContext) -> Outputs:
    return {"base_url": SITE}


def _upload_pages(inputs: Inputs, context: ActionContext) -> Outputs:
    made = context.artifacts.upload("github-pages", context.workspace / inputs["path"])
    if made is None:
        raise StepFailedError(f"No files were found with the provided path: {inputs['path']}")
    return {"artifact_id": made.id}


def _deploy_pages(inputs: Inputs, context: ActionContext) -> Outputs:
    if "github-pages" not in context.artifacts.names():
        raise StepFailedError('No artifacts named "github-pages" were found for this workflow run.')
    return {"page_url": f"{SITE}/"}


def _restore(inputs: Inputs, context: ActionContext) -> Outputs:
    prefixes = [inputs["key"], *inputs["restore-keys"].split()]
    return {"cache-matched-key": context.caches.restore(prefixes, _in_home(inputs["path"], context))}


def _save(inputs: Inputs, context: ActionContext) -> Outputs:
    context.caches.save(inputs["key"], _in_home(inputs["path"], context))
    return {}


def _in_home(path: str, context: ActionContext) -> Path:
    if not path.startswith("~/") or "\n" in path:
        raise WorkflowError(f"actions/cache: the interpreter knows one folder of the home, not {path}")
    return context.home / path.removeprefix("~/")


def _alls_green(inputs: Inputs, context: ActionContext) -> Outputs:
    bad = {name: job["result"] for name, job in json.loads(inputs["jobs"]).items() if job["result"] != "success"}
    if bad:
        raise StepFailedError(f"Some of the required jobs did not succeed: {bad}")
    return {}


_UPLOAD = {"name", "path", "if-no-files-found", "overwrite", "compression-level", "retention-days"}
_ACTIONS: dict[str, tuple[Callable[[Inputs, ActionContext], Outputs], set[str]]] = {
    "actions/attest": (_attest, {"subject-name", "subject-digest"}),
    "actions/checkout": (_checkout, {"persist-credentials"}),
    "actions/setup-python": (_setup_python, {"python-version"}),
    "actions/configure-pages": (_configure_pages, set()),
    "actions/deploy-pages": (_deploy_pages, set()),
    "actions/cache/restore": (_restore, {"path", "key", "restore-keys"}),
    "actions/cache/save": (_save, {"path", "key"}),
    "actions/upload-artifact": (_upload, _UPLOAD),
    "actions/upload-pages-artifact": (_upload_pages, {"path"}),
    "actions/download-artifact": (_download, {"artifact-ids", "pattern", "path"}),
    "re-actors/alls-green": (_alls_green, {"jobs"}),
}
