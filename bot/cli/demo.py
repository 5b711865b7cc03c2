"""The whole chain, really happening: two tiny trained models, a Hub on loopback, the commands that people type.

Each step runs the command line in a process of its own and then looks at the Hub. The demo fails if any of it did
not happen.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import struct
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markdown import Markdown

from bot.errors import BotError, EnvironmentProblem, WatchlistError
from bot.localhub import LocalHub

ASSETS = Path(__file__).parents[2] / "tests" / "assets"
MODELS = ("qwen3-tiny", "llama-tiny")
UPSTREAM, NAMESPACE = "tinylab", "quantized"
_MARKER = ".awq-bot-demo"
_MADE = ("hub", "work", "watchlist.yaml", "card.md")

_WATCHLIST = f"""\
publish_to: {NAMESPACE}
defaults:
  calibration: {{samples: 16, seq_len: 256, sources: [{{builtin: stdlib}}]}}
  # Tiny models have no room to spare; a real one should stay far below these.
  gate: {{max_kl: 0.2, min_top1: 0.75, max_perplexity_ratio: 1.2}}
models:
  - {UPSTREAM}/qwen3-tiny
  - {UPSTREAM}/llama-tiny
"""


class DemoError(BotError):
    """Something that the demo promised did not happen."""


@dataclass(frozen=True, slots=True)
class Stage:
    """What the steps of the demo share."""

    hub: LocalHub
    root: Path
    token: str
    console: Console

    @property
    def watchlist(self) -> Path:
        return self.root / "watchlist.yaml"


def run_demo(root: Path, console: Console) -> None:
    """Raises DemoError when a step did not do what it says, EnvironmentProblem without the tiny models.

    Raises WatchlistError when root holds anything that no demo put there.
    """
    if not (ASSETS / MODELS[0]).is_dir():
        raise EnvironmentProblem(
            "the demo's models are not here", hint="Run it in a checkout of the repository: `make demo`."
        )
    clear_stage(root)
    with LocalHub(root / "hub") as hub:
        stage = Stage(hub, root, hub.token(), console)
        _first_release(stage)
        _nothing_to_do(stage)
        _readme_commit(stage)
        _changed_weight(stage)
        _changed_generation_config(stage)
        _verified(stage)
    _goodbye(stage)


def clear_stage(root: Path) -> None:
    """A folder without what an earlier demo made. Raises WatchlistError for one that no demo made."""
    if root.exists() and not root.is_dir():
        raise WatchlistError(f"{root}: is a file", hint="Name a folder with --root.")
    marker = root / _MARKER
    if root.is_dir() and any(root.iterdir()) and not marker.is_file():
        raise WatchlistError(
            f"{root}: is there already, and no demo made it", hint="Name another folder with --root, or empty it."
        )
    root.mkdir(parents=True, exist_ok=True)
    marker.write_text(f"`awq-bot demo` made this folder, and makes these anew each time: {', '.join(_MADE)}\n")
    for path in (root / name for name in _MADE):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def _first_release(stage: Stage) -> None:
    _title(stage, "A lab releases two models")
    for name in MODELS:
        stage.hub.seed(f"{UPSTREAM}/{name}", ASSETS / name, message="First release")
        stage.console.print(f"  {UPSTREAM}/{name} is on the Hub at {stage.hub.endpoint}")
    stage.watchlist.write_text(_WATCHLIST)
    _title(stage, "A maintainer puts them on the watchlist and looks before anything is downloaded")
    stage.console.print(_WATCHLIST.rstrip(), style="dim", markup=False)
    _type(stage, "check")
    _type(stage, "plan")
    _title(stage, "The bot pulls, calibrates, quantizes, measures and publishes")
    _type(stage, "run", "--work", str(stage.root / "work"))
    for name in MODELS:
        _expect_tags(stage, name, 1)
    _title(stage, "What people see on the Hub")
    card = stage.hub.files(f"{NAMESPACE}/{MODELS[0]}-awq")["README.md"].decode()
    stage.console.print(Markdown(card.split("## How it was made")[0].split("---\n", 2)[2]))


def _nothing_to_do(stage: Stage) -> None:
    _title(stage, "An hour later: nothing new, so nothing is done")
    _expect_jobs(stage, [])


def _readme_commit(stage: Stage) -> None:
    _title(stage, "The lab edits its README: a new commit, the same model, so still nothing")
    readme = stage.hub.files(f"{UPSTREAM}/{MODELS[0]}")["README.md"]
    stage.hub.seed(f"{UPSTREAM}/{MODELS[0]}", {"README.md": readme + b"\nThank you all!\n"}, message="Say thanks")
    _expect_jobs(stage, [])


def _changed_weight(stage: Stage) -> None:
    _title(stage, "The lab uploads improved weights: one new release, a second tag beside the first")
    repo_id = f"{UPSTREAM}/{MODELS[0]}"
    weights = nudged(stage.hub.files(repo_id)["model.safetensors"])
    stage.hub.seed(repo_id, {"model.safetensors": weights}, message="v1.1")
    _expect_jobs(stage, [repo_id])
    _type(stage, "run", "--work", str(stage.root / "work"))
    _expect_tags(stage, MODELS[0], 2)
    _expect_tags(stage, MODELS[1], 1)
    _expect_jobs(stage, [])


def _changed_generation_config(stage: Stage) -> None:
    _title(stage, "The lab changes its generation config: small files are published anew, no GPU is asked for")
    repo_id = f"{UPSTREAM}/{MODELS[1]}"
    settings = json.loads(stage.hub.files(repo_id)["generation_config.json"]) | {"temperature": 0.5}
    content = json.dumps(settings, indent=2).encode()
    stage.hub.seed(repo_id, {"generation_config.json": content}, message="Cooler")
    _expect_jobs(stage, [repo_id])
    before = stage.hub.files(f"{NAMESPACE}/{MODELS[1]}-awq")
    _type(stage, "run", "--work", str(stage.root / "work"))
    _expect_tags(stage, MODELS[1], 2)
    after = stage.hub.files(f"{NAMESPACE}/{MODELS[1]}-awq")
    changed = {path for path in before | after if before.get(path) != after.get(path)}
    if after["generation_config.json"] != content or changed & {"model.safetensors", "config.json"}:
        raise DemoError(f"only small files should have changed, and these did: {sorted(changed)}")


def _verified(stage: Stage) -> None:
    _title(stage, "Anybody can hold what is published against its provenance")
    _type(stage, "verify", f"{NAMESPACE}/{MODELS[1]}-awq")


def _goodbye(stage: Stage) -> None:
    card = stage.root / "card.md"
    card.write_bytes(stage.hub.files(f"{NAMESPACE}/{MODELS[0]}-awq")["README.md"])
    stage.console.print()
    stage.console.rule("[bold green]All of it happened", align="left")
    stage.console.print(f"  a model card:       {card}", markup=False)
    stage.console.print(f"  the jobs' records:  {stage.root / 'work'}", markup=False)
    hub = f"{Path(sys.executable).parent / 'awq-bot'} hub --root {stage.root / 'hub'}"
    stage.console.print(f"  keep the Hub up:    {hub}", markup=False)


# --- steps --------------------------------------------------------------------------------------------------


def _title(stage: Stage, text: str) -> None:
    stage.console.print()
    stage.console.rule(f"[bold]{text}", align="left")


def _type(stage: Stage, *words: str) -> None:
    """Show the command as a person would type it, and run it."""
    stage.console.print(f"\n[bold cyan]$ awq-bot {shlex.join(words)}[/]")
    _call(stage, words, stdout=None)


def _expect_jobs(stage: Stage, repo_ids: list[str]) -> None:
    _type(stage, "plan")
    plan: dict[str, Any] = json.loads(_call(stage, ("plan", "--json"), stdout=subprocess.PIPE))
    found = [job["entry"]["repo_id"] for job in plan["jobs"]]
    if found != repo_ids:
        raise DemoError(f"the plan should hold {repo_ids}, and holds {found}")


def _expect_tags(stage: Stage, name: str, count: int) -> None:
    refs = stage.hub.refs(f"{NAMESPACE}/{name}-awq")
    tags = [ref for ref in refs if ref.startswith("refs/tags/")]
    if len(tags) != count or refs["refs/heads/main"] not in [refs[tag] for tag in tags]:
        raise DemoError(f"{name}-awq should have {count} tags with one on its head, and has {tags}")


def _call(stage: Stage, words: tuple[str, ...], *, stdout: int | None) -> str:
    command = [sys.executable, "-m", "bot", *words]
    if words[0] in ("check", "plan", "run"):
        command += ["--watchlist", str(stage.watchlist)]
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
    environment |= {"HF_ENDPOINT": stage.hub.endpoint, "HF_TOKEN": stage.token}
    # Models this small spend more time waiting for a second thread than computing in it.
    environment.setdefault("OMP_NUM_THREADS", "1")
    sys.stdout.flush()
    done = subprocess.run(command, env=environment, stdout=stdout, text=True, check=False)
    if done.returncode != 0:
        raise DemoError(f"`awq-bot {shlex.join(words)}` ended with {done.returncode}", hint="See above.")
    return done.stdout or ""


def nudged(content: bytes) -> bytes:
    """A safetensors file with the final norm a little stronger: other weights, the same shapes."""
    length = struct.unpack("<Q", content[:8])[0]
    begin, end = json.loads(content[8 : 8 + length])["model.norm.weight"]["data_offsets"]
    start, stop = 8 + length + begin, 8 + length + end
    values = struct.unpack(f"<{(stop - start) // 2}e", content[start:stop])
    stronger = struct.pack(f"<{len(values)}e", *(value * 1.01 for value in values))
    return content[:start] + stronger + content[stop:]
