"""The whole chain on this machine: three tiny trained models, a local Hub, the commands that people type.

Each step runs a command in a new process, and then checks on the Hub what it did.
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

from bot.cli.console import HUB_PORT
from bot.errors import BotError, EnvironmentProblem, WatchlistError
from bot.localhub import LocalHub

ASSETS = Path(__file__).parents[2] / "tests" / "assets"
MODELS = ("qwen3-tiny", "llama-tiny")
FOUND = "qwen3-moe-tiny"  # on no list, until a rule finds it
UPSTREAM, NAMESPACE = "tinylab", "quantized"
_MARKER = ".awq-bot-demo"
_MADE = ("hub", "work", "watchlist.yaml", "card.md", "assets", "site")

_WATCHLIST = f"""\
publish_to: {NAMESPACE}
defaults:
  calibration:
    samples: 16
    seq_len: 256
    sources: [{{builtin: prose}}, {{builtin: code}}, {{builtin: dialogue}}]
  # Tiny models lose more than large ones: a real model should stay far below these limits.
  gate: {{max_kl: 0.2, min_top1: 0.75, max_perplexity_ratio: 1.2}}
models:
  - {UPSTREAM}/qwen3-tiny
  - {UPSTREAM}/llama-tiny
discover:
  - {{author: {UPSTREAM}, match: "*-tiny"}}
