"""Commands `init`, `add` and `clean`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from bot.cli import terminal
from bot.cli.console import Panel, WatchlistOption, WorkOption, err, model_reference, out
from bot.errors import BotError, WatchlistError
from bot.files import write_atomic
from bot.hub.session import Hub
from bot.jobs import pipeline
from bot.jobs.cleaning import JobFolder, delete, job_folders
from bot.records import WatchEntry
from bot.text import duration, size
from bot.watch import watchlist as watchlists
from bot.watch.document import item_of, new_watchlist, schema_copy, with_model
from bot.watch.names import Reference
from bot.watch.schema import EXAMPLE_NAMESPACE, SCHEMA_FILE
from bot.watch.values import is_namespace

app = typer.Typer(rich_markup_mode="rich")


@app.command(rich_help_panel=Panel.WATCHLIST)
def init(
    publish_to: Annotated[
        str | None, typer.Option(metavar="NAMESPACE", help="Your user or organisation on the Hub.")
    ] = None,
    watchlist: WatchlistOption = Path("watchlist.yaml"),
    schema: Annotated[
        bool, typer.Option("--schema", help="Only write the schema beside the watchlist, after an update.")
    ] = False,
) -> None:
    """Write a commented watchlist to start from. Never overwrites one.

    Outside a checkout, watchlist.schema.json is written beside it: editors complete and check keys with it.
    On a terminal it asks where to publish; elsewhere it asks nothing.

    Example: [bold]awq-bot init --publish-to your-namespace[/]
    """
    if schema:
        _write_schema(watchlist)
        return
    if watchlist.exists() or watchlist.is_symlink():
        raise WatchlistError(
            f"{watchlist} already exists", hint="Add a model with `awq-bot add`, or name another --watchlist."
        )
    if publish_to is None and sys.stdin.isatty():
        publish_to = typer.prompt("User or organisation on the Hub to publish to", default=EXAMPLE_NAMESPACE)
    namespace = publish_to or EXAMPLE_NAMESPACE
    if not is_namespace(namespace):
        raise WatchlistError(
            f"{namespace!r} is not a namespace of the Hub", hint="Name a user or organisation, without a slash."
        )
    write_atomic(watchlist, new_watchlist(watchlist.absolute().parent, namespace).encode())
    out.print(f"wrote {watchlist}", markup=False)
    _write_schema(watchlist)
    if namespace == EXAMPLE_NAMESPACE:
        out.print("next: set publish_to in it to your user or organisation on the Hub")
    out.print("next: awq-bot add REPO_ID, such as awq-bot add Qwen/Qwen3-4B")


def _write_schema(watchlist: Path) -> None:
    if copy := schema_copy(watchlist.absolute().parent):
        write_atomic(copy, SCHEMA_FILE.read_bytes())
        out.print(f"wrote {watchlist.parent / copy.name}", markup=False)


# --- add ----------------------------------------------------------------------------------------------------


@app.command(rich_help_panel=Panel.WATCHLIST)
def add(
    repo_id: Annotated[
        str, typer.Argument(metavar="REPO_ID", help="owner/name, owner/name@revision, or the model's URL.")
    ],
    watchlist: WatchlistOption = Path("watchlist.yaml"),
    force: Annotated[
        bool, typer.Option("--force", help="Add it even if the plan refuses it or the Hub does not answer.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the plan; change no file.")] = False,
) -> None:
    """Add a model to the watchlist, after showing what would be done with it.

    Comments, order and layout of the file stay as they are. A model that the plan refuses is not added.

    Example: [bold]awq-bot add Qwen/Qwen3-4B[/]
    """
    model = model_reference(repo_id)
    entries = watchlists.load(watchlist)
    if listed := next((item for item in entries if item.repo_id.lower() == model.repo_id.lower()), None):
        line = f"{watchlist}:{listed.line}"
        out.print(
            f"{line}: {listed.repo_id} at {listed.revision} is listed already; nothing changed", markup=False
        )
        return
    before = watchlist.read_bytes()
    after = _added(before, model, watchlist, entries)
    code = _show_plan(watchlists.parse(after.removeprefix("\ufeff"), watchlist).entries[-1], force=force)
    if code and not force:
        err.print(f"{watchlist} is unchanged; --force adds the model anyway", markup=False)
        raise typer.Exit(code)
    if dry_run:
        out.print(f"{watchlist} would get the line `- {item_of(model)}` (dry run)", markup=False)
        return
    if watchlist.read_bytes() != before:
        raise WatchlistError(f"{watchlist} was changed while this command ran", hint="Run it again.")
    write_atomic(watchlist.resolve(), after.encode(), mode=watchlist.stat().st_mode & 0o777)
    out.print(f"added to {watchlist}: - {item_of(model)}", markup=False)


def _added(before: bytes, model: Reference, watchlist: Path, entries: tuple[WatchEntry, ...]) -> str:
    """The watchlist's new content: the same entries, and this one. Raises WatchlistError if that cannot be."""
    after = with_model(before.decode(), model)
    try:
        *kept, new = watchlists.parse(after.removeprefix("\ufeff"), watchlist).entries
    except watchlists.InvalidWatchlistError as error:
        err.print(f"{watchlist} is unchanged; with {model.repo_id} in it, it would have:", markup=False)
        raise error from None
    if len(kept) != len(entries) or new.repo_id != model.repo_id:
        raise WatchlistError(
            f"{watchlist}: its layout cannot be edited automatically",
            hint=f"Add this line under `models:` by hand: - {item_of(model)}",
        )
    return after


