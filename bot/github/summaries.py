"""The pages that people read on GitHub: facts in, Markdown out. The text is in templates."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence

from bot.errors import (
    EnvironmentProblem,
    PublishError,
    QualityGateError,
    QuantizationError,
    UnsupportedModelError,
    UpstreamError,
    WatchlistError,
)
from bot.github.attempts import MAX_ATTEMPTS, format_utc
from bot.records import Attempts, Job, JobKind, JobResult, Plan, Skip, Status, experts_of_model
from bot.text import duration, one_line, render, size
from bot.watch.discovery import proposal_facts
from bot.watch.release import UP_TO_DATE
from bot.watch.sizing import gpu_class

_VERBS = {JobKind.RELEASE: "quantize", JobKind.REFRESH: "refresh", JobKind.FINISH: "finish"}
_WORDS = {
    Status.PUBLISHED: "✅ published",
    Status.UNCHANGED: "✅ already published",
    Status.FAILED: "❌ failed",
    Status.STOPPED: "⏹️ stopped",
    Status.UNKNOWN: "❔ unknown",
}
_NAMES = {
    WatchlistError.exit_code: "configuration",
    UpstreamError.exit_code: "upstream",
    UnsupportedModelError.exit_code: "unsupported",
    QuantizationError.exit_code: "quantization",
    QualityGateError.exit_code: "quality gate",
    PublishError.exit_code: "publishing",
    EnvironmentProblem.exit_code: "environment",
}
_LONGEST_TITLE = 120
_EXIT_CODES = range(2, 9)
_FRONT_MATTER = re.compile(r"\A---\n.*?\n---\n+", re.DOTALL)
_PICTURE = re.compile(r"^!\[[^\]]*\]\((?!https?:)[^)]*\)\n+", re.MULTILINE)


_FROM_ROOT = re.compile(r"\]\(/")
_BESIDE = re.compile(r"\]\(([\w.-]+)\)")


def plan_page(
    plan: Plan,
    *,
    endpoint: str,
    title: str = "Plan",
    heading: str = "Starts now",
    dry_run: bool = False,
    notes: Sequence[str] = (),
    attempts: Sequence[Attempts] = (),
    issues_url: str = "",
) -> str:
    """What is started, what waits, what is refused, each with its reason. attempts: to link their issues."""
    refused = [skip for skip in plan.skipped if skip.exit_code]
    waiting = [skip for skip in plan.skipped if skip.blocked and not skip.exit_code]
    up_to_date = [skip for skip in plan.skipped if skip.reason == UP_TO_DATE]
    return render(
        "plan_summary.md.jinja",
        title=title,
        headline=_plan_headline(plan, waiting, refused, up_to_date, dry_run=dry_run),
        heading="Would start" if dry_run else heading,
        endpoint=endpoint,
        notes=notes,
        jobs=plan.jobs,
        deferred=plan.deferred,
        waiting=waiting,
        refused=refused,
        up_to_date=up_to_date,
        proposals=plan.proposals,
        discovery=plan.notes,
        facts=proposal_facts,
        issues={skip.entry.target: 0 for skip in waiting} | {item.target: item.issue for item in attempts},
        issues_url=issues_url,
        verbs=_VERBS,
        gpu_class=gpu_class,
    )


def _plan_headline(
    plan: Plan, waiting: Sequence[Skip], refused: Sequence[Skip], up_to_date: Sequence[Skip], *, dry_run: bool
) -> str:
    if not (plan.jobs or plan.skipped or plan.deferred or plan.notes):
        return "**Nothing to do**: the watchlist names no models."
    kinds = Counter(_VERBS[job.kind] for job in plan.jobs)
    parts = [f"**{count} to {verb}**" for verb, count in kinds.items()] or ["**Nothing to do**"]
    rest = {
        "waiting": len(waiting) + len(plan.deferred),
        "refused": len(refused),
        "up to date": len(up_to_date),
        "proposed": len(plan.proposals),
    }
    parts += [f"{count} {word}" for word, count in rest.items() if count]
    return ", ".join(parts) + "." + _needs_in_all(plan) + (" A dry run: nothing is started." if dry_run else "")


def _needs_in_all(plan: Plan) -> str:
    needs = [job.estimate for job in plan.jobs if job.estimate is not None]
    if not needs:
        return ""
    time, pulled = sum(need.duration_s for need in needs), sum(need.download_bytes for need in needs)
    return f" Estimated in total: {duration(time)} of GPU time, {size(pulled)} to download."


def job_page(job: Job, result: JobResult, *, endpoint: str, card: str = "") -> str:
    """One stage of a job: its figures and its card, or the cause and the fix."""
    words = {
        Status.READY: "ready to publish",
        Status.PUBLISHED: "published",
        Status.UNCHANGED: "already published",
        Status.FAILED: f"failed ({code_name(result.exit_code)})",
    }
    return render(
        "job_summary.md.jinja",
        job=job,
        result=result,
        word=words[result.status],
        endpoint=endpoint,
        experts=experts_of_model(result.report.experts) if result.report else None,
        card=card_preview(card, endpoint=endpoint, target=job.entry.target, tag=job.tag),
    )


def card_preview(card: str, *, endpoint: str, target: str, tag: str) -> str:
    """A model card as part of another page: no front matter, absolute links, no picture that is not on the Hub."""
    text = _PICTURE.sub("", _FRONT_MATTER.sub("", card)).strip()
    text = _FROM_ROOT.sub(f"]({endpoint}/", text)
    return _BESIDE.sub(rf"]({endpoint}/{target}/blob/{tag}/\1)", text)


def report_page(
    results: Sequence[JobResult],
    *,
    endpoint: str,
    issues: Mapping[str, str],
    rejected: Sequence[str] = (),
    notes: Sequence[str] = (),
) -> str:
    """How a run ended. issues: target -> a line about its issue. rejected: a line for each result that was."""
    return render(
        "report_summary.md.jinja",
        headline=_report_headline(results),
        endpoint=endpoint,
        results=results,
        failed=[item for item in results if item.status is Status.FAILED],
        issues={item.target: issues.get(item.target, "") for item in results},
        rejected=rejected,
        notes=notes,
        words=_WORDS,
        names={code: code_name(code) for code in _EXIT_CODES},
    )


def _report_headline(results: Sequence[JobResult]) -> str:
    counts = Counter(item.status for item in results)
    parts = [f"{counts[status]} {words.partition(' ')[2]}" for status, words in _WORDS.items() if counts[status]]
    return ", ".join(parts) or "Nothing to do"


def failure_text(job: Job, result: JobResult, attempts: Attempts, *, endpoint: str, run_url: str) -> str:
    """The body of a failure issue."""
    return render(
        "failure_issue.md.jinja",
        job=job,
        result=result,
        attempts=attempts,
        max_attempts=MAX_ATTEMPTS,
        next_try=format_utc(attempts.next_try) if attempts.next_try else "",
        endpoint=endpoint,
        run_url=run_url,
    )


def trouble_text(headline: str, items: Sequence[tuple[str, str]], *, run_url: str) -> str:
    """The body of an issue about the watchlist or the workflow. items: messages and hints."""
    return render("trouble_issue.md.jinja", headline=headline, items=items, run_url=run_url)


def error_page(title: str, items: Sequence[tuple[str, str]]) -> str:
    """What stopped a step. items: messages and hints."""
    return render("error_summary.md.jinja", title=title, items=items)


def title_of(target: str, reason: str) -> str:
    return one_line(f"awq-bot: {target}: {reason}", _LONGEST_TITLE)


def code_name(exit_code: int) -> str:
    return _NAMES.get(exit_code, "unexpected")
