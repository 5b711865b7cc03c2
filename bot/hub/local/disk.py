"""Writing files so that a crash leaves either the old content or the new, never a part."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

CHUNK_BYTES = 1 << 20


def write_atomic(path: Path, content: bytes, *, mode: int = 0o644) -> None:
    temporary = path.with_name(f".{path.name[:64]}.{uuid.uuid4().hex}.tmp")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    fsync_folder(path.parent)


def fsync_folder(folder: Path) -> None:
    """A rename survives a power cut only when the folder that holds the name is synced too."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Holds an exclusive lock that threads and processes alike respect; a dead process loses it."""
    with path.open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def chunks(file: BinaryIO, limit: int | None = None) -> Iterator[bytes]:
    """The content from here on, at most `limit` bytes of it."""
    left = limit
    while left is None or left > 0:
        chunk = file.read(CHUNK_BYTES if left is None else min(CHUNK_BYTES, left))
        if not chunk:
            return
        if left is not None:
            left -= len(chunk)
        yield chunk


def write_hashed(target: BinaryIO, pieces: Iterable[bytes]) -> tuple[str, int]:
    """Writes all pieces; returns their sha256 and size."""
    digest, size = hashlib.sha256(), 0
    for piece in pieces:
        target.write(piece)
        digest.update(piece)
        size += len(piece)
    target.flush()
    os.fsync(target.fileno())
    return digest.hexdigest(), size


def sha256_of(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