def _show_plan(entry: WatchEntry, *, force: bool) -> int:
    """Show what would be done with the model; the exit code is that of its refusal, or of the Hub's failure."""
    try:
        plan = pipeline.plan(Hub.from_environment(), [entry])
    except BotError as error:
        if not force:
            err.print("nothing was added; --force adds the model without a plan", markup=False)
            raise
        err.print(terminal.error_text(error), soft_wrap=True)
        return error.exit_code
    out.print(terminal.plan_table(plan))
    return next((skip.exit_code for skip in plan.skipped), 0)


# --- clean --------------------------------------------------------------------------------------------------


def clean(
    work: WorkOption = Path("work"),
    older_than: Annotated[
        float | None,
        typer.Option(metavar="DAYS", min=0, help="Folders unchanged for DAYS days, including unfinished ones."),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Delete them.")] = False,
) -> None:
    """Show old job folders and how large they are; delete them with --yes.

    Without --older-than these are the published ones. Folders in use by a running process are never deleted.

    Example: [bold]awq-bot clean --work /mnt/big-disk --older-than 30 --yes[/]
    """
    folders = job_folders(work)
    chosen = [folder for folder in folders if folder.is_old(older_than) and not folder.in_use]
    if not folders:
        out.print(f"no job folders in {work}", markup=False)
        return
    deleted = [folder for folder in chosen if yes and delete(folder)]
    out.print(_folders_table(folders, chosen, deleted))
    total = sum(folder.size_bytes for folder in chosen)
    if yes:
        out.print(f"{size(sum(folder.size_bytes for folder in deleted))} deleted in {_count(len(deleted))}")
    elif chosen:
        out.print(f"{size(total)} in {_count(len(chosen))} would be deleted; --yes deletes them")
    else:
        out.print("nothing to delete" if older_than is not None else "nothing to delete; see --older-than")


def _folders_table(folders: tuple[JobFolder, ...], chosen: list[JobFolder], deleted: list[JobFolder]) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False)
    for name in ("size", "state", "unchanged for", ""):
        table.add_column(name, no_wrap=True, justify="right" if name == "size" else "left")
    table.add_column("folder", overflow="fold")
    for folder in folders:
        word = (
            "[red]deleted[/]" if folder in deleted else "[yellow]delete[/]" if folder in chosen else "[dim]keep[/]"
        )
        state = "in use" if folder.in_use else folder.state
        table.add_row(
            size(folder.size_bytes), state, _age(folder.changed_s), word, terminal.shown(folder.path.name)
        )
    return table


def _age(seconds: float) -> str:
    days = int(seconds // (24 * 60 * 60))
    return duration(seconds) if not days else "1 day" if days == 1 else f"{days} days"


def _count(number: int) -> str:
    return "1 folder" if number == 1 else f"{number} folders"
