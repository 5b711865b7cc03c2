"""One `run:` step, in bash, with the files through which it talks to GitHub."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.support.workflow_steps import ANNOTATIONS, read_log, step_outputs
from tests.workflows.interpreter.parser import WorkflowError

_SHELLS = {None: ("bash", "-e"), "bash": ("bash", "--noprofile", "--norc", "-eo", "pipefail")}
_SUMMARY_LIMIT = 2**20
_PATIENCE_S = 280.0


@dataclass(frozen=True, kw_only=True)
class ScriptResult:
    """log: what everyone with read access to the repository can see."""

    exit_code: int
    log: str
    outputs: dict[str, str]
    summary: str
    annotations: list[str]


def run_script(script: str, *, shell: str | None, env: Mapping[str, str], folder: Path) -> ScriptResult:
    if shell not in _SHELLS:
        raise WorkflowError(f"shell {shell}: not known here")
    with tempfile.TemporaryDirectory() as name:
        outputs, summary, text = (Path(name) / each for each in ("outputs", "summary", "script.sh"))
        outputs.touch()
        summary.touch()
        text.write_text(script)
        done = subprocess.run(
            [*_SHELLS[shell], str(text)],
            env={**env, "GITHUB_OUTPUT": str(outputs), "GITHUB_STEP_SUMMARY": str(summary)},
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            timeout=_PATIENCE_S,
        )
        if summary.stat().st_size > _SUMMARY_LIMIT:
            raise WorkflowError("a step summary over 1 MiB is not shown")
        log, annotations = _shown(done.stdout)
        return ScriptResult(
            exit_code=done.returncode,
            log=log,
            annotations=annotations,
            outputs=step_outputs(outputs.read_text()),
            summary=summary.read_text(),
        )


def _shown(printed: str) -> tuple[str, list[str]]:
    """The log as people read it, and its annotations. A value is hidden from the line on that masks it."""
    lines: list[str] = []
    annotations: list[str] = []
    hidden: list[str] = []
    for line, command in read_log(printed):
        if command and command[0] == "add-mask":
            hidden.append(command[2])
            continue
        shown = line
        for value in hidden:
            shown = shown.replace(value, "***")
        lines.append(shown)
        annotations += [shown] if command and command[0] in ANNOTATIONS else []
    return "\n".join(lines), annotations
