"""The verbs. The only module that prints or exits: it builds adapters, calls one stage, shows what came of it."""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from types import FrameType
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console
from typer.exceptions import TyperException

import bot
from bot import pipeline, terminal
from bot.actions import verbs as actions
from bot.children import end_with_parent
from bot.doctor import check_machine
from bot.errors import BotError, EnvironmentProblem, PublishError, WatchlistError
from bot.github.environment import Actions
from bot.github.exposure import check_exposure
from bot.hub.access import check_access, check_endpoint
from bot.hub.publish import opening_note
from bot.hub.session import Hub
from bot.hub.verify import verify as verify_repo
from bot.interrupts import ended_by_ctrl_c
from bot.jobdir import JobDir
from bot.pipeline import Bench, Outcome
from bot.records import (
    Calibration,
    Check,
    Failure,
    Job,
    JobKind,
    Plan,
    Publication,
    Recipe,
    TextSource,
    WatchEntry,
    to_json,
)
from bot.text import size
from bot.watch import watchlist as watchlists
from bot.watch.plan import matrix

app = typer.Typer(
    name="awq-bot",
    invoke_without_command=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)
app.add_typer(actions.app)
out = Console(highlight=False)
err = Console(stderr=True, highlight=False)
log = logging.getLogger("awq_bot")
child_options: list[str] = []
INTERRUPTED = 130
# What tells that an extra is installed, by the names that are imported.
_EXTRAS = {
    "hub": ("starlette", "uvicorn", "jwt"),
    "quantize": ("torch", "transformers", "awq", "safetensors", "matplotlib"),
}

WatchlistOption = Annotated[Path, typer.Option("--watchlist", help="The list of models to watch.")]
WorkOption = Annotated[Path, typer.Option("--work", help="Where jobs keep their files; a disk with room.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the result as JSON, for programs.")]
JobOption = Annotated[Path, typer.Option("--job", help="The folder of one job, as `run` made it below --work.")]
MaybeJobOption = Annotated[
    Path | None, typer.Option("--job", help="The folder of one job, as `run` made it below --work.")
]
DryRunOption = Annotated[bool, typer.Option("--dry-run", help="Do everything but write to the Hub.")]


def main() -> None:
    """Run a verb; turn what went wrong into a message, a hint and an exit code."""
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        code = app(standalone_mode=False)
    except BotError as error:
        err.print(terminal.error_text(error), soft_wrap=True)
        code = error.exit_code
    except TyperException as error:
        misuse = WatchlistError(error.format_message(), hint="`awq-bot VERB --help` shows what there is to say.")
        err.print(terminal.error_text(misuse), soft_wrap=True)
        code = misuse.exit_code
    except (KeyboardInterrupt, typer.Abort):
        code = INTERRUPTED
    except BrokenPipeError:
        # The reader of our output went away; what is left to flush would fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 141
    except OSError as error:
        problem = _problem_of(error)
        err.print(terminal.error_text(problem), soft_wrap=True)
        code = problem.exit_code
    if code == INTERRUPTED:
        err.print("interrupted; run it again and it goes on from here")
        sys.stdout.flush()
        # Threads may still wait for an answer from the network, and nobody should wait for them.
        os._exit(INTERRUPTED)
    sys.exit(code)


