"""Tables and error messages for a terminal. Built here, printed by the commands."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path

from rich import markup
from rich.console import Console
from rich.table import Table

from bot.errors import BotError
from bot.hub.settings import PreparedTarget
from bot.records import (
    CalibrationSet,
    Check,
    Estimate,
    ExpertTokens,
    Job,
    JobKind,
    JobResult,
    Plan,
    Report,
    Skip,
    SourceFigures,
    Status,
    experts_of_model,
)
from bot.redaction import redacted
from bot.text import closer, duration, one_line, percent, printable, size
from bot.watch.discovery import proposal_facts
from bot.watch.release import UP_TO_DATE
from bot.watch.sizing import gpu_class

_log = logging.getLogger("awq_bot")
_MAX_CHARS = 2000  # of a text that others wrote


class LogLines(logging.Handler):
    """Log records, printed above the progress bars; a plain stream would overwrite them."""

    def __init__(self, console: Console, level: int) -> None:
        super().__init__(level)
        self._console = console

    def emit(self, record: logging.LogRecord) -> None:
        style = "yellow" if record.levelno >= logging.WARNING else "dim"
        # Tracebacks only with --verbose.
        text = self.format(record) if self.level <= logging.DEBUG else one_line(record.getMessage(), _MAX_CHARS)
        self._console.print(text, style=style, markup=False, highlight=False, soft_wrap=True)


class Printable(logging.Formatter):
    """For a log file, which people look at in a terminal."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))


def shown(text: object) -> str:
    """Text that others wrote, on one line, without secrets, and as rich markup that says nothing but this text."""
    return markup.escape(one_line(redacted(str(text)), _MAX_CHARS))


def plan_table(plan: Plan) -> Table:
    """One row per entry: what will be done, why, and what it takes; or why not, and what to do about it."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("model", no_wrap=True)
    table.add_column("decision", no_wrap=True)
    table.add_column("why, and what it takes")
    for job in plan.jobs:
        by = f" (found by the rule on line {job.entry.line})" if job.entry.found else ""
        table.add_row(shown(job.entry.repo_id), _decision(job), shown(job.reason + by))
        if job.estimate is not None:
            table.add_row("", "", f"[dim]{_needs(job, job.estimate)}[/]")
        for warning in job.warnings:
            table.add_row("", "[yellow]warning[/]", shown(warning))
    for job in plan.deferred:
        table.add_row(shown(job.entry.repo_id), "[dim]next run[/]", shown(job.reason))
    for skip in plan.skipped:
        hint = f"\n[dim]{shown(skip.hint)}[/]" if skip.hint else ""
        table.add_row(shown(skip.entry.repo_id), _skip_word(skip), shown(skip.reason) + hint)
    for item in plan.proposals:
        table.add_row(shown(item.repo.repo_id), "[cyan]proposed[/]", shown(proposal_facts(item)))
    for note in plan.notes:
        table.add_row("", "[dim]note[/]", shown(note))
    if not table.row_count:
        table.add_row("[dim]none[/]", "", "The watchlist names no models: add one under `models`, as owner/name.")
    return table


def _decision(job: Job) -> str:
    return {
        JobKind.RELEASE: "[green]quantize[/]",
        JobKind.REFRESH: "[cyan]refresh[/]",
        JobKind.FINISH: "[cyan]finish[/]",
    }[job.kind]


def _skip_word(skip: Skip) -> str:
    if skip.reason == UP_TO_DATE:
        return "[dim]up to date[/]"
    return "[red]refused[/]" if skip.exit_code else "[yellow]hold[/]" if skip.blocked else "[dim]none[/]"


def _needs(job: Job, needs: Estimate) -> str:
    sizes = f"{size(needs.download_bytes)} → {size(needs.output_bytes)}"
    machine = f"GPU {size(needs.vram_bytes)}, RAM {size(needs.ram_bytes)}, disk {size(needs.disk_bytes)}"
    parts = [sizes, *_contents(needs), machine, f"about {duration(needs.duration_s)}", f"gpu-{gpu_class(needs)}gb"]
    if job.tensor_parallel:
        parts.append(f"tensor parallel {'/'.join(map(str, job.tensor_parallel))}")
    return ", ".join(parts)


def _contents(needs: Estimate) -> Iterator[str]:
    if needs.quantized_share:
        yield f"{percent(needs.quantized_share)} of the layers' weights quantized"
    if needs.experts:
        used = f", {needs.experts_per_token} per token" if needs.experts_per_token else ""
        yield f"{needs.experts} experts{used}"


def results_table(results: Sequence[JobResult]) -> Table:
    """One row per job: how it ended, what was lost by quantizing, and how long it took."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("model", no_wrap=True)
    table.add_column("result", overflow="fold")
    for result in results:
        table.add_row(shown(result.repo_id), _status(result))
        if result.publication is not None and result.hint:
            table.add_row("", f"[yellow]{shown(result.hint)}[/]")
        if result.report is not None or result.duration_s:
            table.add_row("", f"[dim]{_figures(result.report)}{duration(result.duration_s)}[/]")
        if result.report is not None:
            if line := experts_line(result.report.experts):
                table.add_row("", f"[dim]{line}[/]")
            for line in _task_lines(result.report):
                table.add_row("", f"[dim]task {line}[/]")
            for remark in _remarks(result.report):
                table.add_row("", f"[yellow]{remark}[/]")
    return table


