"""Before and after a run: targets for Trusted Publishing, verify, doctor, clean, the local Hub."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bot.card.model_card import with_notice
from bot.cli import terminal
from bot.cli.console import (
    HUB_PORT,
    JsonOption,
    Panel,
    WatchlistOption,
    WorkOption,
    err,
    model_reference,
    needs_extra,
    out,
    print_json,
)
from bot.cli.doctor import check_machine
from bot.cli.lint import lint
from bot.cli.progress import Bars
from bot.cli.setup import clean
from bot.cli.streams import write_unchanged
from bot.errors import BotError, EnvironmentProblem, PublishError, WatchlistError
from bot.github.environment import Actions
from bot.github.runner_safety import check_exposure, check_isolation
from bot.hub.access import check_access, check_endpoint
from bot.hub.republish import publish_notice, sign_release
from bot.hub.session import Hub, environment_problems
from bot.hub.verify import verify as verify_repo
from bot.jobs import pipeline
from bot.jobs.isolation import check_children
from bot.records import Check, Signer, WatchEntry, Watchlist, read_signer
from bot.watch import watchlist as watchlists

app = typer.Typer(rich_markup_mode="rich")
_SMALL_MODEL = "tests/assets/llama-tiny"  # in a checkout


@app.command("create-target", rich_help_panel=Panel.TOOLS)
def create_target(
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="REPO_ID", help="Models or targets of the watchlist. Default: all."),
    ] = None,
    watchlist: WatchlistOption = Path("watchlist.yaml"),
    as_json: JsonOption = False,
) -> None:
    """Prepare target repos for Trusted Publishers: create them, or make them public after a release.

    A Trusted Publisher can write to a repo, but neither create it nor make it public. Run this before the first
    release, which creates the repo, private, and once after it, which sets visibility and gating. What is done
    already is left alone. Reads HF_CREATE_TOKEN, or HF_WRITE_TOKEN, or HF_TOKEN.

    Example: [bold]awq-bot create-target Qwen/Qwen3-4B[/]
    """
    hub, read = Hub.from_environment(), watchlists.read(watchlist)
    entries = pipeline.with_found(hub, read)
    targets = pipeline.create_targets(hub, _named(entries, tuple(names or ()), watchlist))
    if as_json:
        print_json(targets)
    else:
        out.print(terminal.targets_table(targets))
    raise typer.Exit(next((item.exit_code for item in targets if item.exit_code), 0))


def _named(entries: tuple[WatchEntry, ...], names: tuple[str, ...], watchlist: Path) -> tuple[WatchEntry, ...]:
    """The entries whose source or target is named; all without names."""
    for name in names:
        if all(name not in (entry.repo_id, entry.target) for entry in entries):
            raise WatchlistError(f"{name} is not on {watchlist}", hint="Add it there, or check its spelling.")
    return tuple(entry for entry in entries if not names or {entry.repo_id, entry.target} & set(names))


# --- checks ------------------------------------------------------------------------------------------------


@app.command(rich_help_panel=Panel.TOOLS)
def verify(
    repo_id: Annotated[str, typer.Argument(metavar="REPO_ID", help="A repo that awq-bot published, or its URL.")],
    revision: Annotated[str | None, typer.Option(help="A tag or commit. Default: the head of main.")] = None,
    signer: Annotated[
        str | None,
        typer.Option(
            "--require-signature",
            metavar="IDENTITY",
            help="Who must have signed it: key:SHA256, certificate:SHA256, or an OIDC identity, such as "
            "https://github.com/OWNER/NAME/.github/workflows/model.yml@refs/heads/main, or 'NAME from ISSUER'.",
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Verify a published repo: tag, log of releases, signature, files and source.

    Works on any repo that awq-bot published. Downloads and hashes every file, and keeps none. Exits with 7 when
    something differs, and when a signature that is required is missing or another.

    Example: [bold]awq-bot verify your-namespace/Qwen3-4B-awq[/]
    """
    repo = model_reference(repo_id)
    required = _signer(signer) if signer is not None else None
    with Bars(err) as bars:
        checks = verify_repo(
            Hub.from_environment(),
            repo.repo_id,
            revision=revision or repo.revision,
            progress=bars,
            signer=required,
        )
    shown = checks if as_json else terminal.verified_in_short(checks)
    _show_checks(shown, as_json=as_json, bad_code=PublishError.exit_code)


def _signer(text: str) -> Signer:
    found = read_signer(text.strip())
    if found is None:
        raise WatchlistError(
            f"--require-signature {text!r} is not an identity",
            hint="Write key:SHA256 with 64 hexadecimal digits, or an OIDC identity with ' from ISSUER'.",
        )
    return found


app.command(rich_help_panel=Panel.TOOLS)(lint)


@app.command(rich_help_panel=Panel.TOOLS)
def sign(
    repo_id: Annotated[str, typer.Argument(metavar="REPO_ID", help="A repo of yours that awq-bot published.")],
) -> None:
    """Sign a release that was published without a signature. Needed once, before `signed_by` is set.

    Verifies it first, as `verify` does. The files stay; the signature comes in a new commit with a new tag. Signs
    with AWQ_BOT_SIGNING_KEY, or with the workflow's identity where AWQ_BOT_SIGN_KEYLESS is true.

    Example: [bold]AWQ_BOT_SIGNING_KEY=key.pem awq-bot sign your-namespace/Qwen3-4B-awq[/]
    """
    with Bars(err) as bars:
        tag = sign_release(Hub.from_environment(), model_reference(repo_id).repo_id, progress=bars)
    out.print(f"{repo_id} is signed at {tag}", markup=False)