def _interrupt(number: int, frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt


def _problem_of(error: OSError) -> EnvironmentProblem:
    """A file or a line that failed where nothing better is known of it. Where it came up goes to the log."""
    log.info("%s", error, exc_info=error)
    said = error.strerror or next(iter(str(error).splitlines()), type(error).__name__)
    return EnvironmentProblem(
        f"{error.filename}: {said}" if error.filename else said,
        hint="Check the path, its disk and who may use it; `awq-bot --verbose VERB` shows where it came up.",
    )


def _version(asked: bool) -> None:
    if asked:
        out.print(f"awq-bot {bot.__version__}")
        raise typer.Exit


@app.callback()
def options(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Say more of what is done.")] = False,
    log_file: Annotated[Path | None, typer.Option(help="Also write a log with times to this file.")] = None,
) -> None:
    """Watches models on the Hugging Face Hub and publishes measured AWQ INT4 versions of each new release.

    Start with [bold]awq-bot demo[/], which shows the whole chain on this machine. Then write a watchlist and try
    [bold]awq-bot check[/], [bold]awq-bot plan[/], [bold]awq-bot run[/].

    Reads HF_ENDPOINT (which Hub), HF_TOKEN (to read), HF_WRITE_TOKEN (to publish), or HF_OIDC_RESOURCE (to publish
    with a workflow's identity) and HF_CREATE_TOKEN (to create targets for that).
    """
    context.obj = child_options
    if context.invoked_subcommand is None:
        out.print(context.get_help(), markup=False)
        raise typer.Exit
    log.setLevel(logging.DEBUG if verbose else logging.INFO)
    log.propagate = False
    for handler in tuple(log.handlers):  # of an earlier call in this process
        log.removeHandler(handler)
        handler.close()
    log.addHandler(terminal.LogLines(err, logging.DEBUG if verbose else logging.WARNING))
    if log_file is not None:
        log.addHandler(_log_file_handler(log_file))
        child_options.extend(("--log-file", str(log_file.resolve())))
    if verbose:
        child_options.append("--verbose")


def _log_file_handler(path: Path) -> logging.Handler:
    try:
        handler = logging.FileHandler(path)
    except OSError as error:
        raise WatchlistError(
            f"--log-file {path}: {error.strerror}", hint="Name a file, in a folder that is there."
        ) from None
    handler.setFormatter(logging.Formatter("%(asctime)s %(process)d %(levelname)s %(message)s"))
    return handler


# --- the chain ----------------------------------------------------------------------------------------------


@app.command()
def check(watchlist: WatchlistOption = Path("watchlist.yaml")) -> None:
    """Check the watchlist: every mistake with its line. No network.

    Example: [bold]awq-bot check --watchlist watchlist.yaml[/]
    """
    entries = watchlists.load(watchlist)
    out.print(f"{watchlist}: {len(entries)} models, no mistakes")
    for entry in entries:
        out.print(f"  {entry.repo_id} → {entry.target}", markup=False)


@app.command()
def plan(
    watchlist: WatchlistOption = Path("watchlist.yaml"),
    as_json: JsonOption = False,
    as_matrix: Annotated[
        bool, typer.Option("--matrix", help="Print the matrix for GitHub Actions, as JSON.")
    ] = False,
) -> None:
    """Show what is new, what each job needs, and why the rest is left alone. Downloads no weights.

    Example: [bold]awq-bot plan --json | jq '.jobs[].reason'[/]
    """
    made = _plan(watchlist, only=None)
    if as_matrix:
        _print_raw(json.dumps(matrix(made)))
    elif as_json:
        _print_raw(to_json(made))
    else:
        out.print(terminal.plan_table(made))


@app.command()
def run(
    watchlist: WatchlistOption = Path("watchlist.yaml"),
    only: Annotated[str | None, typer.Option("--only", metavar="REPO_ID", help="One model of the list.")] = None,
    work: WorkOption = Path("work"),
    dry_run: DryRunOption = False,
) -> None:
    """Plan, then do it: pull, quantize, evaluate, card and publish for each new release.

    A model that fails does not stop the others; the exit code is that of the first failure. Running it again goes
    on where it stopped, and does nothing when there is nothing to do.

    Example: [bold]awq-bot run --only Qwen/Qwen3-4B --dry-run[/]
    """
    made = _plan(watchlist, only=only)
    err.print(terminal.plan_table(made))
    if any(job.kind is not JobKind.FINISH for job in made.jobs):
        # Before gigabytes are pulled for a child process that could not start.
        _needs_extra("quantize")
    outcomes = []
    for number, job in enumerate(made.jobs, 1):
        err.rule(f"[bold]{number} of {len(made.jobs)}[/]  {job.entry.repo_id} → {job.entry.target}", align="left")
        with terminal.Bars(err) as bars:
            outcome = _run_job(_bench(work, watchlist.parent, bars), job, dry_run=dry_run)
        outcomes.append(outcome)
        if outcome.error is not None:
            err.print(terminal.error_text(outcome.error), soft_wrap=True)
    for skip in made.skipped:
        if skip.exit_code:
            refusal = BotError(f"{skip.entry.repo_id}: {skip.reason}", hint=skip.hint)
            err.print(terminal.error_text(refusal), soft_wrap=True)
    if outcomes:
        out.print(terminal.outcome_table(outcomes))
    else:
        out.print("nothing to do")
    raise typer.Exit(_first_failure(made, outcomes))


def _run_job(bench: Bench, job: Job, *, dry_run: bool) -> Outcome:
    """As `pipeline.run_job`, but that a fault of ours is an outcome too: the other models need not wait for us."""
    try:
        return pipeline.run_job(bench, job, dry_run=dry_run)
    except BrokenPipeError:
        raise
    except Exception as error:
        log.exception("%s: unexpected %s", job.entry.repo_id, type(error).__name__)
        fault = f"{job.entry.repo_id}: unexpected {type(error).__name__}: {error}"
        return Outcome(job=job, error=BotError(fault, hint="A fault of the bot: please report it, with the log."))


def _first_failure(made: Plan, outcomes: list[Outcome]) -> int:
    refused = [skip.exit_code for skip in made.skipped if skip.exit_code]
    failed = [outcome.error.exit_code for outcome in outcomes if outcome.error is not None]
    return next(iter([*failed, *refused]), 0)


# --- one stage each -----------------------------------------------------------------------------------------


@app.command()
def pull(job: JobOption, watchlist: WatchlistOption = Path("watchlist.yaml")) -> None:
    """Stage 1 of a job: fetch the source at its pinned commit, and the calibration files."""
    with terminal.Bars(err) as bars:
        weights = pipeline.pull(_bench(job.parent, watchlist.parent, bars), JobDir(job))
    out.print(f"{len(weights.files)} files of {weights.sha[:8]} in {job / weights.folder}", markup=False)


@app.command()
def quantize(
    job: MaybeJobOption = None,
    source: Annotated[Path | None, typer.Option(help="A model folder, as downloaded from the Hub.")] = None,
    destination: Annotated[
        Path | None,
        typer.Option(
            "--out", help="The AWQ folder to write. Replaces an earlier one of the same model, and nothing else."
        ),
    ] = None,
    calibration: Annotated[
        Path | None, typer.Option(help="Text to calibrate on: txt, jsonl or parquet. Default: built-in text.")
    ] = None,
    samples: Annotated[int, typer.Option(min=1, help="Blocks of calibration tokens.")] = 128,
    seq_len: Annotated[int, typer.Option(min=1, help="Tokens in a block.")] = 512,
    group_size: Annotated[int, typer.Option(help="Input channels that share a scale: 32, 64 or 128.")] = 128,
    seed: Annotated[int, typer.Option(min=0, help="Draws the calibration blocks.")] = 0,
    search: Annotated[str, typer.Option(help="gram, or awq: AutoAWQ's own, slower and less exact.")] = "gram",
    as_json: JsonOption = False,
) -> None:
    """Stage 2 of a job, or a local folder in and a complete AWQ folder out. No Hub, no watchlist.

    Example: [bold]awq-bot quantize --source ./Qwen3-4B --out ./Qwen3-4B-awq[/]
    """
    if job is None and (source is None or destination is None):
        raise WatchlistError("quantize what?", hint="Give --source and --out, or --job.")
    if group_size not in (32, 64, 128):
        raise WatchlistError(f"--group-size {group_size}", hint="Servers read 32, 64 and 128.")
    if search not in ("gram", "awq"):
        raise WatchlistError(f"--search {search}", hint="It is gram or awq.")
    text = TextSource(builtin="stdlib") if calibration is None else TextSource(file=str(calibration.resolve()))
    with _child(job, "quantize"):
        with _loading_torch():
            from bot.torch_stages import quantizing
        with terminal.Bars(err) as bars:
            if job is not None:
                made = quantizing.quantize_job(JobDir(job), bars)
            else:
                assert source is not None
                assert destination is not None
                made = quantizing.quantize_folder(
                    source,
                    destination,
                    recipe=Recipe(group_size=group_size, search=search),
                    calibration=Calibration(samples=samples, seq_len=seq_len, seed=seed, sources=(text,)),
                    texts=Path(),
                    trust_remote_code=False,
                    progress=bars,
                )
    if as_json:
        _print_raw(to_json(made))
    else:
        out.print(f"{made.quantized_parameters:,} weights at {made.bits_per_weight:.2f} bits each", markup=False)


@app.command()
def evaluate(
    job: MaybeJobOption = None,
    source: Annotated[Path | None, typer.Option(help="The model folder it was made of.")] = None,
    quantized: Annotated[Path | None, typer.Option(help="The AWQ folder.")] = None,
    text: Annotated[
        Path | None, typer.Option(help="Text to measure on. Default: text that calibration never sees.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Stage 3 of a job, or two folders compared: perplexity, KL divergence, top-1 agreement, bits per weight.

    Example: [bold]awq-bot evaluate --source ./Qwen3-4B --quantized ./Qwen3-4B-awq --json[/]
    """
    if job is None and (source is None or quantized is None):
        raise WatchlistError("evaluate what?", hint="Give --source and --quantized, or --job.")
    with _child(job, "evaluate"):
        with _loading_torch():
            from bot.torch_stages import evaluating
        with terminal.Bars(err) as bars:
            if job is not None:
                report = evaluating.evaluate_job(JobDir(job), bars)
            else:
                assert source is not None
                assert quantized is not None
                report = evaluating.evaluate_folder(
                    source, quantized, text=text, trust_remote_code=False, progress=bars
                )
    if as_json:
        _print_raw(to_json(report))
    else:
        out.print(terminal.report_table(report))


@app.command()
def card(job: JobOption) -> None:
    """Stage 4 of a job: write its model card and provenance."""
    pipeline.card(JobDir(job))
    out.print(str(job / "card" / "README.md"), markup=False)


@app.command()
def publish(job: JobOption, dry_run: DryRunOption = False) -> None:
    """Stage 5 of a job: publish it. Does nothing when it is published already."""
    with terminal.Bars(err) as bars:
        bench = _bench(job.parent, Path(), bars)
        if dry_run:
            files = pipeline.to_be_published(JobDir(job))
            for file in files:
                out.print(f"{size(file.size_bytes):>10}  {file.path}", markup=False)
            if not files:
                out.print("nothing: it is published already")
            return
        publication = pipeline.publish(bench, JobDir(job))
    out.print(_published_line(publication), markup=False)
    if note := opening_note(JobDir(job).job, publication):
        err.print(note, markup=False)


@app.command(hidden=True)
def refresh(job: JobOption) -> None:
    """What a refresh job runs as a child: upstream's small files, tried and put as they are published."""
    with _child(job, "refresh"):
        with _loading_torch():
            from bot.torch_stages import refreshing
        refreshing.refresh_job(JobDir(job))


def _published_line(publication: Publication) -> str:
    return f"{publication.url} at {publication.tag}" + ("" if publication.new else " (was there already)")


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
        _print_raw(to_json(targets))
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
        _print_raw(to_json(checks))
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
    _needs_extra("hub")
    from bot.hub.local import LocalHub, serve

    def announce(running: LocalHub) -> None:
        _print_raw(terminal.hub_text(running.endpoint, running.token(), root))
        sys.stdout.flush()

    serve(root, port, on_start=announce)


@app.command()
def demo(
    root: Annotated[Path, typer.Option(help="Where the demo keeps its Hub and its jobs.")] = Path("demo"),
) -> None:
    """The whole chain on this machine, with two tiny trained models and a Hub of its own. A few minutes."""
    _needs_extra("hub")
    _needs_extra("quantize")
    from bot.demo import run_demo

    run_demo(root, out)


# --- what the verbs share -----------------------------------------------------------------------------------


def _plan(watchlist: Path, *, only: str | None) -> Plan:
    entries = watchlists.select(watchlists.load(watchlist), only, path=watchlist)
    return pipeline.plan(Hub.from_environment(), entries)


def _bench(work: Path, files: Path, bars: terminal.Bars) -> Bench:
    return Bench(
        hub=Hub.from_environment(), work=work, files=files, progress=bars, child_options=tuple(child_options)
    )


class _child:  # noqa: N801 - used as a with statement's verb
    """What fails in a child process is written down for the one that started it. On plain folders nothing is."""

    def __init__(self, job: Path | None, stage: str) -> None:
        self._job, self._stage = job, stage

    def __enter__(self) -> None:
        end_with_parent()

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        problem = _problem_of(error) if isinstance(error, OSError) else error
        if not isinstance(problem, BotError):
            return
        # A folder without a job is one that somebody mistyped.
        if self._job is not None and (self._job / "job.json").is_file():
            code, message, hint = problem.exit_code, problem.message, problem.hint
            JobDir(self._job).store(Failure(stage=self._stage, exit_code=code, message=message, hint=hint))
            if "AWQ_BOT_PARENT" in os.environ:
                # The one that started us says it, once.
                raise typer.Exit(code) from None
        raise problem from None


@contextmanager
def _loading_torch() -> Iterator[None]:
    """Around the import of what needs torch. Raises EnvironmentProblem where it is not installed."""
    # transformers asks the Hub for what it misses in a folder.
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    _needs_extra("quantize")
    with ended_by_ctrl_c():
        yield


def _needs_extra(extra: str) -> None:
    for module in _EXTRAS[extra]:
        if find_spec(module) is None:
            hint = f"In a checkout of awq-bot: pip install -c constraints.txt '.[{extra}]'"
            raise EnvironmentProblem(f"{module} is not installed", hint=hint)


def _print_raw(text: str) -> None:
    sys.stdout.write(text.rstrip("\n") + "\n")