def _status(result: JobResult) -> str:
    message = shown(result.message)
    published = f"{result.publication.repo_id} {result.publication.tag}" if result.publication else ""
    return {
        Status.READY: "[cyan]ready to publish[/]"
        if result.stage == "quantize"
        else "[cyan]ready[/], not published (dry run)",
        Status.PUBLISHED: f"[green]published[/] {shown(published)}",
        Status.UNCHANGED: f"[dim]already published[/] {shown(published)}",
        Status.FAILED: f"[red]failed ({result.exit_code})[/] {message}",
        Status.STOPPED: f"[yellow]stopped[/] {message}",
        Status.UNKNOWN: f"[yellow]unknown[/] {message}",
    }[result.status]


def _figures(report: Report | None) -> str:
    if report is None:
        return ""
    return (
        f"KL {report.kl_mean:.4f}, top-1 {100 * report.top1_agreement:.1f} %, "
        f"perplexity {report.perplexity_source:.2f} → {report.perplexity_quantized:.2f}, "
        f"{size(report.size_source_bytes)} → {size(report.size_quantized_bytes)}, "
    )


def experts_line(by_layer: Sequence[ExpertTokens]) -> str:
    """What calibration gave the experts of a mixture; empty for other models."""
    experts = experts_of_model(by_layer)
    return f"experts: {experts.label}" if experts else ""


def calibration_lines(calibration: CalibrationSet) -> tuple[str, ...]:
    """What of the calibration text could not be used, one line for each source that has any."""
    return tuple(f"{source.label}: {source.remarks}" for source in calibration.sources if source.remarks)


def report_table(report: Report) -> Table:
    """The figures of an evaluation."""
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_row("perplexity", f"{report.perplexity_source:.4f} → {report.perplexity_quantized:.4f}")
    table.add_row("KL to the source, mean", f"{report.kl_mean:.5f} nats per token{_closer(report)}")
    table.add_row("KL to the source, p99", f"{report.kl_p99:.5f} nats per token")
    table.add_row("same most likely token", f"{100 * report.top1_agreement:.2f} %")
    bits = f"{report.bits_per_weight:.3f} ({report.bits_per_weight_file:.3f} whole file)"
    table.add_row("bits per weight", bits)
    table.add_row("weights", f"{size(report.size_source_bytes)} → {size(report.size_quantized_bytes)}")
    # Records of version 0.1 do not say how many were predicted.
    count = f"{report.predictions:,} predicted tokens" if report.predictions else f"{report.tokens:,} tokens"
    table.add_row("measured on", f"{count} of {shown(report.text_label)}")
    if len(report.sources) > 1:
        for source in report.sources:
            losses = f"KL {source.kl_mean:.5f}{_closer(source)}, top-1 {100 * source.top1_agreement:.2f} %"
            perplexities = f"perplexity {source.perplexity_source:.4f} → {source.perplexity_quantized:.4f}"
            table.add_row("", f"{shown(source.label)}: {losses}, {perplexities}")
    for line in _task_lines(report):
        table.add_row("task", line)
    _add_served(table, report)
    for remark in _remarks(report):
        table.add_row("", f"[yellow]{remark}[/]")
    if experts := experts_of_model(report.experts):
        table.add_row("experts", experts.label)
    return table


def served_table(report: Report) -> Table:
    """How each engine that loaded the artifact compares with the evaluation."""
    table = Table(box=None, show_header=False, pad_edge=False)
    _add_served(table, report)
    return table


def _add_served(table: Table, report: Report) -> None:
    for served in report.served:
        close = f"{served.mean_difference:.4f} nats from ours on average, {served.max_difference:.4f} at most"
        made = f"{shown(served.kernel)}, {served.tokens_per_s:.1f} tokens/s on {shown(served.device)}"
        table.add_row("served with", f"{served.engine} {shown(served.version)}: {close}; {made}")


