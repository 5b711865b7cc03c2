"""A disk that is full from one write on, at each write of each stage of a job; then the stage with space again."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bot.jobs.folder import JobDir
from bot.jobs.worker import FAILURE, error_of
from bot.records import JobResult
from tests.support.forks import Forks, Result
from tests.support.full_disk import Disk
from tests.support.sandbox import Sandbox
from tests.support.small_sandbox import TARGET, Tree, left_behind

# The stages that have not run where this one begins, and what it makes in the job's folder. `run` has only to
# publish.
BEFORE: Mapping[str, tuple[str, ...]] = {
    "pull": ("pull",),
    "quantize": ("quantize", "evaluate", "card"),
    "evaluate": ("evaluate", "card"),
    "card": ("card",),
    "run": (),
}
MADE: Mapping[str, tuple[str, ...]] = {
    "pull": ("source", "calibration"),
    "quantize": ("quantized",),
    "evaluate": ("card/assets",),
    "card": ("card",),
    "run": (),
}
_RECORDS = {"pull": "weights.json", "quantize": "quantized.json", "evaluate": "report.json", "card": "card.json"}
# What takes its name only when it is complete, so that no later run has to make it again.
_COMPLETE = ("source/*", "calibration/*/**/*.jsonl", "calibration/*/**/*.parquet", "layers/layer-*")
_CHILDREN = ("quantize", "evaluate")
_FULL = 8  # exit code


@dataclass(frozen=True, slots=True, kw_only=True)
class Full:
    """number: of the first write that fails."""

    stage: str
    number: int

    def __str__(self) -> str:
        return f"{self.stage}: {self.number}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """write: the first that failed; empty where the stage wrote less.

    mixed: half of something was taken for the whole, or is public. lost: what was done was done again, or cannot
    be done any more. unnamed: the error does not say what happened and what to do.
    """

    write: str
    mixed: str = ""
    lost: str = ""
    unnamed: str = ""


def try_full(cell: Full, sandbox: Sandbox, ready: Path, server: Forks, expected: Tree) -> Ended:
    """ready: the job's folder where all is done but publishing. expected: what is published then."""
    trial = _Trial(sandbox, server, cell)
    disk = Disk(sandbox.root, full_from=cell.number)
    result = trial.run(disk)
    if not disk.failed:
        assert result.returncode == 0, result.stderr
        return Ended(write="", mixed=trial.wrong(ready))
    unnamed = trial.unnamed(result)
    complete = [path for pattern in _COMPLETE for path in trial.job.glob(pattern) if path.is_file()]
    done = {path: path.stat().st_mtime_ns for path in complete}
    mixed = trial.half_published(expected)
    again = trial.run(None)
    lost = "" if again.returncode == 0 else f"it cannot go on: {again.stderr}"
    if twice := [path.name for path, time in done.items() if path.exists() and path.stat().st_mtime_ns != time]:
        lost = lost or f"{twice} were made twice"
    if left := left_behind(sandbox):
        lost = lost or f"{left} were left behind"
    if cell.stage == "run" and sandbox.hub.files(TARGET) != expected:
        mixed = mixed or "what was published in the end is something else"
    return Ended(write=str(disk.failed[0]), mixed=mixed or trial.wrong(ready), lost=lost, unnamed=unnamed)


@dataclass(frozen=True)
class _Trial:
    sandbox: Sandbox
    server: Forks
    cell: Full

    @property
    def job(self) -> Path:
        return self.sandbox.jobs[0]

    def run(self, disk: Disk | None) -> Result:
        """A child process's error comes back as its parent gets it."""
        words = ("run",) if self.cell.stage == "run" else (self.cell.stage, "--job", str(self.job))
        environment = self.sandbox.environment() | {
            "TMPDIR": str(self.sandbox.root),
            "HOME": str(self.sandbox.root),
        }
        if self.cell.stage not in _CHILDREN:
            return self.server.run(*words, environment=environment, cwd=self.sandbox.root, disk=disk)
        JobDir(self.job).forget(JobResult)
        read, write = os.pipe()
        with os.fdopen(read, "rb") as failure:
            result = self.server.run(
                *words,
                environment=environment | {FAILURE: str(write)},
                cwd=self.sandbox.root,
                disk=disk,
                is_child=True,
                keep=(write,),
            )
            os.close(write)
            if result.returncode == 0:
                return result
            error = error_of(self.cell.stage, JobDir(self.job), result.returncode, failure.read())
        said = f"{result.stderr}error: {error.message}\nhint: {error.hint}\n"
        return Result(words, error.exit_code, result.stdout, said)

    def unnamed(self, result: Result) -> str:
        """Whether the error does not name a path, the full disk and what to do; or is none, as of a cache."""
        errors = [line for line in result.stderr.splitlines() if line.startswith("error:")]
        if result.returncode == 0:
            return self.unmade()
        if result.returncode != _FULL or len(errors) != 1 or "Traceback" in result.stderr:
            return f"exit code {result.returncode}: {result.stderr}"
        named = self.job.name in errors[0] and "No space left on device" in errors[0] and "left there" in errors[0]
        hints = [line for line in result.stderr.splitlines() if line.startswith("hint: Free some space")]
        # A stage that a person asks for by itself has no plan at hand, but its job's folder.
        said = self.cell.stage in ("pull", "card") or "The job needs" in "".join(hints)
        return "" if named and hints and said else f"{errors[0]}; hints: {hints}"

    def unmade(self) -> str:
        record = _RECORDS.get(self.cell.stage)
        made = record is None or (self.job / record).is_file()
        return "" if made else f"it ended well without {record}"

    def half_published(self, expected: Tree) -> str:
        hub = self.sandbox.hub
        if not hub.store.exists(TARGET) or hub.repo(TARGET).settings().private:
            return ""
        return "" if hub.files(TARGET) == expected else f"{sorted(hub.files(TARGET))} is public"

    def wrong(self, ready: Path) -> str:
        """What differs from a job whose disk was never full."""
        for name in MADE[self.cell.stage]:
            found, wanted = _tree(self.job / name), _tree(ready / name)
            if found != wanted:
                differing = [path for path in found | wanted if found.get(path) != wanted.get(path)]
                return f"{name} differs: {differing}"
        record = _RECORDS.get(self.cell.stage)
        if record is not None and _record(self.job / record) != _record(ready / record):
            return f"{record} differs"
        return ""


def _tree(folder: Path) -> Tree:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def _record(path: Path) -> Any:
    """Without how long it took."""
    content = None
    with suppress(FileNotFoundError):
        content = json.loads(path.read_bytes())["record"]
    return _without_times(content)


def _without_times(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_times(item) for key, item in value.items() if "duration" not in key}
    return [_without_times(item) for item in value] if isinstance(value, list) else value
