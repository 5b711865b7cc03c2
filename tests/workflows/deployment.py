"""The whole deployment on this machine: a Hub with upstream models, GitHub's API, a repository, a GPU runner."""

from __future__ import annotations

import contextlib
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bot import pipeline
from bot.hub.local import HubError, LocalHub
from bot.hub.session import Hub
from bot.watch import watchlist as watchlists
from tests.house import ASSETS, WATCHLIST, build_house
from tests.workflows.api import RunsApi
from tests.workflows.reading import Reading
from tests.workflows.repository import Repository
from tests.workflows.runs import Run, start

ASSET = "qwen3-tiny"
NAMESPACE = "quantized"
_KEPT = {"quantized", "quantized.json", "report.json", "card"}
_NVIDIA_SMI = """\
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

    def watch(self, event: str = "schedule", **payload: Any) -> Run:
        return start(self.repository, "watch.yml", event, **payload)

    def write_watchlist(self, *names: str, gate: str = "") -> None:
        """gate: another line of it."""
        head = [line for line in WATCHLIST.splitlines() if not line.startswith("  - ")]
        lines = [gate if gate and line.startswith("  gate:") else line for line in head]
        text = "\n".join([*lines, *(f"  - lab/{name}" for name in names), ""])
        (self.repository.checkout / "watchlist.yaml").write_text(text)

    def is_published(self, name: str) -> bool:
        """Whether the target's head has its release's tag."""
        try:
            refs = self.hub.refs(f"{NAMESPACE}/{name}-awq")
        except HubError:
            return False
        return any(ref.startswith("refs/tags/") and sha == refs["refs/heads/main"] for ref, sha in refs.items())

    @property
    def tokens(self) -> dict[str, str]:
        return {"read": self.hub.token("reader", role="read"), "write": self.hub.token("bot")}

    def prepare(self, quantized: Path) -> None:
        """Leave on the runner's disk what it quantized before it was stopped: each model as in `quantized`."""
        entries = watchlists.load(self.repository.checkout / "watchlist.yaml")
        hub = Hub(self.hub.endpoint, self.tokens["read"])
        for job in pipeline.plan(hub, entries).jobs:
            shutil.copytree(quantized, self.volume / job.job_id)
        self.hub.clear_requests()


@contextlib.contextmanager
def deployment(reading: Reading, root: Path, *names: str, quantized: Path | None = None) -> Iterator[Deployment]:
    """Watching lab/NAME for each name. quantized: a folder made by `quantize_once`, to save its minutes."""
    checkout, tools = root / "checkout", root / "tools"
    checkout.mkdir(parents=True)
    tools.mkdir()
    (tools / "nvidia-smi").write_text(_NVIDIA_SMI)
    (tools / "nvidia-smi").chmod(0o755)
    with LocalHub(root / "hub") as hub, RunsApi() as api:
        for name in names:
            hub.seed(f"lab/{name}", ASSETS / ASSET)
        repository = Repository(
            reading=reading,
            api=api,
            root=root / "runs",
            checkout=checkout,
            machine=_machine(hub, root),
            gpu_machine={"PATH": f"{tools}:{_path()}", "AWQ_BOT_WORK": str(root / "volume")},
            secrets={"HF_TOKEN": hub.token("reader", role="read")},
            environments={"publish": {"HF_WRITE_TOKEN": hub.token("bot")}},
        )
        made = Deployment(hub=hub, api=api, repository=repository, volume=root / "volume")
        made.write_watchlist(*names)
        if quantized is not None:
            made.prepare(quantized)
        yield made


def quantize_once(root: Path) -> Path:
    """A job's folder as quantizing leaves it: where the runner is stopped right after."""
    house = build_house(root / "house", models=(ASSET,))
    with house.hub:
        done = house.call("run", "--dry-run")
        assert done.returncode == 0, done.stderr
    [folder] = house.jobs
    for path in folder.iterdir():
        if path.name not in _KEPT:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    return folder


def _machine(hub: LocalHub, root: Path) -> dict[str, str]:
    return {
        "PATH": _path(),
        "HF_ENDPOINT": hub.endpoint,
        "HF_HUB_DISABLE_XET": "1",
        "MPLCONFIGDIR": str(root.parent / "matplotlib"),
        "OMP_NUM_THREADS": "1",
        "COLUMNS": "120",
    }


def _path() -> str:
    return f"{Path(sys.executable).parent}:/usr/bin:/bin"