WITHDRAWN = "The source was withdrawn from the Hub by its owner. These files stay as they were published."


@app.command(rich_help_panel=Panel.TOOLS)
def notice(
    repo_id: Annotated[str, typer.Argument(metavar="REPO_ID", help="A repo of yours that awq-bot published.")],
    text: Annotated[str | None, typer.Option("--text", help="What readers of the card should know.")] = None,
    withdrawn: Annotated[
        bool, typer.Option("--withdrawn", help="Say that the source is no longer on the Hub.")
    ] = False,
    remove: Annotated[bool, typer.Option("--remove", help="Take the notice away.")] = False,
) -> None:
    """Put a notice below the title of a published card, as when its source was withdrawn.

    The card changes and nothing else, in a new commit with a new tag; earlier tags stay as they are. The notice
    stays until the next release. Needs a write token, and the key if the release is signed.

    Example: [bold]awq-bot notice your-namespace/Qwen3-4B-awq --withdrawn[/]
    """
    said = [WITHDRAWN] * withdrawn + [" ".join((text or "").split())] * (text is not None) + [""] * remove
    if len(said) != 1 or not (said[0] or remove):
        raise WatchlistError(
            "one of --text TEXT, --withdrawn and --remove is needed", hint="See `awq-bot notice --help`."
        )
    target = model_reference(repo_id).repo_id
    try:
        tag = publish_notice(Hub.from_environment(), target, said[0], edited=with_notice)
    except ValueError as error:
        raise PublishError(f"{target}: {error}", hint="See `awq-bot lint`.") from None
    out.print(f"{target} has the notice at {tag}" if said[0] else f"{target} has no notice at {tag}", markup=False)


@app.command(rich_help_panel=Panel.TOOLS)
def doctor(
    watchlist: WatchlistOption = Path("watchlist.yaml"),
    work: WorkOption = Path("work"),
    runner: Annotated[
        bool, typer.Option("--runner", help="Check a GPU runner: a GPU, and no write token.")
    ] = False,
    require_isolation: Annotated[
        bool, typer.Option("--require-isolation", help="Fail where child processes cannot be isolated.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Check tokens, GPU, disk, memory, versions, endpoint and isolation, and say how to fix what would fail.

    With --runner also what untrusted files could reach: credentials that write, root, Docker, pull requests.
    Exits with 8 when something would fail.

    Example: [bold]awq-bot doctor --runner --work /mnt/big-disk[/]
    """
    checks = [_of_environment(problem) for problem in environment_problems()]
    planned = None
    if not checks:
        here = Hub.from_environment()
        checks.append(check_endpoint(here))
    if all(check.status == "ok" for check in checks):
        read = watchlists.read(watchlist) if watchlist.exists() else Watchlist(entries=())
        publishing = [rule.publish_to for rule in read.rules if rule.mode == "publish"]
        namespaces = sorted({*(entry.target.split("/")[0] for entry in read.entries), *publishing})
        checks += check_access(here, tuple(namespaces), runner=runner)
        if all(check.status != "failed" for check in checks):
            planned = pipeline.plan(here, read.entries, read.rules)
    checks += check_machine(planned, work, runner=runner)
    trusting = planned is not None and any(job.entry.trust_remote_code for job in planned.jobs)
    checks += check_children(required=require_isolation or (runner and trusting))
    checks += check_isolation() if runner else ()
    checks += check_exposure(Actions.from_environment(), runner=runner)
    _show_checks(tuple(checks), as_json=as_json, bad_code=EnvironmentProblem.exit_code)


def _of_environment(problem: BotError) -> Check:
    return Check(name="environment", status="failed", found=problem.message, fix=problem.hint)


def _show_checks(checks: tuple[Check, ...], *, as_json: bool, bad_code: int) -> None:
    if as_json:
        print_json(checks)
    else:
        out.print(terminal.checks_table(checks))
    if any(check.status == "failed" for check in checks):
        raise typer.Exit(bad_code)


# --- the local Hub ------------------------------------------------------------------------------------------


app.command(rich_help_panel=Panel.TOOLS)(clean)


@app.command(rich_help_panel=Panel.TOOLS)
def hub(
    root: Annotated[Path, typer.Option(help="The folder for its repos.")] = Path("hub"),
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any free port.")] = HUB_PORT,
) -> None:
    """Serve a local Hub from a folder, to try a watchlist without an account.

    Only this machine can reach it. Prints the commands for another terminal: upload a model, plan, run, verify,
    and open the page of the result.

    Example: [bold]awq-bot hub --root demo/hub --port 8765[/]
    """
    needs_extra("hub")
    from bot.localhub import LocalHub, serve

    def announce(running: LocalHub) -> None:
        model = _SMALL_MODEL if Path(_SMALL_MODEL).is_dir() else "./my-model"
        write_unchanged(terminal.hub_text(running.endpoint, running.token(), root, model))

    serve(root, port, on_start=announce)


@app.command(rich_help_panel=Panel.TOOLS)
def demo(
    root: Annotated[Path, typer.Option(help="The folder for its Hub and its jobs.")] = Path("demo"),
) -> None:
    """Run everything on this machine, with two tiny models and a local Hub. A few minutes.

    Example: [bold]awq-bot demo --root /tmp/awq-bot-demo[/]
    """
    needs_extra("hub")
    needs_extra("quantize")
    from bot.cli.demo import run_demo

    run_demo(root, out)
