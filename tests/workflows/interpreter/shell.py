"""One `run:` step, in bash, with the files through which it talks to GitHub."""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.workflows.interpreter.parser import WorkflowError

_FILES = ("GITHUB_OUTPUT", "GITHUB_STEP_SUMMARY")
_SHELLS = {None: ("bash", "-e"), "bash": ("bash", "--noprofile", "--norc", "-eo", "pipefail")}
_ANNOTATION = re.compile(r"::(error|warning|notice)[ :]")
_MASK = "::add-mask::"
_STOP = "::stop-commands::"
_SUMMARY_LIMIT = 2**20


@dataclass(frozen=True, kw_only=True)
class ScriptResult:
    """log: what everyone with read access to the repository can see."""

    exit_code: int
    log: str
    outputs: dict[str, str]
    summary: str
    annotations: list[str]


def run_script(
    script: str, *, shell: str | None, env: Mapping[str, str], folder: Path, timeout_s: float
) -> ScriptResult:
    if shell not in _SHELLS:
        raise WorkflowError(f"shell {shell}: not known here")
    with tempfile.TemporaryDirectory() as name:
        files = {each: Path(name) / each for each in _FILES}
        for path in files.values():
            path.touch()
        text = Path(name) / "script.sh"
        text.write_text(script)
        done = subprocess.run(
            [*_SHELLS[shell], str(text)],
            env={**env, **{each: str(path) for each, path in files.items()}},
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            timeout=timeout_s,
        )
        summary = files["GITHUB_STEP_SUMMARY"].read_text()
        if len(summary.encode()) > _SUMMARY_LIMIT:
            raise WorkflowError("a step summary over 1 MiB is not shown")
        log, annotations = _read_commands(done.stdout)
        return ScriptResult(
            exit_code=done.returncode,
            log=log,
            annotations=annotations,
            outputs=_assignments(files["GITHUB_OUTPUT"].read_text()),
            summary=summary,
        )


def _read_commands(printed: str) -> tuple[str, list[str]]:
    """The log as people read it, and its annotations: what the runner makes of what a step printed.

    From the line that masks a value on, the value is hidden; between stop-commands and its end, commands are
    ignored.
    """
    lines: list[str] = []
    annotations: list[str] = []
    hidden: list[str] = []
    end: str | None = None
    for line in printed.splitlines():
        if end is not None and line != f"::{end}::":
            lines.append(_hide(line, hidden))
        elif end is not None:
            end = None
        elif line.startswith(_STOP):
            end = line.removeprefix(_STOP)
        elif line.startswith(_MASK):
            hidden.append(line.removeprefix(_MASK))
        else:
            lines.append(_hide(line, hidden))
            annotations += [lines[-1]] if _ANNOTATION.match(line) else []
    return "\n".join(lines), annotations


def _hide(line: str, hidden: list[str]) -> str:
    for value in hidden:
        line = line.replace(value, "***")
    return line


def _assignments(text: str) -> dict[str, str]:
    """`name=value` lines, and `name<<MARK` … `MARK` for values of several lines."""
    found: dict[str, str] = {}
    lines = iter(text.splitlines())
    for line in lines:
        name, sign, rest = re.split("(=|<<)", line, maxsplit=1)
        if sign == "=":
            found[name] = rest
            continue
        value = []
        for each in lines:
            if each == rest:
                break
            value.append(each)
        else:
            raise WorkflowError(f"{name}: its value has no end {rest!r}")
        found[name] = "\n".join(value)
    return found
