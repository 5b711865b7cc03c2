"""Pull: download the pinned commit's files and verify every size and hash. Complete files are downloaded once."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError, as_completed
from pathlib import Path
from typing import Any, NamedTuple

from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
from tqdm import tqdm

from bot.checkpoint.repo_files import is_safe_path
from bot.errors import BotError, EnvironmentProblem, UpstreamError, reason_of
from bot.files import cannot_write, found_as_listed, refuse_links
from bot.hub.fetch import files_at
from bot.hub.session import Hub, call, status_of, workers
from bot.records import HubFile, Job, OnBytes, Progress, PublishedFile, Weights, byte_counter, no_progress

_DOWNLOADS = 4
# huggingface_hub's metadata about a local_dir, and its incomplete files. See
# https://huggingface.co/docs/huggingface_hub/guides/download
_CACHE = ".cache"
_MAKE_ROOM = "Free some space, or name a folder on a larger disk with --work, then run it again: it resumes."


class Pinned(NamedTuple):
    """A repo at one commit."""

    repo_id: str
    sha: str
    repo_type: str = "model"

    def __str__(self) -> str:
        return f"{self.repo_id}@{self.sha[:8]}"


def pull_source(
    hub: Hub, job: Job, folder: Path, progress: Progress, *, before_weights: Callable[[], None] | None = None
) -> Weights:
    """The files that a job needs, in `folder`. Files that are there and correct are not downloaded again.

    before_weights: called when all but the weights are there; what it raises ends the pull. Raises UpstreamError
    when the repo is gone or a file is not the one that was planned; EnvironmentProblem when the disk is too small
    or cannot be written, or the folder is or has a symbolic link.
    """
    started = time.monotonic()
    files = (*weights_and_config(job), *job.refresh_files)
    refuse_links(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cannot_write(folder, error, hint=_MAKE_ROOM) from None
    _check_space(folder, job, files)
    _remove_other_files(folder, files)
    origin = Pinned(job.entry.repo_id, job.upstream.sha)
    if before_weights is not None:
        small = [file for file in files if file.path not in job.weight_files]
        pull_files(hub, origin, small, folder, no_progress)
        before_weights()
    pulled = pull_files(hub, origin, files, folder, progress)
    return Weights(folder=folder.name, sha=job.upstream.sha, files=pulled, duration_s=time.monotonic() - started)


def weights_and_config(job: Job) -> tuple[HubFile, ...]:
    """The source files without safetensors that the index does not name, such as a second format."""
    return tuple(
        file
        for file in job.source_files
        if not file.path.endswith(".safetensors") or file.path in job.weight_files
    )


def dataset_files(hub: Hub, origin: Pinned) -> tuple[HubFile, ...]:
    """Every file of a data set at its commit. Raises UpstreamError when it is missing or we have no access."""
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
    """The given files of a pinned repo, verified. Files that are there and correct are not downloaded again.

    Raises EnvironmentProblem when the folder is or has a symbolic link.
    """
    refuse_links(folder)
    if unsafe := [file.path for file in files if not is_safe_path(file.path)]:
        raise UpstreamError(f"{origin}: unsafe file name {unsafe[0]!r}")
    # The metadata would vouch for a file that was damaged later, and incomplete files only take space.
    shutil.rmtree(folder / _CACHE, ignore_errors=True)
    present = [file for file in files if _size(folder / file.path) == file.size_bytes]
    count = _check_counter(progress, origin, present)
    found = {file.path: checked for file in present if (checked := found_as_listed(folder, file, count))}
    missing = [file for file in files if file.path not in found]
    for file in missing:
        path = folder / file.path
        try:
            path.unlink(missing_ok=True)
        except OSError as error:  # a folder of that name
            raise cannot_write(path, error, hint="Delete it, then run it again: it resumes.") from None
    _download_all(hub, origin, missing, folder, progress)
    shutil.rmtree(folder / _CACHE, ignore_errors=True)
    count = _check_counter(progress, origin, missing)
    return tuple(found.get(file.path) or _verified(folder, file, count) for file in files)


def _check_counter(progress: Progress, origin: Pinned, files: Sequence[HubFile]) -> OnBytes:
    return byte_counter(progress, f"check {origin.repo_id}", sum(file.size_bytes for file in files))


# --- downloading --------------------------------------------------------------------------------------------


def download(hub: Hub, origin: Pinned, path: str, folder: Path, bar: type[Any] | None = None) -> Path:
    """One file; a broken connection is resumed where it broke. Raises UpstreamError or EnvironmentProblem."""

    def ask() -> str:
        try:
            return hub.reader.hf_hub_download(
                origin.repo_id,
                path,
                revision=origin.sha,
                local_dir=folder,
                repo_type=origin.repo_type,
                # Not the cache that other programs on this machine share.
                cache_dir=folder / _CACHE / "hub",
                tqdm_class=bar,
            )
        except LocalEntryNotFoundError as error:
            # huggingface_hub raises this for every failed request; the cause says which one.
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
        return cannot_write(folder, error, hint=_MAKE_ROOM)
    # An error of huggingface_hub, such as an endpoint that is not a Hub.
    return UpstreamError(
        f"{origin}: {path}: {reason_of(error)}", hint="Run it again: the file is downloaded again."
    )


def _download_all(hub: Hub, origin: Pinned, files: list[HubFile], folder: Path, progress: Progress) -> None:
    """Several at a time. When one fails, or the user interrupts, the others stop at their next chunk."""
    stop = threading.Event()
    total = sum(file.size_bytes for file in files)
    bar = tqdm_class(byte_counter(progress, f"pull {origin.repo_id}", total), stop.is_set)
    with workers(_DOWNLOADS) as pool:
        try:
            for done in as_completed(
                [pool.submit(download, hub, origin, item.path, folder, bar) for item in files]
            ):
                done.result()
        finally:
            stop.set()


def tqdm_class(on_bytes: OnBytes, stopped: Callable[[], bool]) -> type[Any]:
    """huggingface_hub reports downloaded bytes to a tqdm class; this one draws nothing."""

    class Reporter(tqdm):  # type: ignore[type-arg]  # generic in its stubs only
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **{**kwargs, "disable": True})

        def update(self, n: float | None = 1) -> None:
            if stopped():
                raise CancelledError
            on_bytes(int(n or 0))

        # With these two methods, bytes from the network go to them and bytes on disk to `update`. Without them
        # huggingface_hub makes a second bar of this class, which counts a file that comes by Xet twice.
        def update_transfer(self, n: float | None = 1) -> None:
            if stopped():
                raise CancelledError

        def set_transfer_postfix_str(self, text: str = "", refresh: bool = True) -> None:
            pass

    return Reporter


# --- what is on disk ----------------------------------------------------------------------------------------


def _check_space(folder: Path, job: Job, files: Sequence[HubFile]) -> None:
    """Check the disk by file sizes only: hashing takes minutes and comes next."""
    needed = sum(file.size_bytes for file in files if _size(folder / file.path) != file.size_bytes)
    if needed and job.estimate is not None:
        needed += max(0, job.estimate.disk_bytes - job.estimate.download_bytes)
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise EnvironmentProblem(
            f"{folder}: {free / 1e9:.1f} GB free, the job needs {needed / 1e9:.1f} GB", hint=_MAKE_ROOM
        )


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else -1


def _verified(folder: Path, file: HubFile, on_bytes: OnBytes) -> PublishedFile:
    found = found_as_listed(folder, file, on_bytes)
    if found is None:
        (folder / file.path).unlink(missing_ok=True)
        raise UpstreamError(
            f"{file.path}: the download is not the planned file (size or hash differ)",
            hint="Run it again: the file is downloaded again.",
        )
    return found


def _remove_other_files(folder: Path, files: Sequence[HubFile]) -> None:
    """Files of an earlier job in the same folder; quantizing would read them as part of the model."""
    wanted = {folder / file.path for file in files}
    for path in list(folder.rglob("*")):
        if path.is_file() and path not in wanted:
            path.unlink()
