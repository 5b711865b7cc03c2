"""Files on disk: hashed, locked, written whole or not at all, and a disk that cannot be written reported."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import shutil
import uuid
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from bot.errors import EnvironmentProblem
from bot.records import HubFile, OnBytes, PublishedFile, ignore_bytes
from bot.text import size

CHUNK_BYTES = 1 << 20
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
MAKE_ROOM = "Free some space, or name a folder on a larger disk, then run it again: it resumes."
# What the machine refuses. Anything else, such as a missing source file, is a fault of the caller.
_DISK_ERRORS = {
    getattr(errno, name)
    for name in (
        "EACCES",
        "EDQUOT",
        "EEXIST",
        "EFBIG",
        "EIO",
        "EISDIR",
        "ENAMETOOLONG",
        "ENOSPC",
        "ENOTDIR",
        "EPERM",
        "EROFS",
    )
}


def cache_folder(kind: str) -> Path:
    """Where things of this kind are kept that may be deleted at any time.

    See https://specifications.freedesktop.org/basedir-spec/latest/
    """
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "awq-bot" / kind


class DiskFullError(EnvironmentProblem):
    """There is no space on the disk for what was to be written."""


@contextmanager
def disk_errors(path: Path, *, hint: str = MAKE_ROOM, every: bool = False) -> Iterator[None]:
    """Raises EnvironmentProblem when the disk is full, or must not be written, inside the block.

    every: whatever OSError it is; for blocks that use no other file than path.
    """
    try:
        yield
    except OSError as error:
        if not every and error.errno not in _DISK_ERRORS:
            raise
        raise cannot_write(path, error, hint=hint) from error


def cannot_write(path: Path, error: OSError, *, hint: str = MAKE_ROOM) -> EnvironmentProblem:
    said = f"{path}: cannot be written: {error.strerror or error}"
    if error.errno not in _FULL:
        return EnvironmentProblem(said, hint=hint)
    return DiskFullError(f"{said}{_left(path)}", hint=hint)


def _left(path: Path) -> str:
    """What is left on the disk of a path: little, or much where a quota or the number of files is the limit."""
    there = next((folder for folder in path.absolute().parents if folder.is_dir()), Path("/"))
    try:
        return f" ({size(shutil.disk_usage(there).free)} left there)"
    except OSError:
        return ""


@contextmanager
def atomic_file(path: Path, *, mode: int = 0o644, concurrent: bool = False) -> Iterator[BinaryIO]:
    """A file that takes its name only when it is complete and on the disk; its mode does not depend on the umask.

    concurrent: others may write the same path at the same time. Otherwise the temporary file's name is always the
    same, so that what a killed process left behind is written over. Raises EnvironmentProblem as disk_errors does.
    """
    name = f".{path.name[:64]}.{uuid.uuid4().hex}.tmp" if concurrent else f".{path.name}.tmp"
    temporary = path.with_name(name)
    try:
        with disk_errors(path):
            with open(temporary, "wb", opener=lambda name, flags: os.open(name, flags, mode)) as file:
                yield file
                file.flush()
                os.fchmod(file.fileno(), mode)
                os.fsync(file.fileno())
            temporary.replace(path)
            sync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def write_atomic(path: Path, content: bytes, *, mode: int = 0o644, concurrent: bool = False) -> None:
    """As atomic_file. The folder is made if it does not exist, unless others may delete it at the same time."""
    with disk_errors(path, every=not concurrent):
        if not concurrent:
            path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(path, mode=mode, concurrent=concurrent) as file:
            file.write(content)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """A folder beside path that takes its place when everything in it is written; on an error it is removed."""
    folder = path.with_name(f".{path.name}.partial")
    shutil.rmtree(folder, ignore_errors=True)
    with disk_errors(folder):
        folder.mkdir(parents=True)
    try:
        yield folder
        if path.exists():
            shutil.rmtree(path)
        with disk_errors(path):
            folder.replace(path)
            sync_folder(path.parent)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def refuse_links(folder: Path, *, but: Collection[Path] = ()) -> None:
    """As refuse_link, for the folder and all that is in it. but: folders below that are not looked into."""
    refuse_link(folder)
    for parent, folders, files in os.walk(folder):  # follows none
        here = Path(parent)
        for name in (*folders, *files):
            refuse_link(here / name)
        folders[:] = [name for name in folders if here / name not in but]


def refuse_link(path: Path) -> None:
    """Raises EnvironmentProblem for a symbolic link.

    What is written or deleted in a folder of ours must not reach what a link points to.
    """
    if path.is_symlink():
        hint = "Delete the link; what it points to stays. A job uses its own folder only; --work may be a link."
        raise EnvironmentProblem(f"{path}: is a symbolic link", hint=hint)


def sync_folder(folder: Path) -> None:
    """A rename survives a power cut only when the folder that holds the name is synced too."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some network and FUSE file systems cannot sync a folder: https://man7.org/linux/man-pages/man2/fsync.2.html
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)


