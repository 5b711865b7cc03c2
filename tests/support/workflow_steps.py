"""Steps of a workflow as GitHub Actions runs them: a process, its environment, the files that it answers in."""

from __future__ import annotations

import contextlib
import io
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from unittest.mock import patch

import pytest

# Typer decides on colours for good when this is imported, and takes GITHUB_ACTIONS for a terminal.
import typer.rich_utils  # noqa: F401 - for what importing it does

from bot.cli import app

_HEREDOC = re.compile(r"^([\w-]+)<<(\S+)\n(.*?)\n\2$", re.MULTILINE | re.DOTALL)
_COMMAND = re.compile(r"^::([\w-]+)(?: ([^\n]*?))?::([^\n]*)$")
# Name, properties, message.
Command = tuple[str, str, str]
ANNOTATIONS = ("error", "warning", "notice")
_OURS = ("HF_", "GITHUB_", "ACTIONS_", "AWQ_BOT_", "RUNNER_")


@dataclass(frozen=True)
class StepResult:
    """How a step ended. commands: those that the runner executes."""

    code: int
    out: str
    err: str
    summary: str
    outputs: dict[str, str]

    @property
    def commands(self) -> list[Command]:
        return workflow_commands(self.out)

    @property
    def annotations(self) -> list[Command]:
        return [item for item in self.commands if item[0] in ANNOTATIONS]

    @property
    def everything(self) -> str:
        """All output except the commands that mask values."""
        log = "\n".join(line for line in self.out.splitlines() if not line.startswith("::add-mask::"))
        return "\n".join([log, self.err, self.summary, *self.outputs.values()])


@dataclass(frozen=True)
class Runner:
    """A job's machine. variables: what every step sees."""

    root: Path
    variables: Mapping[str, str] = field(default_factory=dict)

    def step(self, *words: str, **more: str) -> StepResult:
        """`awq-bot WORDS`; more: variables of this step alone."""
        environment = self._environment(more)
        done = subprocess.run(
            [sys.executable, "-m", "bot", *words],
            env=environment,
            cwd=self.root,
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )
        return self._ended(done.returncode, done.stdout, done.stderr)

    def step_here(self, *words: str, **more: str) -> StepResult:
        """The same in this process, which is quicker; for verbs that start no child."""
        out, err = io.StringIO(), io.StringIO()
        with (
            patch.dict(os.environ, self._environment(more), clear=True),
            patch("sys.argv", ["awq-bot", *words]),
            patch("signal.signal"),
            contextlib.chdir(self.root),
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
            pytest.raises(SystemExit) as ended,
        ):
            app.main()
        code = ended.value.code
        return self._ended(code if isinstance(code, int) else 0, out.getvalue(), err.getvalue())

    def _environment(self, more: Mapping[str, str]) -> dict[str, str]:
        for path in (self._output, self._summary):
            path.write_text("")
        kept = {name: value for name, value in os.environ.items() if not name.startswith(_OURS)}
        files = {"GITHUB_OUTPUT": str(self._output), "GITHUB_STEP_SUMMARY": str(self._summary)}
        ours = {"OMP_NUM_THREADS": "1", "COLUMNS": "200", "GITHUB_ACTIONS": "true"}
        return kept | ours | files | dict(self.variables) | dict(more)

    def _ended(self, code: int, out: str, err: str) -> StepResult:
        return StepResult(code, out, err, self._summary.read_text(), step_outputs(self._output.read_text()))

    @property
    def _output(self) -> Path:
        return self.root / "github-output"

    @property
    def _summary(self) -> Path:
        return self.root / "github-summary"


def workflow_commands(log: str) -> list[Command]:
    return [command for _, command in read_log(log) if command is not None]


def read_log(log: str) -> Iterator[tuple[str, Command | None]]:
    """Each line with its command, as GitHub's runner reads it: none between stop-commands and its token."""
    stopped_by = ""
    for line in log.splitlines():
        found = _COMMAND.match(line.lstrip())
        command = (found[1], found[2] or "", found[3]) if found else None
        if command and command[0] == (stopped_by or "stop-commands"):
            stopped_by = "" if stopped_by else command[2]
        else:
            yield line, None if stopped_by else command


def step_outputs(text: str) -> dict[str, str]:
    """Of the file GITHUB_OUTPUT, in the form that allows values of several lines."""
    rest = _HEREDOC.sub("", text).strip()
    assert not rest, rest
    return {found[1]: found[3] for found in _HEREDOC.finditer(text)}
