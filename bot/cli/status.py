"""Command `status`: where every model stands, as a table, as JSON, or as a static site."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from bot.cli.console import JsonOption, Panel, WatchlistOption, err, out, print_json
from bot.cli.terminal import shown
from bot.errors import WatchlistError
from bot.files import atomic_folder, disk_errors, refuse_link
from bot.github.environment import Actions
from bot.github.status import status_of
from bot.github.tracker import IssueTracker
from bot.hub.client import now
from bot.hub.fetch import git_blob_id
from bot.hub.session import Hub
from bot.page.site import MODELS, STATUS_JSON, TOP_LEVEL, counted, site_files
from bot.records import ModelState, ModelStatus, StatusReport, from_json
from bot.text import percent, size
from bot.watch import watchlist as watchlists

app = typer.Typer(rich_markup_mode="rich")

_URL = re.compile(r"https?://[^\s\"'<>?#]+")
_STYLES = {
    ModelState.PUBLISHED: "green",
    ModelState.PLANNED: "cyan",
    ModelState.WAITING: "yellow",
    ModelState.REFUSED: "red",
    ModelState.HELD: "yellow",
    ModelState.PROPOSED: "cyan",
}


@app.command(rich_help_panel=Panel.RUN)
def status(
    watchlist: WatchlistOption = Path("watchlist.yaml"),
    folder: Annotated[
        Path | None,
        typer.Option("--out", metavar="DIR", help="Write a static site to this folder, which it replaces."),
    ] = None,
    url: Annotated[str, typer.Option("--url", help="Where the site will be served, for its feed.")] = "",
    private: Annotated[
        bool, typer.Option("--private", help="Private models, too: for a page that only you can open.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Show where every model stands: published, planned, waiting, refused, held or proposed.

    With --out as a site: a table, a page per model with its last 20 releases, plots of their quality, a feed, and
    status.json. Site and JSON leave out what is private, or not known to be public. With GITHUB_TOKEN and
    GITHUB_REPOSITORY they have failed attempts, too. Downloads no weights and writes nothing to the Hub.

    Example: [bold]awq-bot status --out site/[/]
    """
    if url and _URL.fullmatch(url) is None:
        raise WatchlistError(f"--url {url!r} is not the address of a site", hint="It begins with https://.")
    if folder is not None:
        _check_replaceable(folder)
    report = _report(watchlist, private=private or (folder is None and not as_json))
    for note in report.notes:
        err.print(shown(note), style="yellow", soft_wrap=True)
    if folder is not None:
        _write(folder, site_files(report, url=f"{url.rstrip('/')}/" if url else ""))
    if as_json:
        print_json(report)
    elif folder is not None:
        out.print(f"{folder / 'index.html'}: {_said(report)}", markup=False, soft_wrap=True)
    else:
        out.print(_table(report))


def _report(watchlist: Path, *, private: bool) -> StatusReport:
    read = watchlists.read(watchlist)
    with IssueTracker(Actions.from_environment()) as tracker:
        base = git_blob_id(watchlist.read_bytes())
        return status_of(Hub.from_environment(), read, tracker, now=now(), base=base, private=private)


def _said(report: StatusReport) -> str:
    states = ", ".join(f"{number} {state}" for state, number in counted(report)) or "no models"
    return f"{states}; {report.left_out} not shown" if report.left_out else states


# --- the site -----------------------------------------------------------------------------------------------


def _check_replaceable(folder: Path) -> None:
    """Raises WatchlistError for a folder with anything in it that `status` did not write."""
    refuse_link(folder)
    hint = "Name a new or empty folder, or one that `awq-bot status` has made."
    if folder.exists() and not folder.is_dir():
        raise WatchlistError(f"--out {folder}: it is not a folder", hint=hint)
    found = sorted(folder.iterdir()) if folder.exists() else []
    if not found:
        return
    strange = [path for path in found if path.name not in TOP_LEVEL]
    models = folder / MODELS
    if models.is_dir():
        strange += [path for path in sorted(models.iterdir()) if path.suffix != ".html" or not path.is_file()]
    if not strange and not _is_report(folder / STATUS_JSON):
        strange = found
    if strange:
        raise WatchlistError(f"--out {folder}: {strange[0].name} is not of a site that it made", hint=hint)


def _is_report(path: Path) -> bool:
    try:
        from_json(StatusReport, path.read_bytes())
    except (OSError, ValueError):
        return False
    return True


def _write(folder: Path, files: dict[str, bytes]) -> None:
    with atomic_folder(folder.resolve()) as partial:
        for path, content in files.items():
            with disk_errors(partial / path):
                (partial / path).parent.mkdir(parents=True, exist_ok=True)
                (partial / path).write_bytes(content)


# --- the table ----------------------------------------------------------------------------------------------


def _table(report: StatusReport) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("model", no_wrap=True)
    table.add_column("state", no_wrap=True)
    table.add_column("newest release, and why")
    for model in report.models:
        style = _STYLES[model.state]
        table.add_row(shown(model.source), f"[{style}]{model.state}[/]", shown(_why(model)))
        if release := _figures(model):
            table.add_row("", "", f"[dim]{shown(release)}[/]")
        for text in filter(None, (model.hint, model.note)):
            table.add_row("", "", f"[dim]{shown(text)}[/]")
    if not report.models:
        table.add_row("[dim]none[/]", "", "The watchlist names no models: add one with awq-bot add REPO_ID.")
    return table


def _why(model: ModelStatus) -> str:
    then = f", next attempt after {model.next_attempt}" if model.next_attempt else ""
    return f"{model.reason}{then}{f' ({model.issue_url})' if model.issue_url else ''}"


def _figures(model: ModelStatus) -> str:
    release = model.newest
    if release is None:
        return ""
    number = f"{len(model.releases)}{' or more' if model.older else ''}"
    return (
        f"{model.target} {release.tag}, {release.date[:10] or 'date unknown'}: {size(release.size_bytes)}, "
        f"{release.bits_per_weight:.2f} bits, KL {release.kl_mean:.4f}, top-1 {percent(release.top1_agreement)}; "
        f"{number} {'release' if number == '1' else 'releases'}"
    )