"""


class DemoError(BotError):
    """A step of the demo did not do what it says."""


@dataclass(frozen=True, slots=True)
class Demo:
    """What the steps share."""

    hub: LocalHub
    root: Path
    token: str
    console: Console
    # On tiny models, threads cost more than they save.
    threads: int | None = 1

    @property
    def watchlist(self) -> Path:
        return self.root / "watchlist.yaml"


def run_demo(root: Path, console: Console) -> None:
    """Raises DemoError when a step did not do what it says.

    Raises EnvironmentProblem without the tiny models, WatchlistError when `root` holds other files.
    """
    if not (ASSETS / MODELS[0]).is_dir():
        raise EnvironmentProblem(
            "the demo's models are not installed", hint="Run `make demo` in a checkout of the repository."
        )
    clear_folder(root)
    with LocalHub(root / "hub") as hub:
        demo = Demo(hub, root, hub.token(), console)
        _first_release(demo)
        _nothing_to_do(demo)
        _readme_commit(demo)
        _changed_weight(demo)
        _changed_generation_config(demo)
        _third_model(demo)
        _verified(demo)
        releases = {MODELS[0]: 2, MODELS[1]: 2, FOUND: 1}
        show_page(demo, {f"{NAMESPACE}/{name}-awq": count for name, count in releases.items()})
    show_results(demo, MODELS[0])


def clear_folder(root: Path) -> None:
    """Removes what an earlier demo made. Raises WatchlistError for a folder with other files."""
    if root.exists() and not root.is_dir():
        raise WatchlistError(f"{root}: is a file", hint="Give a folder with --root.")
    marker = root / _MARKER
    if root.is_dir() and any(root.iterdir()) and not marker.is_file():
        raise WatchlistError(
            f"{root}: the folder exists and was not made by a demo", hint="Give another folder with --root."
        )
    root.mkdir(parents=True, exist_ok=True)
    marker.write_text(f"`awq-bot demo` made this folder. Each demo replaces {', '.join(_MADE)}.\n")
    for path in (root / name for name in _MADE):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def _first_release(demo: Demo) -> None:
    title(demo, "A lab releases two models")
    for name in MODELS:
        demo.hub.seed(f"{UPSTREAM}/{name}", ASSETS / name, message="First release")
        demo.console.print(f"  {UPSTREAM}/{name} is on the Hub at {demo.hub.endpoint}")
    demo.watchlist.write_text(_WATCHLIST)
    title(demo, "A maintainer adds them to the watchlist, and looks at the plan")
    demo.console.print(_WATCHLIST.rstrip(), style="dim", markup=False)
    type_command(demo, "check")
    type_command(demo, "plan")
    title(demo, "awq-bot pulls, quantizes, evaluates and publishes both")
    type_command(demo, "run", "--work", str(demo.root / "work"))
    for name in MODELS:
        expect_tags(demo, name, 1)
    show_card(demo, MODELS[0])


def _nothing_to_do(demo: Demo) -> None:
    title(demo, "An hour later, nothing is new: the plan is empty")
    expect_jobs(demo, [])


def _readme_commit(demo: Demo) -> None:
    title(demo, "The lab edits its README: a new commit, but not a new release")
    readme = demo.hub.files(f"{UPSTREAM}/{MODELS[0]}")["README.md"]
    demo.hub.seed(f"{UPSTREAM}/{MODELS[0]}", {"README.md": readme + b"\nThank you all!\n"}, message="Say thanks")
    expect_jobs(demo, [])


def _changed_weight(demo: Demo) -> None:
    title(demo, "The lab uploads improved weights: a new release, and a second tag")
    repo_id = f"{UPSTREAM}/{MODELS[0]}"
    weights = nudged(demo.hub.files(repo_id)["model.safetensors"])
    demo.hub.seed(repo_id, {"model.safetensors": weights}, message="v1.1")
    expect_jobs(demo, [repo_id])
    type_command(demo, "run", "--work", str(demo.root / "work"))
    expect_tags(demo, MODELS[0], 2)
    expect_tags(demo, MODELS[1], 1)
    expect_jobs(demo, [])


def _changed_generation_config(demo: Demo) -> None:
    title(demo, "A changed generation config: small files are published again, no GPU")
    repo_id = f"{UPSTREAM}/{MODELS[1]}"
    settings = json.loads(demo.hub.files(repo_id)["generation_config.json"]) | {"temperature": 0.5}
    content = json.dumps(settings, indent=2).encode()
    demo.hub.seed(repo_id, {"generation_config.json": content}, message="Cooler")
    expect_jobs(demo, [repo_id])
    before = demo.hub.files(f"{NAMESPACE}/{MODELS[1]}-awq")
    type_command(demo, "run", "--work", str(demo.root / "work"))
    expect_tags(demo, MODELS[1], 2)
    after = demo.hub.files(f"{NAMESPACE}/{MODELS[1]}-awq")
    changed = {path for path in before | after if before.get(path) != after.get(path)}
    if after["generation_config.json"] != content or changed & {"model.safetensors", "config.json"}:
        raise DemoError(f"expected changes in small files only, found {sorted(changed)}")


def _third_model(demo: Demo) -> None:
    title(demo, "The lab releases a third model, a mixture of experts, which is on no list: the plan proposes it")
    repo_id = f"{UPSTREAM}/{FOUND}"
    demo.hub.seed(repo_id, ASSETS / FOUND, message="First release")
    expect_proposals(demo, [repo_id])
    title(demo, "A maintainer takes it: on GitHub by merging a pull request, here by adding it")
    type_command(demo, "add", repo_id)
    type_command(demo, "run", "--work", str(demo.root / "work"))
    expect_tags(demo, FOUND, 1)
    expect_jobs(demo, [])


def _verified(demo: Demo) -> None:
    title(demo, "Anyone can verify a published repo")
    type_command(demo, "verify", f"{NAMESPACE}/{MODELS[1]}-awq")
    title(demo, "And that its card says what its files bear out")
    for name in MODELS:
        type_command(demo, "lint", f"{NAMESPACE}/{name}-awq")


def show_results(demo: Demo, name: str) -> None:
    """Where the card and the files are, once every step did what it says."""
    repo_id = f"{NAMESPACE}/{name}-awq"
    card, files = demo.root / "card.md", demo.hub.files(repo_id)
    card.write_bytes(files["README.md"])
    for path in files:
        if path.startswith("assets/"):
            (demo.root / "assets").mkdir(exist_ok=True)
            (demo.root / path).write_bytes(files[path])
    demo.console.print()
    demo.console.rule("[bold green]Every step did what it says", align="left")
    hub = f"{Path(sys.executable).parent / 'awq-bot'} hub --root {shlex.quote(str(demo.root / 'hub'))}"
    for what, where in (
        ("status page", str(demo.root / "site" / "index.html")),
        ("model card", str(card)),
        ("files of the jobs", str(demo.root / "work")),
        ("serve the Hub again", hub),
        ("then open in a browser", f"http://127.0.0.1:{HUB_PORT}/{repo_id}"),
    ):
        demo.console.print(f"  {what:24}{where}", markup=False, soft_wrap=True)


# --- steps --------------------------------------------------------------------------------------------------


def title(demo: Demo, text: str) -> None:
    demo.console.print()
    demo.console.rule(f"[bold]{text}", align="left")


def show_card(demo: Demo, name: str) -> None:
    """Its first half."""
    title(demo, "The model card on the Hub")
    card = demo.hub.files(f"{NAMESPACE}/{name}-awq")["README.md"].decode()
    demo.console.print(Markdown(card.split("## How it was made")[0].split("---\n", 2)[2]))


def show_page(demo: Demo, releases: dict[str, int]) -> None:
    """The status page, which has to show these targets with so many releases, and no others."""
    title(demo, "Where every model stands, as a page for all")
    site = demo.root / "site"
    type_command(demo, "status", "--out", str(site))
    models = json.loads((site / "status.json").read_text())["models"]
    published = {item["target"]: len(item["releases"]) for item in models if item["state"] == "published"}
    if published != releases:
        raise DemoError(f"expected the releases {releases} on the page, found {published}")


def type_command(demo: Demo, *words: str) -> None:
    """Prints a command as a person would type it, and runs it."""
    demo.console.print(f"\n[bold cyan]$ awq-bot {shlex.join(words)}[/]")
    _call(demo, words, stdout=None)


def expect_proposals(demo: Demo, repo_ids: list[str]) -> None:
    plan = expect_jobs(demo, [])
    if (found := [item["repo"]["repo_id"] for item in plan["proposals"]]) != repo_ids:
        raise DemoError(f"expected {repo_ids} to be proposed, found {found}")


def expect_jobs(demo: Demo, repo_ids: list[str]) -> dict[str, Any]:
    """Returns the plan."""
    type_command(demo, "plan")
    plan: dict[str, Any] = json.loads(_call(demo, ("plan", "--json"), stdout=subprocess.PIPE))
    found = [job["entry"]["repo_id"] for job in plan["jobs"]]
    if found != repo_ids:
        raise DemoError(f"expected jobs for {repo_ids} in the plan, found {found}")
    return plan


def expect_tags(demo: Demo, name: str, count: int) -> None:
    refs = demo.hub.refs(f"{NAMESPACE}/{name}-awq")
    tags = [ref for ref in refs if ref.startswith("refs/tags/")]
    if len(tags) != count or refs["refs/heads/main"] not in [refs[tag] for tag in tags]:
        raise DemoError(f"{name}-awq: expected {count} tags, one of them at the head of main, found {tags}")


def _call(demo: Demo, words: tuple[str, ...], *, stdout: int | None) -> str:
    command = [sys.executable, "-m", "bot", *words]
    if words[0] in ("check", "add", "plan", "run", "status"):
        command += ["--watchlist", str(demo.watchlist)]
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
    environment |= {"HF_ENDPOINT": demo.hub.endpoint, "HF_TOKEN": demo.token}
    if demo.threads is not None:
        environment.setdefault("OMP_NUM_THREADS", str(demo.threads))
    sys.stdout.flush()
    done = subprocess.run(command, env=environment, stdout=stdout, text=True, check=False)
    if done.returncode != 0:
        raise DemoError(
            f"`awq-bot {shlex.join(words)}` exited with {done.returncode}", hint="Its output is above."
        )
    return done.stdout or ""


def nudged(content: bytes) -> bytes:
    """The same safetensors file with the final norm scaled by 1.01: other weights, the same shapes."""
    length = struct.unpack("<Q", content[:8])[0]
    begin, end = json.loads(content[8 : 8 + length])["model.norm.weight"]["data_offsets"]
    start, stop = 8 + length + begin, 8 + length + end
    values = struct.unpack(f"<{(stop - start) // 2}e", content[start:stop])
    stronger = struct.pack(f"<{len(values)}e", *(value * 1.01 for value in values))
    return content[:start] + stronger + content[stop:]
