"""A repository on GitHub as its operator set it up, and what its runs and jobs share and leave."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.support.github_api.server import REPOSITORY
from tests.workflows.interpreter.actions import Artifacts, Caches
from tests.workflows.interpreter.api import RunsApi
from tests.workflows.interpreter.documents import ROOT, Workflow
from tests.workflows.interpreter.parser import WorkflowParser

NAME = REPOSITORY
SHA = "0123456789abcdef0123456789abcdef01234567"


@dataclass(kw_only=True)
class Repository:
    """What an operator sets up: what is checked in, variables, secrets, environments; and the machines.

    source: whose .github is read. machine: the environment of every machine; gpu_machine: what our own add.
    tools: `uses` of what is left out, as every machine has it. held_groups: concurrency groups that a job holds.
    before_step: called with the names of job and step, first with no step; may raise RunnerLostError.
    started: called with each run.
    """

    parser: WorkflowParser
    api: RunsApi
    root: Path
    checkout: Path
    machine: dict[str, str]
    gpu_machine: dict[str, str] = field(default_factory=dict)
    source: Path = ROOT
    variables: dict[str, str] = field(default_factory=dict)
    secrets: dict[str, str] = field(default_factory=dict)
    environments: dict[str, dict[str, str]] = field(default_factory=dict)
    tools: tuple[str, ...] = ("$/.github/actions/setup", "$/.github/actions/sbom")
    before_step: Callable[[str, str], None] = lambda job, step: None
    started: Callable[[Any], None] = lambda run: None
    held_groups: set[str] = field(default_factory=set)
    folders: Iterator[int] = field(default_factory=itertools.count)

    def __post_init__(self) -> None:
        self.caches = Caches(self.root / "caches")


@dataclass(kw_only=True)
class RunContext:
    """What all jobs of a run share. fork: the change comes from another repository."""

    repository: Repository
    id: int
    root: Path
    workflow: Workflow
    event: str
    payload: dict[str, Any]

    def __post_init__(self) -> None:
        self.artifacts = Artifacts(self.root / "artifacts")
        pull_request = self.payload.get("pull_request")
        self.fork = pull_request is not None and pull_request["head"]["repo"]["full_name"] != NAME


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


class RunnerLostError(Exception):
    """The machine is gone: no further step, whatever its condition says."""


@dataclass(frozen=True, kw_only=True)
class StepRecord:
    """The environment and log of one `run:` step. name: with the names of the actions around it."""

    job: str
    name: str
    env: dict[str, str]
    exit_code: int
    log: str


@dataclass(kw_only=True)
class JobRecord:
    """One job as GitHub shows it: with the caller's name before a called one's."""

    name: str
    result: str = "skipped"
    labels: tuple[str, ...] = ()
    environment: str | None = None
    permissions: dict[str, str] = field(default_factory=dict)
    steps: list[StepRecord] = field(default_factory=list)
    annotations: list[str] = field(default_factory=list)
    summary: str = ""
    outputs: dict[str, str] = field(default_factory=dict)
