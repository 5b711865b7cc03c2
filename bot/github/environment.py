"""What GitHub Actions passes to a step, and how a step answers: outputs, summary, workflow commands.

https://docs.github.com/en/actions/reference/workflows-and-actions/workflow-commands
"""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from bot.errors import EnvironmentProblem
from bot.files import disk_errors
from bot.records import WorkflowRun
from bot.redaction import known_secrets, redacted
from bot.text import printable

DEFAULT_API = "https://api.github.com"
DEFAULT_SERVER = "https://github.com"
MAX_OUTPUT_BYTES = 1_000_000  # GitHub's limit for the outputs of a job
MAX_SUMMARY_BYTES = 2**20  # GitHub's limit for the summary of a step
_CUT = "\n\n*The rest is cut: a summary holds 1 MiB. All of it is in the log.*\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class Actions:
    """The run of a workflow. In a person's terminal `inside` is false and most of this is empty.

    workflow: the file's name, `watch.yml`. ref: such as refs/heads/main. token: for the API; never printed.
    """

    inside: bool = False
    api_url: str = DEFAULT_API
    server_url: str = DEFAULT_SERVER
    token: str | None = field(default=None, repr=False)
    repository: str = ""
    run_id: str = ""
    run_attempt: str = "1"
    workflow: str = ""
    workflow_ref: str = ""
    sha: str = ""
    ref: str = ""
    event_name: str = ""
    event_path: Path | None = None
    output: Path | None = None
    summary: Path | None = None

    @classmethod
    def from_environment(cls) -> Actions:
        def variable(name: str) -> str:
            return os.environ.get(name, "").strip()

        return cls(
            inside=variable("GITHUB_ACTIONS") == "true",
            api_url=(variable("GITHUB_API_URL") or DEFAULT_API).rstrip("/"),
            server_url=(variable("GITHUB_SERVER_URL") or DEFAULT_SERVER).rstrip("/"),
            token=variable("GITHUB_TOKEN") or None,
            repository=variable("GITHUB_REPOSITORY"),
            run_id=variable("GITHUB_RUN_ID"),
            run_attempt=variable("GITHUB_RUN_ATTEMPT") or "1",
            workflow=variable("GITHUB_WORKFLOW_REF").partition("@")[0].rpartition("/")[2],
            workflow_ref=variable("GITHUB_WORKFLOW_REF"),
            sha=variable("GITHUB_SHA"),
            ref=variable("GITHUB_REF"),
            event_name=variable("GITHUB_EVENT_NAME"),
            event_path=_path(variable("GITHUB_EVENT_PATH")),
            output=_path(variable("GITHUB_OUTPUT")),
            summary=_path(variable("GITHUB_STEP_SUMMARY")),
        )

    @property
    def run_url(self) -> str:
        """Empty outside a run."""
        return f"{self.server_url}/{self.repository}/actions/runs/{self.run_id}" if self.run_id else ""

    @property
    def run(self) -> WorkflowRun | None:
        """This run as provenance names it; None outside, or where GitHub's variables are not as usual."""
        if not (self.inside and self.run_id.isdecimal() and self.run_attempt.isdecimal()):
            return None
        made = WorkflowRun(
            repository=self.repository,
            run_id=int(self.run_id),
            attempt=int(self.run_attempt),
            workflow_ref=self.workflow_ref,
            sha=self.sha,
            url=f"{self.run_url}/attempts/{self.run_attempt}",
        )
        return made if made.problem is None else None

    @property
    def issues_url(self) -> str:
        return f"{self.server_url}/{self.repository}/issues"

    @property
    def pulls_url(self) -> str:
        return f"{self.server_url}/{self.repository}/pulls"

    @property
    def runs_url(self) -> str:
        """The page of this workflow's runs."""
        return f"{self.server_url}/{self.repository}/actions/workflows/{self.workflow}"

    @property
    def run_name(self) -> str:
        """Different for each attempt of a run; empty outside a run."""
        return f"{self.run_id}.{self.run_attempt}" if self.run_id else ""

    def event(self) -> dict[str, Any]:
        """The webhook payload of the event that started the run; empty if unknown."""
        try:
            content = json.loads(self.event_path.read_bytes()) if self.event_path else {}
        except (OSError, ValueError):
            return {}
        return content if isinstance(content, dict) else {}

    @property
    def is_public(self) -> bool | None:
        """Whether the repository is public; None if unknown."""
        repository = self.event().get("repository")
        private = repository.get("private") if isinstance(repository, dict) else None
        return None if private is None else private is False

    def own_pull_request(self) -> int | None:
        """The number of the pull request that started this run; None for a fork's, or if there is none.

        The token of a run for a fork cannot write.
        """
        pull = self.event().get("pull_request")
        if not isinstance(pull, dict):
            return None
        head = ((pull.get("head") or {}).get("repo") or {}).get("full_name", "")
        number = pull.get("number")
        return number if isinstance(number, int) and head == self.repository else None

    def set_outputs(self, values: Mapping[str, object]) -> None:
        """Outputs of the step, for later jobs. A value is a string or anything JSON."""
        if self.output is None:
            return
        texts = {name: _output_text(value) for name, value in values.items()}
        if sum(len(text.encode()) for text in texts.values()) > MAX_OUTPUT_BYTES:
            raise EnvironmentProblem(
                f"the outputs of this step are larger than {MAX_OUTPUT_BYTES:,} bytes",
                hint="Watch fewer models in one repository.",
            )
        _append(self.output, "".join(_heredoc(name, text) for name, text in texts.items()))

    def add_summary(self, markdown: str) -> None:
        """Append to the step's summary, cut at GitHub's limit, beyond which it would drop the whole summary."""
        if self.summary is None:
            return
        used_bytes = self.summary.stat().st_size if self.summary.exists() else 0
        _append(self.summary, _cut(redacted(markdown), MAX_SUMMARY_BYTES - used_bytes))


