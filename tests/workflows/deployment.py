"""The whole deployment on this machine: a Hub with upstream models, GitHub's API, a repository, a GPU runner."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from bot.hub.session import Hub
from bot.jobs import pipeline
from bot.localhub import HubError, LocalHub
from bot.watch import watchlist as watchlists
from tests.support.sandbox import ASSETS, GATE, watchlist
from tests.workflows.interpreter.api import RunsApi
from tests.workflows.interpreter.parser import WorkflowParser
from tests.workflows.interpreter.repository import Repository
from tests.workflows.interpreter.runs import Run, start

ASSET = "qwen3-tiny"
NAMESPACE = "quantized"
NVIDIA_SMI = """\
#!/bin/sh
echo "NVIDIA L4, 570.86.15, 23034"
"""


@dataclass(kw_only=True)
class Deployment:
    """volume: the disk of the GPU runner, which outlives its jobs."""

    hub: LocalHub
    api: RunsApi
    repository: Repository
    volume: Path
    quantized: Path | None = None

    def watch(self, event: str = "schedule", **payload: Any) -> Run:
        return start(self.repository, "watch.yml", event, **payload)

    def write_watchlist(self, *names: str, gate: str = GATE) -> None:
        (self.repository.checkout / "watchlist.yaml").write_text(watchlist(*names, gate=gate))

    def act_before(self, job: str, step: str, act: Callable[[], object]) -> None:
        """Do something just before a step of a job, once. An empty step: before the job starts."""
        left = [act]

        def before_step(running: str, next_step: str) -> None:
            if (running, next_step) == (job, step) and left:
                left.pop()()

        self.repository.before_step = before_step

    def is_published(self, name: str) -> bool:
        """Whether the target's head has its release's tag."""
        try:
            refs = self.hub.refs(target(name))
        except HubError:
            return False
        return any(ref.startswith("refs/tags/") and sha == refs["refs/heads/main"] for ref, sha in refs.items())

    @property
    def read_token(self) -> str:
        return self.hub.token("reader", role="read")

    @property
    def write_token(self) -> str:
        return self.hub.token("bot")

    def prepare(self) -> None:
        """Leave on the runner's disk what it quantized before it was stopped: each model as in `quantized`."""
        assert self.quantized is not None
        entries = watchlists.load(self.repository.checkout / "watchlist.yaml")
        hub = Hub(self.hub.endpoint, self.read_token)
        for job in pipeline.plan(hub, entries).jobs:
            shutil.copytree(self.quantized, self.volume / job.job_id, dirs_exist_ok=True)
        self.hub.clear_requests()


class Deploy(Protocol):
    def __call__(self, *names: str, prepared: bool = True) -> Deployment: ...


def target(name: str) -> str:
    return f"{NAMESPACE}/{name}-awq"


def quantize_job(name: str) -> str:
    """The name of a model's job as GitHub shows it."""
    return f"{target(name)} / quantize {target(name)}"


def publish_job(name: str) -> str:
    return f"{target(name)} / publish {target(name)}"


@contextlib.contextmanager
def open_deployment(
    parser: WorkflowParser, root: Path, *names: str, quantized: Path | None = None
) -> Iterator[Deployment]:
    """Watching lab/NAME for each name. quantized: a folder made by `quantize_once`, to save its minutes."""
    checkout, tools = root / "checkout", root / "tools"
    checkout.mkdir(parents=True)
    tools.mkdir()
    (tools / "nvidia-smi").write_text(NVIDIA_SMI)
    (tools / "nvidia-smi").chmod(0o755)
    with LocalHub(root / "hub") as hub, RunsApi() as api:
        for name in names:
            hub.seed(f"lab/{name}", ASSETS / ASSET)
        machine = {
            "PATH": _path(),
            "HF_ENDPOINT": hub.endpoint,
            "HF_HUB_DISABLE_XET": "1",
            "MPLCONFIGDIR": str(root.parent / "matplotlib"),
            "OMP_NUM_THREADS": "1",
            "XDG_CACHE_HOME": os.environ["XDG_CACHE_HOME"],
            "COLUMNS": "120",
        }
        repository = Repository(
            parser=parser,
            api=api,
            root=root / "runs",
            checkout=checkout,
            machine=machine,
            gpu_machine={"PATH": f"{tools}:{_path()}", "AWQ_BOT_WORK": str(root / "volume")},
        )
        made = Deployment(hub=hub, api=api, repository=repository, volume=root / "volume", quantized=quantized)
        repository.secrets["HF_TOKEN"] = made.read_token
        repository.environments["publish"] = {"HF_WRITE_TOKEN": made.write_token}
        made.write_watchlist(*names)
        if quantized is not None:
            made.prepare()
        yield made


def _path() -> str:
    return f"{Path(sys.executable).parent}:/usr/bin:/bin"


# Where pip finds packages is set by the environment of the tests.
PIP = {
    name: value for name, value in os.environ.items() if name.startswith("PIP_") or name.lower().endswith("_proxy")
}


def fresh_python(folder: Path) -> str:
    """The PATH of a machine with a new, empty Python."""
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    return f"{folder / 'bin'}:/usr/bin:/bin"
