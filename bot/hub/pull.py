"""Pull: the pinned commit's files onto disk, every size and hash verified, whole files never fetched twice."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Sequence
from concurrent.futures import CancelledError, as_completed
from pathlib import Path
from typing import Any, NamedTuple

from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
from tqdm import tqdm

from bot.checkpoint.repo_files import is_safe_path
from bot.errors import BotError, EnvironmentProblem, UpstreamError
from bot.files import cannot_write, found_as_listed
from bot.hub.fetch import files_at
from bot.hub.session import Hub, call, status_of, workers
from bot.records import HubFile, Job, Progress, PublishedFile, Weights

_DOWNLOADS = 4
_NOTES = ".cache"  # where huggingface_hub keeps what it knows of a folder, and files that are half there


class Pinned(NamedTuple):
    """A repo at one commit."""

    repo_id: str
    sha: str
    repo_type: str = "model"

    def __str__(self) -> str:
        return f"{self.repo_id}@{self.sha[:8]}"


def pull_source(hub: Hub, job: Job, folder: Path, progress: Progress) -> Weights:
    """The files that a release job needs, in `folder`; what is already there and right is not fetched again.

    Raises UpstreamError when the repo went away or a file is not what the plan saw; EnvironmentProblem when the
    disk is too small or cannot be written.
    """
    started = time.monotonic()
    files = (*weights_and_config(job), *job.refresh_files)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cannot_write(folder, error) from None
    _check_space(folder, job, files)
    pulled = pull_files(hub, Pinned(job.entry.repo_id, job.upstream.sha), files, folder, progress)
    _remove_strays(folder, files)
    return Weights(folder=folder.name, sha=job.upstream.sha, files=pulled, duration_s=time.monotonic() - started)


def weights_and_config(job: Job) -> tuple[HubFile, ...]:
    """The source files less weights that nothing names: a second format beside the one that is loaded."""
    return tuple(
        file
        for file in job.source_files
        if not file.path.endswith(".safetensors") or file.path in job.weight_files
    )


def dataset_files(hub: Hub, origin: Pinned) -> tuple[HubFile, ...]:
    """Every file of a data set at its commit. Raises UpstreamError when it is not there for us."""
    try:
        return files_at(hub.reader, origin.repo_id, revision=origin.sha, repo_type=origin.repo_type)
    except HfHubHTTPError as error:
        raise UpstreamError(
            f"data set {origin} answers {status_of(error)}",
            hint="Check its name and sha in the watchlist; if it is gated, ask for access with the token's user.",
        ) from None


def pull_files(
    hub: Hub, origin: Pinned, files: Sequence[HubFile], folder: Path, progress: Progress
) -> tuple[PublishedFile, ...]:
    """The given files of a pinned repo, verified; what is already there and right is not fetched again."""
    if unsafe := [file.path for file in files if not is_safe_path(file.path)]:
        raise UpstreamError(f"{origin}: unsafe file name {unsafe[0]!r}")
    # Its notes would vouch for a file that was damaged since, and what a killed process left there is only large.
    shutil.rmtree(folder / _NOTES, ignore_errors=True)
    there = {file.path: found for file in files if (found := found_as_listed(folder, file))}
    missing = [file for file in files if file.path not in there]
    for file in missing:
        (folder / file.path).unlink(missing_ok=True)
    _download_all(hub, origin, missing, folder, progress)
    shutil.rmtree(folder / _NOTES, ignore_errors=True)
    return tuple(there.get(file.path) or _verified(folder, file) for file in files)


# --- downloading --------------------------------------------------------------------------------------------


def download(hub: Hub, origin: Pinned, path: str, folder: Path, bar: type[Any] | None = None) -> Path:
    """One file; a line that breaks is taken up where it broke. Raises UpstreamError or EnvironmentProblem."""

    def ask() -> str:
        try:
            return hub.reader.hf_hub_download(
                origin.repo_id,
                path,
                revision=origin.sha,
                local_dir=folder,
                repo_type=origin.repo_type,
                # What other programs have stored on this machine is not looked at.
                cache_dir=folder / _NOTES / "hub",
                tqdm_class=bar,
            )
        except LocalEntryNotFoundError as error:
            # "Not found locally" is what it makes of any failure to ask; the cause says which one.
            raise error.__cause__ or error from None

    try:
        return Path(call(ask))
    except (HfHubHTTPError, OSError, ValueError) as error:
        raise _download_problem(error, origin, path, folder) from None


def _download_problem(error: Exception, origin: Pinned, path: str, folder: Path) -> BotError:
    if isinstance(error, HfHubHTTPError):
        return UpstreamError(
            f"{origin}: {path} answers {status_of(error)}",
            hint="The repo was removed, moved or gated since the plan was made. Plan again.",
        )
    if isinstance(error, OSError) and error.errno is not None:
        return cannot_write(folder, error)
    # huggingface_hub's own, such as an endpoint that is no Hub.
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    return UpstreamError(f"{origin}: {path}: {reason}", hint="Run it again; the file is fetched anew.")


def _download_all(hub: Hub, origin: Pinned, files: list[HubFile], folder: Path, progress: Progress) -> None:
    """Several at a time. When one fails, or the user interrupts, the others stop at their next chunk."""
    stop = threading.Event()
    bar = bytes_reporter(progress, f"pull {origin.repo_id}", sum(file.size_bytes for file in files), stop)
    with workers(_DOWNLOADS) as pool:
        try:
            for done in as_completed(
                [pool.submit(download, hub, origin, item.path, folder, bar) for item in files]
            ):
                done.result()
        finally:
            stop.set()


def bytes_reporter(progress: Progress, what: str, total: int, stop: threading.Event) -> type[Any]:
    """A tqdm class, which is how huggingface_hub tells of bytes, that adds all files up and draws nothing."""
    lock = threading.Lock()
    done = 0

    class Reporter(tqdm):  # type: ignore[type-arg]  # generic in its stubs only
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **{**kwargs, "disable": True})

        def update(self, n: float | None = 1) -> None:
            nonlocal done
            if stop.is_set():
                raise CancelledError
            with lock:
                done += int(n or 0)
                progress(what, min(done, total), total, "B")

        # Who has these two is told of bytes from the network by them, and of bytes on disk by the other. Without
        # them a second bar is made of this class, which would count a file that comes by Xet twice.
        def update_transfer(self, n: float | None = 1) -> None:
            if stop.is_set():
                raise CancelledError

        def set_transfer_postfix_str(self, text: str = "", refresh: bool = True) -> None:
            pass

    return Reporter


# --- what is on disk ----------------------------------------------------------------------------------------


def _check_space(folder: Path, job: Job, files: Sequence[HubFile]) -> None:
    """By sizes alone: hashing what is there takes minutes, and comes next."""
    needed = sum(file.size_bytes for file in files if _size(folder / file.path) != file.size_bytes)
    if needed and job.estimate is not None:
        needed += max(0, job.estimate.disk_bytes - job.estimate.download_bytes)
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise EnvironmentProblem(
            f"{folder}: {free / 1e9:.1f} GB free, the job needs {needed / 1e9:.1f} GB",
            hint="Free some space, or name a folder on a larger disk with --work.",
        )


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else -1


def _verified(folder: Path, file: HubFile) -> PublishedFile:
    found = found_as_listed(folder, file)
    if found is None:
        (folder / file.path).unlink(missing_ok=True)
        raise UpstreamError(
            f"{file.path}: what was downloaded is not what the plan saw (size or hash differ)",
            hint="Run it again; the file is fetched anew.",
        )
    return found


def _remove_strays(folder: Path, files: Sequence[HubFile]) -> None:
    """Files of an earlier, other attempt in the same folder: quantizing would take them for the model's."""
    wanted = {folder / file.path for file in files}
    for path in list(folder.rglob("*")):
        if path.is_file() and path not in wanted:
            path.unlink()
