"""The actions of others that the workflows use, as far as they use them. Any other use is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.workflows.artifacts import Artifacts
from tests.workflows.reading import WorkflowError

Inputs = Mapping[str, str]
Outputs = dict[str, str]


class StepFailedError(Exception):
    """An action that ends with an error, as its last line of output says it."""


@dataclass(frozen=True, kw_only=True)
class Place:
    """What an action can reach: the machine's workspace, the run's artifacts, and what is checked in."""

    workspace: Path
    artifacts: Artifacts
    checkout: Path


def run_action(uses: str, inputs: Inputs, place: Place) -> Outputs:
    name, _, version = uses.partition("@")
    if len(version) != 40:
        raise WorkflowError(f"{uses}: is not pinned by its commit")
    if name not in _ACTIONS:
        raise WorkflowError(f"{name}: this harness does not know this action")
    return _ACTIONS[name](inputs, place)


def _checkout(inputs: Inputs, place: Place) -> Outputs:
    if inputs != {"persist-credentials": "false"}:
        raise WorkflowError(f"actions/checkout: not with {dict(inputs)}")
    shutil.copytree(place.checkout, place.workspace, dirs_exist_ok=True)
    return {}


def _setup_python(inputs: Inputs, place: Place) -> Outputs:
    _known(inputs, {"python-version"})
    return {"python-version": inputs["python-version"]}


def _upload(inputs: Inputs, place: Place) -> Outputs:
    _known(inputs, {"name", "path", "if-no-files-found", "overwrite", "compression-level", "retention-days"})
    source = place.workspace / inputs["path"]
    made = place.artifacts.upload(inputs["name"], source, overwrite=inputs.get("overwrite") == "true")
    if made is None and inputs.get("if-no-files-found") == "error":
        raise StepFailedError(f"No files were found with the provided path: {inputs['path']}")
    return {"artifact-id": made.id} if made is not None else {}


def _download(inputs: Inputs, place: Place) -> Outputs:
    _known(inputs, {"artifact-ids", "pattern", "path"})
    destination = place.workspace / inputs["path"]
    if "pattern" in inputs:
        place.artifacts.download_pattern(inputs["pattern"], destination)
        return {}
    if not place.artifacts.has(inputs["artifact-ids"]):
        raise StepFailedError(f"No artifact with the id {inputs['artifact-ids']!r}")
    place.artifacts.download(inputs["artifact-ids"], destination)
    return {}


def _alls_green(inputs: Inputs, place: Place) -> Outputs:
    _known(inputs, {"jobs"})
    bad = {name: job["result"] for name, job in json.loads(inputs["jobs"]).items() if job["result"] != "success"}
    if bad:
        raise StepFailedError(f"Some of the required jobs did not succeed: {bad}")
    return {}


def _known(inputs: Inputs, known: set[str]) -> None:
    if unknown := inputs.keys() - known:
        raise WorkflowError(f"this harness does not know the inputs {sorted(unknown)}")


_ACTIONS: dict[str, Callable[[Inputs, Place], Outputs]] = {
    "actions/checkout": _checkout,
    "actions/setup-python": _setup_python,
    "actions/upload-artifact": _upload,
    "actions/download-artifact": _download,
    "re-actors/alls-green": _alls_green,
}
