"""A repository with a watchlist, a local Hub with small models that can be planned, and GitHub's API beside it."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bot.localhub import LocalHub
from bot.records import Job, JobResult, Plan, from_json, to_json
from tests.support.factories import layer_tensors
from tests.support.github_api.server import GitHubApi
from tests.support.repos import safetensors, source_files
from tests.support.watch import BUILTIN_TEXT
from tests.support.workflow_steps import Runner, StepResult

WEIGHTS = safetensors({tensor.name: list(tensor.shape) for tensor in layer_tensors()})


@dataclass(frozen=True)
class Workspace:
    root: Path
    hub: LocalHub
    api: GitHubApi
    runner: Runner

    def seed(self, *names: str, **changed: bytes | str) -> None:
        """Models of `lab` that can be quantized, and a watchlist of just these."""
        for name in names:
            self.hub.seed(f"lab/{name}", source_files(model__safetensors=WEIGHTS, **changed))
        self.watch(*(f"lab/{name}" for name in names))

    def watch(self, *repo_ids: str) -> None:
        text = "".join(f"  - {repo_id}\n" for repo_id in repo_ids)
        (self.root / "watchlist.yaml").write_text(f"publish_to: quantized\n{BUILTIN_TEXT}models:\n{text}")

    def discover(self, *rules: str, models: Sequence[str] = ()) -> None:
        """A watchlist with these rules, each in braces, and models."""
        self.watch(*models)
        path, lines = self.root / "watchlist.yaml", "".join(f"  - {rule}\n" for rule in rules)
        listed = path.read_text() if models else path.read_text().replace("models:\n", "models: []\n")
        path.write_text(f"{listed}discover:\n{lines}")

    def verb(self, *words: str, **more: str) -> StepResult:
        """`awq-bot actions WORDS` in run 1 of watch.yml, with the token that Actions gives."""
        return self.runner.step_here("actions", *words, **self.api.environment(self.api.token()) | more)

    def plan(self, *words: str, **more: str) -> StepResult:
        return self.verb("plan", *words, **more)

    def report(self, **more: str) -> StepResult:
        return self.verb("report", **more)

    def planned(self) -> tuple[Job, ...]:
        return from_json(Plan, (self.root / "plan" / "plan.json").read_bytes()).jobs

    def leave(self, job: Job, **fields: Any) -> Path:
        """A result as a job writes it; by default quantizing failed."""
        standard: dict[str, Any] = {
            "job_id": job.job_id,
            "target": job.entry.target,
            "repo_id": job.entry.repo_id,
            "content": job.attempt_digest,
            "stage": "quantize",
            "status": "failed",
            "exit_code": 5,
            "message": f"{job.entry.repo_id}: layer 3: not finite",
            "hint": "Look at its weights.",
        }
        result = JobResult(**standard | fields)
        path = self.root / "results" / f"result-{result.stage}-{job.job_id}" / f"{job.job_id}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(to_json(result))
        return path


@contextlib.contextmanager
def open_workspace(root: Path) -> Iterator[Workspace]:
    with LocalHub(root / "hub") as hub, GitHubApi() as api:
        reader = hub.token("reader", role="read")
        runner = Runner(root, {"HF_ENDPOINT": hub.endpoint, "HF_TOKEN": reader})
        yield Workspace(root, hub, api, runner)


def rows(ended: StepResult, name: str = "quantize") -> Sequence[dict[str, Any]]:
    """The rows of a matrix that a plan gave out."""
    return list(json.loads(ended.outputs[name])["include"])