def _path(text: str) -> Path | None:
    return Path(text) if text else None


def _output_text(value: object) -> str:
    return redacted(
        value if isinstance(value, str) else json.dumps(value, separators=(",", ":"), ensure_ascii=False)
    )


def _heredoc(name: str, text: str) -> str:
    # Random, so that no value can end the heredoc and add another output.
    end = f"end_{secrets.token_hex(16)}"
    return f"{name}<<{end}\n{text}\n{end}\n"


def _cut(text: str, room: int) -> str:
    content = text.encode()
    if len(content) <= room:
        return text
    kept = content[: max(0, room - len(_CUT.encode()))].decode(errors="ignore")
    # Cut at a line: the note must not become part of a table row.
    return kept.rpartition("\n")[0] + _CUT if kept else ""


def _append(path: Path, text: str) -> None:
    with disk_errors(path, every=True), path.open("a", encoding="utf-8") as stream:
        stream.write(text)


Level = Literal["error", "warning", "notice"]

_LONGEST_MESSAGE = 4000  # characters; GitHub cuts at 4,096


class Commands:
    """The workflow commands of one step. All other output is kept from being read as commands.

    A model's name, or the output of a child process, may look like a command.
    """

    def __init__(self, actions: Actions) -> None:
        self._inside = actions.inside
        self._end = secrets.token_hex(16)

    def opening(self) -> Iterator[str]:
        """Tokens are masked first, so that the log shows none."""
        if self._inside:
            yield from (f"::add-mask::{_data(secret)}" for secret in known_secrets())
            yield f"::stop-commands::{self._end}"

    def annotation(
        self, level: Level, message: str, *, title: str = "", file: str = "", line: int = 0
    ) -> Iterator[str]:
        if self._inside:
            yield f"::{self._end}::"
            yield annotation(level, message, title=title, file=file, line=line)
            yield f"::stop-commands::{self._end}"

    def closing(self) -> Iterator[str]:
        if self._inside:
            yield f"::{self._end}::"


def annotation(level: Level, message: str, *, title: str = "", file: str = "", line: int = 0) -> str:
    """`::error file=…,line=…,title=…::message`, on one line, whatever is in the texts."""
    properties = {"file": file, "line": str(line) if line else "", "title": redacted(title)}
    shown = ",".join(f"{name}={_property(printable(value))}" for name, value in properties.items() if value)
    return f"::{level}{' ' + shown if shown else ''}::{_data(printable(redacted(message))[:_LONGEST_MESSAGE])}"


def _data(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")
