"""Around the chain: targets for a workflow's identity, a closer look, a Hub of one's own."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from bot.cli import terminal
from bot.cli.console import JsonOption, WatchlistOption, WorkOption, err, needs_extra, out, print_raw
from bot.cli.doctor import check_machine
from bot.errors import EnvironmentProblem, PublishError, WatchlistError
from bot.github.environment import Actions
from bot.github.runner_safety import check_exposure
from bot.hub.access import check_access, check_endpoint
from bot.hub.session import Hub
from bot.hub.verify import verify as verify_repo
from bot.jobs import pipeline
from bot.records import Check, WatchEntry, to_json
from bot.watch import watchlist as watchlists

app = typer.Typer(rich_markup_mode="rich")


@app.command("create-target")
def create_target(
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="REPO_ID", help="Models of the watchlist, or their targets. Default: all."),
    ] = None,
    watchlist: WatchlistOption = Path("watchlist.yaml"),
    as_json: JsonOption = False,
) -> None:
    """Create the targets that are not there, private; open those with a complete release as the watchlist asks.

    For publishing without a stored token (Trusted Publishing): a workflow's identity writes to a repo, and can
    neither create it nor make it public. Run it before the first release and once after it; each time it does only
    what is not done yet. Reads HF_CREATE_TOKEN, or HF_WRITE_TOKEN, or HF_TOKEN.

    Example: [bold]awq-bot create-target Qwen/Qwen3-4B[/]
    """
    entries = watchlists.load(watchlist)
    targets = pipeline.create_targets(Hub.from_environment(), _named(entries, tuple(names or ()), watchlist))
    if as_json:
        print_raw(to_json(targets))
    else:
        out.print(terminal.targets_table(targets))
    raise typer.Exit(next((item.exit_code for item in targets if item.exit_code), 0))


def _named(entries: tuple[WatchEntry, ...], names: tuple[str, ...], watchlist: Path) -> tuple[WatchEntry, ...]:
    """Those that a source or a target names; all of them without names."""
    for name in names:
        if all(name not in (entry.repo_id, entry.target) for entry in entries):
            raise WatchlistError(f"{name} is not on {watchlist}", hint="Add it there, or check its spelling.")
    return tuple(entry for entry in entries if not names or {entry.repo_id, entry.target} & set(names))


# --- looking closely ----------------------------------------------------------------------------------------


@app.command()
def verify(
    repo_id: Annotated[str, typer.Argument(metavar="REPO_ID", help="A repo that awq-bot published.")],
    revision: Annotated[str | None, typer.Option(help="A tag or commit. Default: the head of main.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Hold a published repo against its provenance: every file, its tag, and the source it names. For anybody.

    Downloads and hashes everything, keeps nothing. Exit code 7 when something differs.

    Example: [bold]awq-bot verify your-namespace/Qwen3-4B-awq[/]
    """
    with terminal.Bars(err) as bars:
        checks = verify_repo(Hub.from_environment(), repo_id, revision=revision, progress=bars)
    _show_checks(checks, as_json=as_json, bad_code=PublishError.exit_code)


@app.command()
def doctor(
    watchlist: WatchlistOption = Path("watchlist.yaml"),
    work: WorkOption = Path("work"),
    runner: Annotated[
        bool, typer.Option("--runner", help="This is a GPU runner: it needs a GPU, and no token to write.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Look for what would make a run fail: tokens, GPU, disk, memory, versions, endpoint. With cause and fix.

    On a runner also for what strangers' files could reach: credentials that write, root, Docker, pull requests.

    Exit code 8 when something would fail.

    Example: [bold]awq-bot doctor --runner --work /mnt/big-disk[/]
    """
    here = Hub.from_environment()
    endpoint = check_endpoint(here)
    checks = [endpoint]
    made = None
    if endpoint.status == "ok":
        entries = watchlists.load(watchlist) if watchlist.exists() else ()
        namespaces = sorted({entry.target.split("/")[0] for entry in entries})
        checks += check_access(here, tuple(namespaces), runner=runner)
        made = pipeline.plan(here, entries) if all(check.status != "failed" for check in checks) else None
    checks += check_machine(made, work, runner=runner)
    checks += check_exposure(Actions.from_environment(), runner=runner)
    _show_checks(tuple(checks), as_json=as_json, bad_code=EnvironmentProblem.exit_code)


def _show_checks(checks: tuple[Check, ...], *, as_json: bool, bad_code: int) -> None:
    if as_json:
        print_raw(to_json(checks))
    else:
        out.print(terminal.checks_table(checks))
    if any(check.status == "failed" for check in checks):
        raise typer.Exit(bad_code)


# --- the local Hub ------------------------------------------------------------------------------------------


@app.command()
def hub(
    root: Annotated[Path, typer.Option(help="The folder that holds its repos.")] = Path("hub"),
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8765,
) -> None:
    """Serve a Hub of your own from a folder, on this machine only: to rehearse a watchlist.

    Prints what to export so that the other verbs and `hf` use it, and how to put a model in.

    Example: [bold]awq-bot hub --root demo/hub --port 8765[/]
    """
    needs_extra("hub")
    from bot.localhub import LocalHub, serve

    def announce(running: LocalHub) -> None:
        print_raw(terminal.hub_text(running.endpoint, running.token(), root))
        sys.stdout.flush()

    serve(root, port, on_start=announce)


@app.command()
def demo(
    root: Annotated[Path, typer.Option(help="Where the demo keeps its Hub and its jobs.")] = Path("demo"),
) -> None:
    """The whole chain on this machine, with two tiny trained models and a Hub of its own. A few minutes."""
    needs_extra("hub")
    needs_extra("quantize")
    from bot.cli.demo import run_demo

    run_demo(root, out)
