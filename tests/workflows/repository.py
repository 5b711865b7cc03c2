"""A repository on GitHub, as its operator set it up, and what its Actions page shows of a run."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from tests.support.github_api.id_token import REPOSITORY
from tests.workflows.documents import ROOT, Workflow
from tests.workflows.jobs import StepRecord
from tests.workflows.reading import Reading

NAME = REPOSITORY
SHA = "0123456789abcdef0123456789abcdef01234567"


class Api(Protocol):
    """GitHub's API as the run is seen in it."""

    @property
    def url(self) -> str: ...
    def grant(self, permissions: Mapping[str, str]) -> str: ...
    def identity(self, environment: str, workflow: str) -> dict[str, str]: ...
    def start_run(self, file: str, event: str) -> int: ...
    def set_job(self, run_id: int, name: str, status: str, conclusion: str | None) -> None: ...
    def finish_run(self, run_id: int, conclusion: str) -> None: ...


@dataclass(kw_only=True)
class Repository:
    """What an operator sets up: what is checked in, variables, secrets, environments; and the machines.

    source: whose .github is read. machine: the environment of every machine; gpu_machine: what our own add.
    tools: `uses` of what every machine has already. held: concurrency groups.
    before_step: called with the names of job and step, first with no step; may raise RunnerLostError.
    started: called with each run.
    """

    reading: Reading
    api: Api
    root: Path
    checkout: Path
    machine: dict[str, str]
    gpu_machine: dict[str, str] = field(default_factory=dict)
    source: Path = ROOT
    variables: dict[str, str] = field(default_factory=dict)
    secrets: dict[str, str] = field(default_factory=dict)
    environments: dict[str, dict[str, str]] = field(default_factory=dict)
    tools: tuple[str, ...] = ("$/.github/actions/setup",)
    before_step: Callable[[str, str], None] = lambda job, step: None
    started: Callable[[Any], None] = lambda run: None
    held: set[str] = field(default_factory=set)
    folders: Iterator[int] = field(default_factory=itertools.count)


@dataclass(frozen=True, kw_only=True)
class Level:
    """A workflow as it runs: on its own, or called. prefix: the caller's name; ceiling: the rights it may give."""

    workflow: Workflow
    inputs: dict[str, Any]
    secrets: dict[str, str]
    prefix: str = ""
    ceiling: dict[str, str] | None = None

    def name(self, job: str) -> str:
        return f"{self.prefix} / {job}" if self.prefix else job


@dataclass(frozen=True, kw_only=True)
class JobRecord:
    """One job, or one leg, as GitHub shows it: with the caller's name before a called one's."""

    name: str
    result: str
    labels: tuple[str, ...] = ()
    environment: str | None = None
    permissions: dict[str, str] = field(default_factory=dict)
    steps: tuple[StepRecord, ...] = ()
    annotations: tuple[str, ...] = ()
    summary: str = ""
    outputs: dict[str, str] = field(default_factory=dict)
