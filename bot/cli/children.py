"""A stage in a child process: how the command line starts one, and how it behaves as one."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import typer

from bot.cli.console import bug, child_options, log, needs_extra, problem_of
from bot.cli.interrupts import ended_by_ctrl_c
from bot.errors import BotError, EnvironmentProblem
from bot.jobs.confined import PARENT
from bot.jobs.folder import JobDir
from bot.jobs.machine import name_needed_space, time_limit_s
from bot.jobs.plain import hint_for_folders
from bot.jobs.worker import end_with_parent, record_failure, run_child
from bot.records import Job, Status, job_result

Record = TypeVar("Record")


def is_child() -> bool:
    return PARENT in os.environ


def in_child(verb: str, jobdir: JobDir, kind: type[Record], *, require_isolation: bool) -> Record:
    """One stage of a job, as `run` does it: this process has tokens, and the model may bring code."""
    limit_s = time_limit_s(jobdir.job.estimate)
    run_child(verb, jobdir, limit_s=limit_s, options=tuple(child_options), require_isolation=require_isolation)
    made = jobdir.load(kind)
    assert made is not None
    return made


class recording_failures:  # noqa: N801 - used as a with statement's verb
    """Records a failure of a child process for its parent. On plain folders nothing is recorded."""

    def __init__(self, job: Path | None, stage: str) -> None:
        self._job, self._stage = job, stage

    def __enter__(self) -> None:
        end_with_parent()

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        job = self._readable_job()
        problem = _problem_of(error, job)
        if problem is None:
            return
        if self._job is None:
            problem.hint = hint_for_folders(problem.hint)
        if job is not None:
            name_needed_space(problem, job.estimate)
        if job is not None and self._job is not None:
            failed = job_result(job, stage=self._stage, status=Status.FAILED, error=problem)
            record_failure(JobDir(self._job), failed)
            if is_child():
                # The parent process prints it, once.
                raise typer.Exit(problem.exit_code) from None
        raise problem from None

    def _readable_job(self) -> Job | None:
        if self._job is None:
            return None
        try:
            return JobDir(self._job).load(Job)
        except BotError:
            return None


def _problem_of(error: BaseException | None, job: Job | None) -> BotError | None:
    """What to report; None for what the command line itself reacts to."""
    # After a broken pipe no one reads an error message.
    if error is None or isinstance(error, (BrokenPipeError, typer.Exit, KeyboardInterrupt, SystemExit)):
        return None
    if isinstance(error, BotError):
        return error
    if isinstance(error, OSError):
        return problem_of(error)
    if isinstance(error, MemoryError):
        return EnvironmentProblem("out of memory", hint="Run it on a machine with more memory: it resumes.")
    log.error("unexpected %s", type(error).__name__, exc_info=error)
    return bug(error, job)


@contextmanager
def loading_torch() -> Iterator[None]:
    """Around the import of what needs torch. Raises EnvironmentProblem where it is not installed."""
    # transformers asks the Hub for files that a folder lacks.
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    needs_extra("quantize")
    with ended_by_ctrl_c():
        yield