@contextmanager
def locked(path: Path, *, make_parents: bool = False) -> Iterator[None]:
    """Holds an exclusive lock that threads and processes alike respect; a dead process loses it.

    Raises FileNotFoundError when the folder does not exist, unless make_parents.
    """
    while True:
        with disk_errors(path, every=make_parents):
            if make_parents:
                path.parent.mkdir(parents=True, exist_ok=True)
            lock = path.open("ab")
        with lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            # Whoever held it may have deleted the file meanwhile, and with it the lock.
            if path.exists() and os.path.samestat(os.fstat(lock.fileno()), path.stat()):
                yield
                return


@contextmanager
def unlocked(path: Path) -> Iterator[bool]:
    """Whether no process holds the lock of `locked`; if so, none can take it inside the block. Makes no file."""
    try:
        lock = path.open("rb")
    except FileNotFoundError:
        yield True
        return
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True


# --- hashing ------------------------------------------------------------------------------------------------


def chunks(file: BinaryIO, limit: int | None = None) -> Iterator[bytes]:
    """The content from here on, at most `limit` bytes of it."""
    remaining = limit
    while remaining is None or remaining > 0:
        chunk = file.read(CHUNK_BYTES if remaining is None else min(CHUNK_BYTES, remaining))
        if not chunk:
            return
        if remaining is not None:
            remaining -= len(chunk)
        yield chunk


def write_hashed(target: BinaryIO, pieces: Iterable[bytes]) -> tuple[str, int]:
    """Write all pieces to the disk; returns their sha256 and size in bytes."""
    digest, size_bytes = hashlib.sha256(), 0
    for piece in pieces:
        target.write(piece)
        digest.update(piece)
        size_bytes += len(piece)
    target.flush()
    os.fsync(target.fileno())
    return digest.hexdigest(), size_bytes


def file_sha256(path: Path, on_bytes: OnBytes = ignore_bytes) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        for chunk in chunks(file):
            digest.update(chunk)
            on_bytes(len(chunk))
    return digest.hexdigest()


def describe_file(folder: Path, path: str, on_bytes: OnBytes = ignore_bytes) -> PublishedFile:
    """Size and sha256 of the file that will be published as `path`."""
    size_bytes = (folder / path).stat().st_size
    return PublishedFile(path=path, size_bytes=size_bytes, sha256=file_sha256(folder / path, on_bytes))


def describe_folder(folder: Path, on_bytes: OnBytes = ignore_bytes) -> tuple[PublishedFile, ...]:
    """Every file of the folder, by path."""
    paths = (path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*")) if path.is_file())
    return tuple(describe_file(folder, path, on_bytes) for path in paths)


def found_as_listed(folder: Path, file: HubFile, on_bytes: OnBytes = ignore_bytes) -> PublishedFile | None:
    """The file on disk, if its size and content hash are as the Hub lists them.

    The Hub lists the sha256 of LFS files and git's blob sha1 of others. Nothing is read when the size differs.
    """
    path = folder / file.path
    if not path.is_file() or path.stat().st_size != file.size_bytes:
        return None
    sha256 = hashlib.sha256()
    # https://git-scm.com/book/en/v2/Git-Internals-Git-Objects#_object_storage
    blob = hashlib.sha1(f"blob {file.size_bytes}\0".encode(), usedforsecurity=False)
    hashes = [sha256, blob] if len(file.content_hash) == len(blob.hexdigest()) else [sha256]
    with path.open("rb") as stream:
        for chunk in chunks(stream):
            for known in hashes:
                known.update(chunk)
            on_bytes(len(chunk))
    if file.content_hash not in [known.hexdigest() for known in hashes]:
        return None
    return PublishedFile(path=file.path, size_bytes=file.size_bytes, sha256=sha256.hexdigest())
