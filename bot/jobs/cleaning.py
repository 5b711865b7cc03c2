"""Old job folders: what they are, how large, and their removal."""

from __future__ import annotations

import json
import os
import shutil
import stat
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from bot.errors import EnvironmentProblem
from bot.files import disk_errors, unlocked
from bot.jobs.folder import JobDir
from bot.records import Card, Job, Publication

State = Literal["published", "ready to publish", "unfinished"]
_DAY_S = 24 * 60 * 60


@dataclass(frozen=True, slots=True, kw_only=True)
class JobFolder:
    """One job's folder. changed_s: seconds since its last change. in_use: a process works on it."""

    path: Path
    target: str
    size_bytes: int
    state: State
    changed_s: float
    in_use: bool

    def is_old(self, older_than_days: float | None) -> bool:
        """Without an age: what is published. With one: what has not changed for so long, in any state."""
        if older_than_days is None:
            return self.state == "published"
        return self.changed_s > older_than_days * _DAY_S


def job_folders(work: Path) -> tuple[JobFolder, ...]:
    """The job folders directly below `work`, the largest first. Follows no links, ignores all other folders.

    Raises EnvironmentProblem when `work` cannot be read.
    """
    try:
        paths = sorted(work.iterdir())
    except FileNotFoundError:
        return ()
    except OSError as error:
        raise EnvironmentProblem(
            f"{work}: cannot be read: {error.strerror}", hint="Name the folder that `awq-bot run` was given."
        ) from None
    found = (_job_folder(path) for path in paths)
    return tuple(sorted((item for item in found if item), key=lambda item: -item.size_bytes))


def delete(folder: JobFolder) -> bool:
    """Whether it was deleted: not while a process works on it."""
    jobdir = JobDir(folder.path)
    with unlocked(jobdir.lock) as free:
        if not free:
            return False
        with disk_errors(folder.path, hint="Is it another user's?"):
            # What says that it is a job's goes last: what an interruption leaves is found the next time.
            for path in sorted(folder.path.iterdir()):
                if path not in (jobdir.record_path(Job), jobdir.lock):
                    _remove(path)
            shutil.rmtree(folder.path)
    return True


def _job_folder(path: Path) -> JobFolder | None:
    if path.is_symlink() or not path.is_dir():
        return None
    jobdir = JobDir(path)
    target = _target(jobdir)
    if target is None:
        return None
    entries = [path.lstat(), *_entries(path)]
    with unlocked(jobdir.lock) as free:
        return JobFolder(
            path=path,
            target=target,
            size_bytes=sum(entry.st_size for entry in entries if stat.S_ISREG(entry.st_mode)),
            state=_state(jobdir),
            changed_s=max(0.0, time.time() - max(entry.st_mtime for entry in entries)),
            in_use=not free,
        )


def _target(jobdir: JobDir) -> str | None:
    """Where the job publishes, or None when the folder is not a job's. Reads records of older versions too."""
    try:
        job = json.loads(jobdir.record_path(Job).read_bytes())["record"]
        return str(job["entry"]["target"]) if job["job_id"] == jobdir.path.name else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _state(jobdir: JobDir) -> State:
    if jobdir.record_path(Publication).is_file():
        return "published"
    return "ready to publish" if jobdir.record_path(Card).is_file() else "unfinished"


def _entries(folder: Path) -> Iterator[os.stat_result]:
    """Everything below, as far as it can be read and is still there."""
    for parent, folders, files in os.walk(folder):
        for name in (*folders, *files):
            try:
                yield (Path(parent) / name).lstat()
            except FileNotFoundError:
                continue


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()
