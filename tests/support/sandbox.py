"""A Hub with upstream models, a watchlist, a folder to work in, and the command line as people call it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bot.hub.session import Hub
from bot.jobs import pipeline
from bot.localhub import LocalHub
from bot.records import to_json
from bot.watch import watchlist as watchlists

ASSETS = Path(__file__).parents[1] / "assets"
MODELS = ("qwen3-tiny", "llama-tiny")
GATE = "{max_kl: 0.3, min_top1: 0.6, max_perplexity_ratio: 1.4}"
PATIENCE_S = 240.0
_KEPT = {"quantized", "quantized.json", "report.json", "card"}

# A trained model's name -> its job folder, made by `quantize_once`.
Quantized = Callable[[str], Path]


@dataclass(frozen=True)
class Sandbox:
    hub: LocalHub
    root: Path

    @property
    def jobs(self) -> list[Path]:
        return sorted(path for path in (self.root / "work").glob("*") if path.is_dir())

    def environment(self, token: str | None = None) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
        ours = {"HF_ENDPOINT": self.hub.endpoint, "HF_TOKEN": token or self.hub.token()}
        return kept | ours | {"OMP_NUM_THREADS": "1", "COLUMNS": "200"}

    def start(self, *words: str, token: str | None = None) -> subprocess.Popen[str]:
        """In a new process group, as a shell starts it."""
        return subprocess.Popen(
            [sys.executable, "-m", "bot", *words],
            env=self.environment(token),
            cwd=self.root,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def call(self, *words: str, token: str | None = None) -> subprocess.CompletedProcess[str]:
        with self.start(*words, token=token) as process:
            out, err = process.communicate(timeout=PATIENCE_S)
        return subprocess.CompletedProcess(words, process.returncode, out, err)

    def plan(self) -> dict[str, Any]:
        """What `plan --json` prints; made in this process, which is quicker."""
        hub = Hub(self.hub.endpoint, self.hub.token(), self.hub.token())
        return dict(json.loads(to_json(pipeline.plan(hub, watchlists.load(self.root / "watchlist.yaml")))))

    def prepare(self, quantized: Quantized) -> None:
        """Put the results of quantizing and measuring into the folders of the planned jobs of trained models."""
        for job in self.plan()["jobs"]:
            name = job["entry"]["repo_id"].partition("/")[2]
            shutil.copytree(quantized(name), self.root / "work" / job["job_id"], dirs_exist_ok=True)
        self.hub.clear_requests()

    def stop_when(
        self, happened: Callable[[], bool], number: signal.Signals, *words: str
    ) -> subprocess.CompletedProcess[str]:
        """Start a verb, wait for something, send the signal to all of its processes; how it ended."""
        with self.start(*words) as process:
            wait_for(lambda: happened() or process.poll() is not None)
            assert process.poll() is None, process.communicate()
            os.killpg(process.pid, number)
            out, err = process.communicate(timeout=PATIENCE_S)
        return subprocess.CompletedProcess(words, process.returncode, out, err)

    def copy_to(self, root: Path) -> Sandbox:
        """The same sandbox elsewhere, its Hub not started yet. This one's Hub must be at rest."""
        shutil.copytree(self.root, root, ignore=shutil.ignore_patterns("server.lock", ".lock"))
        return Sandbox(LocalHub(root / "hub"), root)


# Names of stages -> a sandbox in which they have not run.
SandboxBefore = Callable[..., Sandbox]


def watchlist(*names: str, gate: str = GATE) -> str:
    """Of models of `lab`, calibrated on little text."""
    calibration = "{samples: 16, seq_len: 256, sources: [{builtin: stdlib}]}"
    head = f"publish_to: quantized\ndefaults:\n  calibration: {calibration}\n  gate: {gate}\nmodels:\n"
    return head + "".join(f"  - lab/{name}\n" for name in names)


def build_sandbox(root: Path, *, models: tuple[str, ...] = MODELS) -> Sandbox:
    """Its Hub is not started yet."""
    root.mkdir(parents=True, exist_ok=True)
    (root / "watchlist.yaml").write_text(watchlist(*models))
    sandbox = Sandbox(LocalHub(root / "hub"), root)
    for name in models:
        sandbox.hub.seed(f"lab/{name}", ASSETS / name)
    return sandbox


def quantize_once(name: str, root: Path) -> Path:
    """A trained model's job as quantizing and measuring leave its folder. Made for the first who asks."""
    made = root / "made"
    if not made.exists():
        sandbox = build_sandbox(root / "sandbox", models=(name,))
        with sandbox.hub:
            done = sandbox.call("run", "--dry-run")
            assert done.returncode == 0, done.stderr
        [folder] = sandbox.jobs
        keep = shutil.ignore_patterns(*{path.name for path in folder.iterdir()} - _KEPT)
        shutil.copytree(folder, made, ignore=keep)
    return made


def recorded_files(job: Path) -> Any:
    """Path, size and hash of all that quantizing made, as a job's folder records them."""
    return json.loads((job / "quantized.json").read_text())["record"]["files"]


def wait_for(happened: Callable[[], bool]) -> None:
    until = time.monotonic() + PATIENCE_S
    while not happened():
        assert time.monotonic() < until, "it never happened"
        time.sleep(0.01)