def _task_lines(report: Report) -> Iterator[str]:
    for task in report.tasks:
        recovery = "" if task.recovery is None else f", recovery {task.recovery:.1f} %"
        values = f"{task.source:.4f} → {task.quantized:.4f}{recovery}"
        yield f"{shown(task.task)}: {shown(task.metric)} {values}, {task.examples:,} examples"


def _remarks(report: Report) -> Iterator[str]:
    return (f"{shown(source.label)}: {shown(source.remarks)}" for source in report.sources if source.remarks)


def _closer(figures: Report | SourceFigures) -> str:
    compared = closer(figures.kl_mean, figures.kl_mean_rounding)
    return f" ({compared} than plain rounding, {figures.kl_mean_rounding:.5f})" if compared else ""


def targets_table(targets: tuple[PreparedTarget, ...]) -> Table:
    """Per target its visibility, what was changed, and what comes next."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("target", no_wrap=True)
    table.add_column("visibility", no_wrap=True)
    table.add_column("what was done", overflow="fold")
    for item in targets:
        table.add_row(shown(item.target), _visibility(item), _done(item))
        if item.note or item.hint:
            table.add_row("", "", f"[dim]{shown(item.note or item.hint)}[/]")
    return table


def _visibility(target: PreparedTarget) -> str:
    if target.private is None:
        return "[dim]?[/]"
    return "private" if target.private else "gated" if target.gated else "public"


def _done(target: PreparedTarget) -> str:
    if target.problem:
        return f"[red]failed ({target.exit_code})[/] {shown(target.problem)}"
    return f"[green]{shown(', '.join(target.done))}[/]" if target.done else "[dim]nothing[/]"


def checks_table(checks: tuple[Check, ...]) -> Table:
    """One row per thing that was looked at, with the fix below what failed."""
    words = {
        "ok": "[green]ok[/]",
        "warning": "[yellow]warning[/]",
        "failed": "[red]FAILED[/]",
        "unknown": "[dim]?[/]",
    }
    table = Table(box=None, header_style="bold", pad_edge=False)
    for name in ("", "what", "found"):
        table.add_column(name, overflow="fold")
    for check in checks:
        fix = f"\n[dim]{shown(check.fix)}[/]" if check.fix and check.status != "ok" else ""
        table.add_row(words[check.status], shown(check.name), shown(check.found) + fix)
    return table


def verified_in_short(checks: tuple[Check, ...]) -> tuple[Check, ...]:
    """The checks of `verify` with one line for all files that are as published."""

    def is_whole(check: Check) -> bool:
        is_about_file = check.name not in ("tag", "log", "signature") and not check.name.startswith("source ")
        return is_about_file and check.status == "ok"

    whole = sum(map(is_whole, checks))
    others = tuple(check for check in checks if not is_whole(check))
    count = "1 file is" if whole == 1 else f"{whole:,} files are"
    files = Check(name="files", status="ok", found=f"{count} as published, by sha256")
    return (files, *others) if whole else others


def hub_text(endpoint: str, token: str, root: Path, model: str) -> str:
    """A shell script that uses a local Hub, from an upload to a verified repo. It can be pasted as it is.

    model: the folder to upload.
    """
    return f"""\
# A local Hub runs at {endpoint} and keeps its repos in {root}. Ctrl-C stops it.
# Its user is bot, who may write to bot and to the organisation quantized. To use another publish_to,
# add that name to bot's "orgs" in {root}/tokens.json.

# In another terminal, point awq-bot and hf at it. It has no Xet storage.
export HF_ENDPOINT={endpoint}
export HF_TOKEN={token}
export HF_HUB_DISABLE_XET=1

# Upload a model: a folder as `hf download` gives it, with the licence in its README.md.
# A checkout of awq-bot has a small one in tests/assets/llama-tiny.
hf upload bot/my-model {model}

# Watch it. The default calibration data sets are not on this Hub, so calibrate on built-in
# text, and use only a little, so that it finishes quickly.
cat > rehearsal.yaml <<'END'
publish_to: quantized
defaults:
  calibration:
    samples: 32
    seq_len: 256
    sources: [{{builtin: prose}}, {{builtin: code}}, {{builtin: dialogue}}]
models:
  - bot/my-model
END
awq-bot check --watchlist rehearsal.yaml
awq-bot plan --watchlist rehearsal.yaml
awq-bot run --watchlist rehearsal.yaml --work rehearsal
awq-bot verify quantized/my-model-awq

# Open the published repo, with its model card, in a browser:
# {endpoint}/quantized/my-model-awq
"""


def error_text(error: BotError) -> str:
    """Rich markup: the message, and what to do next."""
    hint = f"\n[bold]hint:[/] {shown(error.hint)}" if error.hint else ""
    return f"[bold red]error:[/] {shown(error.message)}{hint}"
