"""Steps of a workflow as GitHub Actions runs them: a process, its environment, the files that it answers in."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

_HEREDOC = re.compile(r"^([\w-]+)<<(\S+)\n(.*?)\n\2$", re.MULTILINE | re.DOTALL)
_COMMAND = re.compile(r"^::([\w-]+)(?: ([^\n]*?))?::([^\n]*)$")
_OURS = ("HF_", "GITHUB_", "ACTIONS_", "AWQ_BOT_", "RUNNER_")


@dataclass(frozen=True)
class Ended:
    """How a step ended. commands: what the runner obeyed, as (name, properties, message)."""

    code: int
    out: str
    err: str
    summary: str
    outputs: dict[str, str]

    @property
    def commands(self) -> list[tuple[str, str, str]]:
        return obeyed(self.out)

    @property
    def annotations(self) -> list[tuple[str, str, str]]:
        return [item for item in self.commands if item[0] in ("error", "warning", "notice")]

    @property
    def everything(self) -> str:
        """All that anybody can read, but for the lines that tell the runner what to mask."""
        log = "\n".join(line for line in self.out.splitlines() if not line.startswith("::add-mask::"))
        return "\n".join([log, self.err, self.summary, *self.outputs.values()])


@dataclass(frozen=True)
class Runner:
    """A job's machine. variables: what every step sees."""

    root: Path
    variables: Mapping[str, str] = field(default_factory=dict)

    def step(self, *words: str, **more: str) -> Ended:
        """`awq-bot WORDS`; more: variables of this step alone."""
        output, summary = self.root / "github-output", self.root / "github-summary"
        for path in (output, summary):
            path.write_text("")
        kept = {name: value for name, value in os.environ.items() if not name.startswith(_OURS)}
        files = {"GITHUB_OUTPUT": str(output), "GITHUB_STEP_SUMMARY": str(summary), "GITHUB_ACTIONS": "true"}
        done = subprocess.run(
            [sys.executable, "-m", "bot", *words],
            env=kept | {"OMP_NUM_THREADS": "1", "COLUMNS": "200"} | files | dict(self.variables) | more,
            cwd=self.root,
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )
        outputs = {found[1]: found[3] for found in _HEREDOC.finditer(output.read_text())}
        return Ended(done.returncode, done.stdout, done.stderr, summary.read_text(), outputs)


def obeyed(log: str) -> list[tuple[str, str, str]]:
    """Workflow commands as GitHub's runner reads them: nothing counts between stop-commands and its token."""
    found: list[tuple[str, str, str]] = []
    stopped_by = ""
    for line in log.splitlines():
        command = _COMMAND.match(line.lstrip())
        if command is None:
            continue
        name, properties, message = command[1], command[2] or "", command[3]
        if stopped_by:
            stopped_by = "" if name == stopped_by else stopped_by
        elif name == "stop-commands":
            stopped_by = message
        else:
            found.append((name, properties, message))
    return found
